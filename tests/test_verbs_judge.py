from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.classify import bundle, calibrate
from galscan.classify.model import GalaxyNet
from galscan.classify.plan import make_plan
from galscan.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.files import read_json
from galscan.generate.dreams import Dreams, write_dreams
from galscan.labels import load_schema
from galscan.recipe import load_recipe
from galscan.store.ingest import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.simulated import SimulatedSurvey
from galscan.verbs import judge as verb
from tests.helpers import tiny_recipe
from tests.pages import check_page

SCHEMA = load_schema("simulated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=300, size=32, seed=1, rare_fraction=0.15, labelled=0.9)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def recipe(folder) -> str:
    return str(tiny_recipe(folder / "dustlane.toml"))


@pytest.fixture(scope="module")
def model(folder, store, recipe) -> Path:
    """Make a model's folder that holds dreams: real galaxies of another sky, and the copy of a training picture."""
    plan = make_plan(recipe, (), store, folder / "none", None, True, 5)
    splits = plan.table.loc[plan.table["target"].notna(), ["store", "id", "split", "target"]]
    targets = np.repeat([1, 0], 10)
    path = folder / "model"
    bundle.write_bundle(
        path, recipe=load_recipe(recipe), target="dustlane", schema="simulated", size=32, seed=5,
        answers=list(plan.answers), networks=[GalaxyNet(8, len(plan.answers)).eval()],
        calibration=calibrate.fit(targets.astype(float), targets), splits=splits,
        metrics={"real_only": None, "real_plus_dreamt": None, "chosen": "real_only"},
    )  # fmt: skip
    other = open_store(
        ingest_survey(
            SimulatedSurvey(count=120, size=32, seed=2, rare_fraction=0.2), folder / "other.zarr", workers=1
        ).path
    )
    labels, images = other.labels("simulated"), other.images()
    target = ((labels["early_type"] >= 0.5) & (labels["dust_lane"] >= 0.5)).to_numpy(np.float32)
    copied = plan.table.loc[plan.table["split"] == "train", "row"].iloc[3]
    images[7] = open_store(store).images()[copied][::-1]
    write_dreams(Dreams.drawn(images, labels, target), path / "dreams.zarr", "dreams", SCHEMA, {"seed": 5})
    return path


@pytest.fixture(scope="module")
def judged(folder, store, recipe, model) -> dict:
    return verb.judge(model, target=recipe, store=store, out=folder / "judged", steps=4, device="cpu")


def test_the_folder_is_whole(judged, model):
    out = Path(judged["out"])
    assert {p.name for p in out.iterdir()} == {"judge.json", "report.html", "dreams.csv"}
    assert not out.with_name("judged.partial").exists()
    verdict = read_json(out / "judge.json")
    assert verdict == {k: v for k, v in judged.items() if k not in ("out", "text")}
    assert verdict["counts"]["dreamt"]["positive"] + verdict["counts"]["dreamt"]["negative"] == 120
    assert "each" not in verdict and verdict["request"]["steps"] == 4 and verdict["request"]["split_seed"] == 5
    assert "real, held out" in judged["text"] and "report.html" in judged["text"]


def test_the_planted_copy_is_named(judged, store, model):
    table = pd.read_csv(Path(judged["out"]) / "dreams.csv", keep_default_na=False, dtype={"id": str})
    splits = bundle.open_bundle(model).splits()
    assert list(table) == ["dream", "target", "reason", "store", "id", "distance"] and len(table) == 120
    assert table["reason"][7] == "copy" and table["distance"][7] < 0.2
    assert table["id"][7] == splits.loc[splits["split"] == "train", "id"].iloc[3]


def test_what_the_model_held_out_is_held_out(judged, model):
    splits = bundle.open_bundle(model).splits()
    test = splits[splits["split"] == "test"]
    assert judged["counts"]["real"] == {
        "positive": int((test["target"] == 1).sum()),
        "negative": int((test["target"] == 0).sum()),
    }
    table = pd.read_csv(Path(judged["out"]) / "dreams.csv", dtype={"id": str})
    assert not set(table["id"]) & set(test["id"])


def test_the_page_stands_alone(judged):
    text = (Path(judged["out"]) / "report.html").read_text(encoding="utf-8")
    check_page(text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 8 and all(s.startswith("data:image/") for s in sources)
    assert "Real, held out" in text and "copies, by pixels" in text and "&lt;" not in text


def test_the_same_again_is_returned_another_is_refused(judged, model, store, recipe, capsys):
    options = {"target": recipe, "store": store, "out": judged["out"], "device": "cpu"}
    assert verb.judge(model, steps=4, **options) == judged
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another judgement"):
        verb.judge(model, steps=5, **options)


def test_interrupted_goes_on_with_its_critic(judged, model, store, recipe, folder, monkeypatch):
    from galscan.generate import judge as judges

    options = {"target": recipe, "store": store, "out": folder / "again", "device": "cpu"}
    work = folder / "again.partial"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judges, "judge", stop)
        with pytest.raises(Interrupted, match="same command"):
            verb.judge(model, steps=4, **options)
    assert (work / "critic.safetensors").is_file() and not (folder / "again").exists()
    with pytest.raises(ConflictError, match="unfinished judgement"):
        verb.judge(model, steps=5, **options)
    monkeypatch.setattr("galscan.classify.train.train_classifier", stop)
    again = verb.judge(model, steps=4, **options)
    assert {k: again[k] for k in ("adherence", "copies", "screen")} == {
        k: judged[k] for k in ("adherence", "copies", "screen")
    }


def test_a_plan_is_printed_and_nothing_written(model, store, recipe, capsys):
    request = verb.judge(model / "dreams.zarr", target=recipe, store=store, dry_run=True)
    told = capsys.readouterr().err
    assert "dreams-judge" in told and "as by the model" in told and request["steps"] == 8
    assert not list(model.glob("*judge*"))


def test_dreams_by_themselves_are_split_by_seed(model, store, recipe, tmp_path, capsys):
    shutil.copytree(model / "dreams.zarr", tmp_path / "d.zarr")
    verb.judge(tmp_path / "d.zarr", target=recipe, store=store, seed=9, dry_run=True)
    assert "by seed 9" in capsys.readouterr().err
    verb.judge(tmp_path / "d.zarr", target=recipe, store=store, seed=9, model=model, dry_run=True)
    assert "as by the model" in capsys.readouterr().err


def test_mistakes_are_one_line_with_a_remedy(model, store, recipe, folder, tmp_path):
    options = {"target": recipe, "store": store, "device": "cpu"}
    with pytest.raises(NotFoundError, match="no store"):
        verb.judge(tmp_path / "nothing.zarr", **options)
    with pytest.raises(InputError, match="does not hold dreams"):
        verb.judge(store, **options)
    with pytest.raises(InputError, match="--steps 0"):
        verb.judge(model, steps=0, **options)
    with pytest.raises(InputError, match="held out for its test"):
        verb.judge(model, **options | {"store": folder / "other.zarr"})
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConflictError, match="not a finished judgement"):
        verb.judge(model, out=tmp_path / "taken", overwrite=True, **options)
    dreams = Dreams.drawn(np.zeros((3, 32, 32, 3), np.uint8), open_store(store).labels("simulated")[:3], np.zeros(3))
    write_dreams(dreams, tmp_path / "none.zarr", "none", SCHEMA, {})
    with pytest.raises(InputError, match="no dreamt positive"):
        verb.judge(tmp_path / "none.zarr", **options)


def test_larger_real_images_are_resampled(folder, recipe, model, capfd):
    sky = SimulatedSurvey(count=300, size=48, seed=1, rare_fraction=0.15, labelled=0.9)
    large = ingest_survey(sky, folder / "large.zarr", workers=1).path
    told = verb.judge(model, target=recipe, store=large, out=folder / "large", steps=2, device="cpu")
    assert told["counts"]["real"]["positive"] > 0
    assert "300 objects, 32 px, resampled from 48 px" in capfd.readouterr().err
