from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import galscan
from galscan.cli import main
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.core.files import file_digest, read_json
from galscan.labels.schema import load_schema
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import train_generator as command
from galscan.synthesis.diffusion import checkpoint, galaxy_training
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.diffusion.galaxy_model import Generator
from galscan.synthesis.diffusion.map_model import MapFlow
from galscan.synthesis.diffusion.maps import SEED
from galscan.synthesis.features import base
from galscan.synthesis.galaxies import MEASURED, measure
from tests.helpers import tiny_store

ANSWERS = load_schema("simulated").names


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("generator")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=60, size=16, seed=1, labelled=0.5)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture
def learnt(monkeypatch) -> dict:
    """Record the arguments of the training."""
    arguments, real = {}, galaxy_training.train_generator

    def spy(galaxies, config, settings, out, **options):
        arguments.update(options, galaxies=galaxies, config=config, settings=settings)
        return real(galaxies, config, settings, out, **options)

    monkeypatch.setattr(galaxy_training, "train_generator", spy)
    return arguments


def train(out: Path, **changes) -> dict:
    options = {"count": 32, "size": 16, "steps": 2, "batch": 4, "widths": (32, 32), "device": "cpu"}
    return galscan.train_generator(out, **(options | changes))


def test_the_simulated_sky_by_default(tmp_path, learnt, capsys):
    out = tmp_path / "g.safetensors"
    result = train(out, seed=7)
    assert {p.name for p in tmp_path.iterdir()} == {"g.safetensors", "g.json"}
    assert (result["steps"], result["galaxies"], result["bytes"]) == (2, 32, out.stat().st_size)
    assert result["sha256"] == file_digest(out) and np.isfinite(result["loss"])
    assert read_json(tmp_path / "g.json") == result | {"weights": "g.safetensors"}  # wherever the folder is moved
    assert result["request"]["stores"] == {
        "simulated": 32,
        "size": 16,
        "seed": command.SEED,
        "lane_fraction": command.LANE_FRACTION,
    }
    config = Generator.load(out).config
    assert config.answers == (*ANSWERS, *MEASURED) and (config.schema, config.size) == ("simulated", 16)
    assert config.surveys == ("simulated",) and config.widths == (32, 32)
    assert learnt["seed"] == 7 and learnt["start"] is None and learnt["seconds"] is None
    assert "no early type with a dust lane" in capsys.readouterr().err


def test_interrupted_it_goes_on_and_its_sky_holds_no_early_type_with_a_lane(tmp_path, monkeypatch):
    out, real = tmp_path / "g.safetensors", galaxy_training.train_generator
    work = tmp_path / "g.safetensors.partial"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(galaxy_training, "train_generator", stop)
        with pytest.raises(Interrupted, match="same command"):
            train(out, count=700)
    assert not out.exists()
    sky = galscan.open_store(work / "sky.zarr")
    labels = sky.labels("simulated")
    early, lane = labels["early_type"] >= 0.5, labels["dust_lane"] >= 0.5
    assert sky.count == 700 and not sky.column("truth/target_dustlane").any()
    assert early.sum() > 100 and lane.sum() > 10 and not (early & lane).any()  # but each by itself

    for other in ({"steps": 3}, {"seed": 1}, {"count": 701}, {"budget": 1.0}, {"widths": (32, 64)}):
        with pytest.raises(ConflictError, match=r"unfinished training with other .*; .*another --out"):
            train(out, **{"count": 700, **other})
    monkeypatch.setattr(command, "ingest_survey", lambda _, out: galscan.open_store(out))  # the sky is not drawn again
    monkeypatch.setattr(galaxy_training, "train_generator", real)
    assert train(out, count=700)["galaxies"] == 700
    assert {p.name for p in tmp_path.iterdir()} == {"g.safetensors", "g.json"}


def test_interrupted_it_ends_with_the_same_weights(tmp_path, monkeypatch, store):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    options = {"store": store, "steps": 4}
    expected = train(whole, **options)
    real, saved = Checkpoint.save, []

    def save_and_stop(self):
        real(self)
        saved.append(self.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(Interrupted):
            train(parts, **options)
    assert len(saved) == 1 and not parts.exists()
    assert train(parts, **options)["loss"] == pytest.approx(expected["loss"])
    assert file_digest(parts) == file_digest(whole)


def test_stores_by_path_and_name(tmp_path, store, learnt):
    home.survey_path("other").parent.mkdir(parents=True)
    tiny_store(home.survey_path("other"), 20, 16, survey="other", unusable=3)
    result = train(tmp_path / "g.safetensors", store=store, survey="other", budget=5.0)
    galaxies, sky = learnt["galaxies"], galscan.open_store(store)
    assert result["galaxies"] == 17 + 60 and learnt["seconds"] == 300 and (galaxies.weight == 1).all()
    assert learnt["config"].surveys == ("other", "simulated")
    assert galaxies.survey.tolist() == [0] * 17 + [1] * 60
    np.testing.assert_array_equal(galaxies.images[17:], sky.images())
    np.testing.assert_array_equal(galaxies.values[17:, : len(ANSWERS)], sky.labels("simulated")[ANSWERS])
    assert np.isnan(galaxies.values[:17, : len(ANSWERS)]).all()  # it has no labels: it teaches all the same
    np.testing.assert_allclose(galaxies.values[:, len(ANSWERS) :], measure(galaxies.images), atol=1e-6)
    assert [name for name, _ in result["request"]["stores"]] == ["other", "simulated"]
    assert result["request"]["stores"][1][1] == sky.content_hash


def test_it_goes_on_from_weights(tmp_path, store, learnt):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train(first, store=store)
    result = train(second, store=store, start=str(first))
    assert learnt["start"].config == Generator.load(first).config
    assert result["request"]["settings"]["start"] == str(first) and file_digest(first) != file_digest(second)


def test_a_plan_is_printed_and_nothing_written(tmp_path, store, capsys):
    request = train(tmp_path / "g.safetensors", store=store, dry_run=True)
    text = capsys.readouterr().err
    assert "60 objects, 16 px" in text and "2 steps of 4" in text and f"{len(ANSWERS)} answers" in text
    assert request["schema"] == "simulated" and request["settings"]["widths"] == [32, 32]
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line_with_a_remedy(tmp_path, store):
    out = tmp_path / "g.safetensors"
    with pytest.raises(InputError, match=r"--out .*g\.pt: weights are written as \.safetensors"):
        train(tmp_path / "g.pt")
    with pytest.raises(InputError, match="--budget 0: give minutes above 0"):
        train(out, budget=0)
    with pytest.raises(InputError, match=r"--schema efigi: the stores hold simulated labels .*known: .*gz2"):
        train(out, store=store, schema="efigi")
    with pytest.raises(InputError, match="--schema efigi: the stores hold simulated"):
        train(out, schema="efigi")
    with pytest.raises(NotFoundError, match="no store at"):
        train(out, store=tmp_path / "no.zarr")
    with pytest.raises(NotFoundError, match="'nowhere' has no store"):
        train(out, survey="nowhere")
    assert not list(tmp_path.iterdir())
    bare, large = tmp_path / "bare.zarr", tmp_path / "large.zarr"
    tiny_store(bare, 9, 16)
    tiny_store(large, 9, 24)
    with pytest.raises(InputError, match="the stores hold no labels; name the schema with --schema"):
        train(out, store=bare)
    with pytest.raises(InputError, match="cutouts of several sizes"):
        train(out, store=[store, large])
    out.write_text("x")
    with pytest.raises(ConflictError, match="another --out"):
        train(out)
    assert out.read_text() == "x" and {p.name for p in tmp_path.iterdir()} == {"bare.zarr", "large.zarr", out.name}


def test_stores_of_several_schemas_want_a_choice(tmp_path, monkeypatch, store, learnt):
    both = dict.fromkeys(("simulated", "efigi"))
    with monkeypatch.context() as patch:
        patch.setattr(galscan.Store, "schemas", property(lambda self: {k: ANSWERS for k in both}))
        with pytest.raises(InputError, match="hold efigi, simulated labels; name the schema with --schema"):
            train(tmp_path / "g.safetensors", store=store)
        assert train(tmp_path / "g.safetensors", store=store, schema="simulated", dry_run=True)["schema"] == "simulated"


# --- maps of a feature ------------------------------------------------------------------------------------


@pytest.fixture
def few_maps(monkeypatch):
    monkeypatch.setattr(base, "PRIOR_BLOCK", 24)


def train_maps(out: Path, **changes) -> dict:
    options = {"kind": "maps", "count": 24, "steps": 2, "batch": 4, "widths": (16, 32), "device": "cpu"}
    return galscan.train_generator(out, **(options | changes))


def test_maps_are_trained_on_the_prior_by_the_command_line(few_maps, tmp_path, capsys):
    out = tmp_path / "lanes.safetensors"
    line = f"train-generator --kind maps --feature dust_lane --count 24 --steps 1 --batch 2 --seed 4 --out {out} --json"
    assert main.run([*line.split(), "--device", "cpu"]) == 0
    shown, err = capsys.readouterr()
    result = json.loads(shown.splitlines()[-1])
    assert {p.name for p in tmp_path.iterdir()} == {"lanes.safetensors", "lanes.json"}
    assert (result["steps"], result["maps"], result["bytes"]) == (1, 24, out.stat().st_size)
    assert result["sha256"] == file_digest(out) and np.isfinite(result["loss"]) and result["seconds"] >= 0
    assert read_json(tmp_path / "lanes.json") == result | {"weights": "lanes.safetensors"}
    request = result["request"]
    assert request["feature"] == "dust_lane" and request["maps"] == {"prior": 24, "seed": SEED}
    settings = {key: request["settings"][key] for key in ("widths", "learning_rate", "ema", "start")}
    assert settings == {"widths": [32, 64, 96], "learning_rate": 1e-3, "ema": 0.998, "start": "none"}
    assert MapFlow.load(out).config.widths == (32, 64, 96) and "24 of the prior of 'dust_lane'" in err


def test_maps_are_by_default_as_many_as_the_base_weights_want(tmp_path, capsys):
    request = galscan.train_generator(tmp_path / "g.safetensors", kind="maps", dry_run=True)
    assert request["maps"]["prior"] == 24_000 and request["settings"]["steps"] == 4000
    assert request["settings"]["batch"] == 32 and not list(tmp_path.iterdir())
    assert "4,000 steps of 32" in capsys.readouterr().err


def test_interrupted_training_on_maps_resumes_with_the_same_weights(few_maps, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    expected = train_maps(whole, steps=4)
    real, saved = Checkpoint.save, []

    def save_and_stop(self):
        real(self)
        saved.append(self.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(Interrupted, match="same command"):
            train_maps(parts, steps=4)
    assert len(saved) == 1 and not parts.exists()
    with pytest.raises(ConflictError, match="unfinished training with other settings"):
        train_maps(parts, steps=5)
    assert train_maps(parts, steps=4)["loss"] == pytest.approx(expected["loss"])
    assert file_digest(parts) == file_digest(whole)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}.{s}" for n in ("whole", "parts") for s in ("safetensors", "json")
    }


def test_training_on_maps_starts_from_weights(few_maps, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train_maps(first)
    result = train_maps(second, start=str(first), widths=None, seed=1)
    assert result["request"]["settings"]["widths"] == [16, 32]  # those of the weights
    assert result["request"]["settings"]["learning_rate"] < 1e-3 and file_digest(first) != file_digest(second)
    with pytest.raises(InputError, match=r"widths \[32, 32\] differ from those of"):
        train_maps(tmp_path / "third.safetensors", start=str(first), widths=(32, 32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store": "x.zarr"}, "--store does not apply to --kind maps"),
        ({"survey": "ngc"}, "--survey does not apply"),
        ({"schema": "efigi"}, "--schema does not apply"),
        ({"lora": 4}, "--lora does not apply"),
        ({"lora": 0}, "--lora does not apply"),
        ({"resolution": 64}, "--resolution does not apply"),
        ({"size": 64}, "--size does not apply"),
        ({"feature": "artefact"}, "'artefact' has no diffusion model of maps"),
        ({"feature": "dust_lanes"}, "did you mean 'dust_lane'"),
        ({"count": 0}, "--count 0: give 1 or more"),
        ({"steps": 0}, "--steps 0: give 1 or more"),
        ({"widths": (16, 24)}, "generator: .*"),
        ({"start": "no.safetensors"}, r"no\.safetensors is not a readable diffusion model of maps"),
        ({"kind": "flow", "feature": "dust_lane"}, "--feature dust_lane applies to --kind maps only"),
        ({"budget": 0}, "--budget 0: give minutes above 0"),
    ],
)
def test_what_does_not_apply_to_maps_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as result:
        train_maps(tmp_path / "g.safetensors", **changes)
    assert "\n" not in str(result.value) and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"weights are written as \.safetensors"):
        train_maps(tmp_path / "folder")
