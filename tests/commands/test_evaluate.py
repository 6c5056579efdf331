from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.cli import main
from galscan.commands import evaluate as module
from galscan.core.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.core.files import read_json
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.models import model as models
from galscan.models import roles
from galscan.models.network import GalaxyNet
from galscan.stats import calibration
from galscan.store.build import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.synthetic_set import SyntheticSet, write_synthetic_set
from galscan.training.plan import make_plan
from tests.helpers import tiny_recipe
from tests.pages import check_page

SCHEMA = load_schema("simulated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=300, size=32, seed=1, rare_fraction=0.15, labelled=0.9)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def recipe(folder) -> str:
    return str(tiny_recipe(folder / "dustlane.toml"))


@pytest.fixture(scope="module")
def model(folder, store, recipe) -> Path:
    """Make a model folder with a synthetic set: real galaxies of another sky, and the copy of a training image."""
    plan = make_plan(recipe, (), store, folder / "none", None, True, 5)
    splits = plan.table.loc[plan.table["target"].notna(), ["store", "id", "split", "target"]]
    targets = np.repeat([1, 0], 10)
    path = folder / "model"
    models.write_model(
        path, recipe=load_recipe(recipe), target="dustlane", schema=SCHEMA, size=32, seed=5,
        answers=list(plan.answers), networks=[GalaxyNet(8, len(plan.answers)).eval()],
        calibration=calibration.fit(targets.astype(float), targets), splits=splits,
        metrics={"real_only": None, "real_plus_synthetic": None, "chosen": "real_only"},
    )  # fmt: skip
    other = open_store(
        ingest_survey(
            SimulatedSurvey(count=120, size=32, seed=2, rare_fraction=0.2), folder / "other.zarr", workers=1
        ).path
    )
    labels, images = other.labels("simulated"), other.images()
    target = ((labels["early_type"] >= 0.5) & (labels["dust_lane"] >= 0.5)).to_numpy(np.float32)
    trained = (roles.with_fixed_split(plan.table["split"]) == "train") & plan.table["target"].notna()
    copied = plan.table.loc[trained, "row"].iloc[3]
    images[7] = open_store(store).images()[copied][::-1]
    write_synthetic_set(
        SyntheticSet.of_origin(images, labels, target), path / "synthetic.zarr", "synthetic", SCHEMA, {"seed": 5}
    )
    return path


@pytest.fixture(scope="module")
def evaluated(folder, store, recipe, model) -> dict:
    return module.evaluate(model, target=recipe, store=store, out=folder / "evaluated", steps=4, device="cpu")


def test_the_folder_is_complete(evaluated, model):
    out = Path(evaluated["out"])
    assert {p.name for p in out.iterdir()} == {"evaluation.json", "report.html", "synthetic.csv"}
    assert not out.with_name("evaluated.partial").exists()
    result = read_json(out / "evaluation.json")
    assert result == {k: v for k, v in evaluated.items() if k not in ("out", "text")}
    assert result["counts"]["synthetic"]["positive"] + result["counts"]["synthetic"]["negative"] == 120
    assert "each" not in result and result["request"]["steps"] == 4 and result["request"]["split_seed"] == 5
    assert "real, held out" in evaluated["text"] and "report.html" in evaluated["text"]


def test_the_planted_copy_is_named(evaluated, store, model):
    table = pd.read_csv(Path(evaluated["out"]) / "synthetic.csv", keep_default_na=False, dtype={"id": str})
    splits = models.open_model(model).splits()
    assert list(table) == ["synthetic", "target", "reason", "store", "id", "distance"] and len(table) == 120
    assert table["reason"][7] == "copy" and table["distance"][7] < 0.2
    assert table["id"][7] == splits.loc[roles.with_fixed_split(splits["split"]) == "train", "id"].iloc[3]


def test_objects_that_the_model_held_out_are_held_out(evaluated, model):
    splits = models.open_model(model).splits()
    test = splits[roles.with_fixed_split(splits["split"]) == "test"]  # nothing in the folder is made of these
    assert evaluated["counts"]["real"] == {
        "positive": int((test["target"] == 1).sum()),
        "negative": int((test["target"] == 0).sum()),
    }
    table = pd.read_csv(Path(evaluated["out"]) / "synthetic.csv", dtype={"id": str})
    assert not set(table["id"]) & set(test["id"])


def test_the_page(evaluated):
    text = (Path(evaluated["out"]) / "report.html").read_text(encoding="utf-8")
    check_page(text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 9 and all(s.startswith("data:image/") for s in sources)
    assert "Real, held out" in text and "copies, by pixels" in text and "&lt;" not in text


def test_a_finished_evaluation_is_returned_and_another_one_is_a_conflict(evaluated, model, store, recipe, capsys):
    options = {"target": recipe, "store": store, "out": evaluated["out"], "device": "cpu"}
    assert module.evaluate(model, steps=4, **options) == evaluated
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="evaluated"):
        module.evaluate(model, steps=5, **options)


def test_an_interrupted_evaluation_resumes_with_its_classifier(evaluated, model, store, recipe, folder, monkeypatch):
    from galscan.synthesis import evaluation

    options = {"target": recipe, "store": store, "out": folder / "again", "device": "cpu"}
    work = folder / "again.partial"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", stop)
        with pytest.raises(Interrupted, match="again"):
            module.evaluate(model, steps=4, **options)
    assert (work / "reference.safetensors").is_file() and not (folder / "again").exists()
    with pytest.raises(ConflictError, match="steps"):
        module.evaluate(model, steps=5, **options)
    monkeypatch.setattr("galscan.training.train.train_classifier", stop)
    again = module.evaluate(model, steps=4, **options)
    assert {k: again[k] for k in ("adherence", "copies", "filter")} == {
        k: evaluated[k] for k in ("adherence", "copies", "filter")
    }


def test_a_plan_is_printed_and_nothing_written(model, store, recipe, capsys):
    request = module.evaluate(model / "synthetic.zarr", target=recipe, store=store, dry_run=True)
    printed = capsys.readouterr().err
    assert "synthetic-evaluation" in printed and "as in the model" in printed and request["steps"] == 8
    assert not list(model.glob("*evaluation*"))


def test_without_a_model_the_seed_decides_the_split(model, store, recipe, tmp_path, capsys):
    shutil.copytree(model / "synthetic.zarr", tmp_path / "d.zarr")
    module.evaluate(tmp_path / "d.zarr", target=recipe, store=store, seed=9, dry_run=True)
    assert "by seed 9" in capsys.readouterr().err
    module.evaluate(tmp_path / "d.zarr", target=recipe, store=store, seed=9, model=model, dry_run=True)
    assert "as in the model" in capsys.readouterr().err


def test_invalid_arguments_are_errors(model, store, recipe, folder, tmp_path):
    options = {"target": recipe, "store": store, "device": "cpu"}
    with pytest.raises(NotFoundError, match=r"nothing\.zarr"):
        module.evaluate(tmp_path / "nothing.zarr", **options)
    with pytest.raises(InputError, match=r"sky\.zarr"):
        module.evaluate(store, **options)
    with pytest.raises(InputError, match="--steps 0"):
        module.evaluate(model, steps=0, **options)
    with pytest.raises(InputError, match="model"):
        module.evaluate(model, **options | {"store": folder / "other.zarr"})
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConflictError, match="taken"):
        module.evaluate(model, out=tmp_path / "taken", overwrite=True, **options)
    galaxies = SyntheticSet.of_origin(
        np.zeros((3, 32, 32, 3), np.uint8), open_store(store).labels("simulated")[:3], np.zeros(3)
    )
    write_synthetic_set(galaxies, tmp_path / "none.zarr", "none", SCHEMA, {})
    with pytest.raises(InputError, match=r"none\.zarr"):
        module.evaluate(tmp_path / "none.zarr", **options)


def test_injected_galaxies_are_evaluated_with_their_hosts(folder, tmp_path, capsys):
    """The whole chain by the command line: features injected, and evaluated."""
    sky = SimulatedSurvey(count=220, size=64, seed=4, rare_fraction=0.15, labelled=0.9)
    store = ingest_survey(sky, tmp_path / "sky.zarr", workers=1).path  # larger images are resampled
    recipe = tiny_recipe(tmp_path / "lanes.toml", size=48)
    # Galaxies this small show little.
    recipe.write_text(re.sub(r"plain = [\d.]+", "plain = 0.12", recipe.read_text()))
    line = f"generate --target {recipe} --store {store} --generator prior --count 30 --out {tmp_path / 'd.zarr'}"
    assert main.run([*line.split(), "--device", "cpu"]) == 0
    line = f"evaluate {tmp_path / 'd.zarr'} --target {recipe} --store {store} --steps 3 --device cpu --json"
    capsys.readouterr()
    assert main.run(line.split()) == 0
    result = read_json(tmp_path / "d-evaluation" / "evaluation.json")
    assert result["counts"]["synthetic"] == {"positive": 30, "negative": 0}
    hosts = open_store(tmp_path / "d.zarr").count - 30
    assert result["counts"]["hosts"]["all"] == hosts and 0 < result["counts"]["hosts"]["trained_on"] <= hosts
    expected = {"synthetic": 30, "real": result["counts"]["real"]["positive"], "hosts": hosts}
    assert {which: result["acceptance"][which]["at_zero"]["n"] for which in expected} == expected
    feature = result["feature"]
    assert feature["name"] == "dust_lane" and feature["galaxies"]["synthetic"]["n"] == 30
    assert feature["galaxies"]["real"]["n"] > result["counts"]["real"]["positive"]  # those of training as well
    assert set(feature["quantities"]) == {
        "log_length", "axis_ratio", "log_depth", "colour_excess", "reddening",
    }  # fmt: skip
    found = {which: entry["feature_measured"] / entry["n"] for which, entry in feature["galaxies"].items()}
    assert found["synthetic"] > found["hosts"]
    table = pd.read_csv(tmp_path / "d-evaluation" / "synthetic.csv")
    assert len(table) == 30 and (table["target"] == 1).all()
    page = (tmp_path / "d-evaluation" / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "Real or synthetic?" in page and "<details><summary>Answer key" in page and "Are they copies?" not in page
    assert "Unchanged hosts" in page and "dreamt" not in page.lower() and "critic" not in page.lower()
