from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import galscan
from galscan import home
from galscan.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.store.ingest import ingest_survey
from galscan.surveys.simulated import SimulatedSurvey
from galscan.verbs import train_rare as verb
from tests.helpers import tiny_recipe, tiny_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    """Galaxies of which some are dusty early types, rings and mergers; half of them labelled."""
    sky = SimulatedSurvey(count=800, size=32, seed=1, rare_fraction=0.1, labelled=0.8)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def model(folder, store) -> galscan.Bundle:
    recipe = tiny_recipe(folder / "dustlane.toml")
    return galscan.train_rare(str(recipe), store=store, out=folder / "model", device="cpu", seed=3)


def test_the_bundle_is_whole(model):
    assert (model.target, model.schema, model.size, model.seed, model.members) == ("dustlane", "simulated", 32, 3, 2)
    names = {p.name for p in model.path.iterdir()}
    assert {
        "model.json",
        "recipe.toml",
        "splits.parquet",
        "dreams.png",
        "report.html",
        "generator.safetensors",
    } <= names
    assert not [n for n in names if n.startswith(("real_", "steps", "request"))]
    assert not model.path.with_name("model.partial").exists()


def test_real_only_and_dreamt_stand_side_by_side(model):
    metrics = model.metrics
    assert len(metrics["real_only"]["ap"]) == len(metrics["real_plus_dreamt"]["ap"]) == 2
    assert metrics["gain"]["lo"] <= metrics["gain"]["mean"] <= metrics["gain"]["hi"]
    assert metrics["chosen"] == max(metrics["calibration_ap"], key=metrics["calibration_ap"].get)
    text = model.summary()["text"]
    assert "real only" in text and "real + dreamt" in text and "gain" in text and "<- delivered" in text


def test_splits_hold_each_object_once_and_dreams_in_none(model, store):
    splits = model.splits()
    assert splits["id"].is_unique
    assert set(splits["split"]) == {"train", "calibration", "test"}
    real = set(galscan.open_store(store).column("id").astype(str))
    assert set(splits["id"]) <= real
    assert len(model.calibration.scores) == (splits["split"] == "calibration").sum()


def test_dreams_are_kept_with_their_conditions(model):
    dreams = galscan.open_store(model.path / "dreams.zarr")
    labels, target = dreams.labels("simulated"), dreams.column("truth/target")
    assert dreams.count == 14 and target.sum() == 6
    assert (labels["dust_lane"][:6] >= 0.6).all() and (labels["early_type"][:6] >= 0.5).all()
    assert np.isfinite(labels.to_numpy()).all()


def test_the_same_again_is_returned_another_is_refused(model, store, folder, capsys):
    recipe = str(folder / "dustlane.toml")
    again = galscan.train_rare(recipe, store=store, out=model.path, device="cpu", seed=3)
    assert again.model_hash == model.model_hash
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another model"):
        galscan.train_rare(recipe, store=store, out=model.path, device="cpu", seed=4)


def test_no_synthetic_trains_no_generator(folder, store):
    out = folder / "plain"
    model = galscan.train_rare(str(tiny_recipe(folder / "r.toml")), store=store, out=out, synthetic=False, device="cpu")
    assert model.metrics["real_plus_dreamt"] is None and model.metrics["chosen"] == "real_only"
    assert not (out / "generator.safetensors").exists()


def test_interrupted_goes_on_to_the_same_model(folder, store, model, monkeypatch):
    out, recipe = folder / "again", str(folder / "dustlane.toml")
    stage = verb._classifiers

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "_classifiers", stop)
    with pytest.raises(Interrupted, match="same command"):
        galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=3)
    assert not out.exists()
    with pytest.raises(ConflictError, match="unfinished training with other seed"):
        galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=4)
    monkeypatch.setattr(verb, "_classifiers", stage)
    monkeypatch.setattr(
        verb, "_generator", lambda *a: json.loads((folder / "again.partial/generator.json").read_text())
    )
    assert galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=3).model_hash == model.model_hash


@pytest.mark.parametrize("target", ["ring", "merger"])
def test_other_targets_run_by_recipe_alone(folder, store, target):
    recipe = tiny_recipe(folder / f"{target}.toml", target)
    model = galscan.train_rare(str(recipe), store=store, out=folder / target, device="cpu")
    assert model.target == target and model.metrics["real_plus_dreamt"] is not None


def test_a_plan_is_printed_and_nothing_written(folder, store, capsys):
    assert galscan.train_rare(str(folder / "dustlane.toml"), store=store, out=folder / "no", dry_run=True) is None
    text = capsys.readouterr().err
    assert "calibration" in text and "positive" in text and "3 steps" in text
    assert not (folder / "no").exists() and not (folder / "no.partial").exists()


def test_all_surveys_of_the_home_are_the_default(store, capsys):
    home.survey_path("sky").parent.mkdir(parents=True)
    home.survey_path("sky").symlink_to(store)
    tiny = tiny_recipe(store.parent / "default.toml")
    assert galscan.train_rare(str(tiny), dry_run=True) is None
    assert "models/dustlane" in capsys.readouterr().err


def test_mistakes_are_one_line_with_a_remedy(folder, store, tmp_path):
    recipe = str(folder / "dustlane.toml")
    with pytest.raises(NotFoundError, match="did you mean 'dustlane'"):
        galscan.train_rare("dustlan", store=store)
    with pytest.raises(InputError, match=r"no labelled survey.*galscan ingest"):
        galscan.train_rare(recipe)
    with pytest.raises(NotFoundError, match="galscan ingest"):
        galscan.train_rare(recipe, survey="nowhere")
    with pytest.raises(InputError, match="named twice"):
        galscan.train_rare(recipe, store=[store, store])
    with pytest.raises(InputError, match="minutes above 0"):
        galscan.train_rare(recipe, store=store, budget=0)
    unlabelled = tiny_store(tmp_path / "u.zarr")
    with pytest.raises(InputError, match="the stores hold none"):
        galscan.train_rare(recipe, store=unlabelled.path)
    with pytest.raises(InputError, match="--size 64"):
        galscan.train_rare("dustlane", store=store, out=tmp_path / "m", device="cpu")
    assert not (tmp_path / "m").exists()


def test_no_positives_says_how_many_and_what_helps(tmp_path):
    sky = SimulatedSurvey(count=300, size=32, seed=5, rare_fraction=0.0)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    with pytest.raises(InputError, match="0 positive examples of 'dustlane' among 300 labelled"):
        galscan.train_rare(str(tiny_recipe(tmp_path / "r.toml")), store=store, out=tmp_path / "m")
