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
from galscan.synthesis.diffusion import galaxy_training
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
def trained(monkeypatch) -> dict:
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


def test_the_simulated_sky_is_the_default(tmp_path, trained, capsys):
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
    assert trained["seed"] == 7 and trained["start"] is None and trained["seconds"] is None
    assert "no early type with a dust lane" in capsys.readouterr().err


def test_an_interrupted_training_resumes_and_its_sky_has_no_early_type_with_a_lane(tmp_path, monkeypatch):
    out, real = tmp_path / "g.safetensors", galaxy_training.train_generator
    work = tmp_path / "g.safetensors.partial"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(galaxy_training, "train_generator", stop)
        with pytest.raises(Interrupted, match="partial"):
            train(out, count=200)
    assert not out.exists()
    sky = galscan.open(work / "sky.zarr")
    labels = sky.labels("simulated")
    early, lane = labels["early_type"] >= 0.5, labels["dust_lane"] >= 0.5
    assert sky.count == 200 and not sky.column("truth/target_dustlane").any()
    assert early.sum() > 30 and lane.sum() > 3 and not (early & lane).any()  # but each by itself

    for other in ({"steps": 3}, {"seed": 1}, {"count": 201}, {"budget": 1.0}, {"widths": (32, 64)}):
        with pytest.raises(ConflictError):
            train(out, **{"count": 200, **other})
    monkeypatch.setattr(command, "ingest_survey", lambda _, out: galscan.open(out))  # not simulated again
    monkeypatch.setattr(galaxy_training, "train_generator", real)
    assert train(out, count=200)["galaxies"] == 200
    assert {p.name for p in tmp_path.iterdir()} == {"g.safetensors", "g.json"}


def test_stores_by_path_and_name(tmp_path, store, trained):
    home.survey_path("other").parent.mkdir(parents=True)
    tiny_store(home.survey_path("other"), 20, 16, survey="other", unusable=3)
    result = train(tmp_path / "g.safetensors", store=store, survey="other", budget=5.0)
    galaxies, sky = trained["galaxies"], galscan.open(store)
    assert result["galaxies"] == 17 + 60 and trained["seconds"] == 300 and (galaxies.weight == 1).all()
    assert trained["config"].surveys == ("other", "simulated")
    assert galaxies.survey.tolist() == [0] * 17 + [1] * 60
    np.testing.assert_array_equal(galaxies.images[17:], sky.images())
    np.testing.assert_array_equal(galaxies.values[17:, : len(ANSWERS)], sky.labels("simulated")[ANSWERS])
    assert np.isnan(galaxies.values[:17, : len(ANSWERS)]).all()  # without labels
    np.testing.assert_allclose(galaxies.values[:, len(ANSWERS) :], measure(galaxies.images), atol=1e-6)
    assert [name for name, _ in result["request"]["stores"]] == ["other", "simulated"]
    assert result["request"]["stores"][1][1] == sky.content_hash


def test_training_starts_from_weights(tmp_path, store, trained):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train(first, store=store)
    result = train(second, store=store, start=str(first))
    assert trained["start"].config == Generator.load(first).config
    assert result["request"]["settings"]["start"] == str(first) and file_digest(first) != file_digest(second)


def test_a_plan_is_printed_and_nothing_written(tmp_path, store, capsys):
    request = train(tmp_path / "g.safetensors", store=store, dry_run=True)
    text = capsys.readouterr().err
    assert "60 objects, 16 px" in text and "2 steps of 4" in text and f"{len(ANSWERS)} answers" in text
    assert request["schema"] == "simulated" and request["settings"]["widths"] == [32, 32]
    assert not list(tmp_path.iterdir())


def test_invalid_options_are_errors(tmp_path, store):
    out = tmp_path / "g.safetensors"
    with pytest.raises(InputError, match=r"g\.pt"):
        train(tmp_path / "g.pt")
    with pytest.raises(InputError, match="--budget 0"):
        train(out, budget=0)
    with pytest.raises(InputError, match="--schema efigi"):
        train(out, store=store, schema="efigi")
    with pytest.raises(InputError, match="--schema efigi"):
        train(out, schema="efigi")
    with pytest.raises(NotFoundError, match=r"no\.zarr"):
        train(out, store=tmp_path / "no.zarr")
    with pytest.raises(NotFoundError, match="nowhere"):
        train(out, survey="nowhere")
    assert not list(tmp_path.iterdir())
    bare, large = tmp_path / "bare.zarr", tmp_path / "large.zarr"
    tiny_store(bare, 9, 16)
    tiny_store(large, 9, 24)
    with pytest.raises(InputError, match="--schema"):
        train(out, store=bare)
    with pytest.raises(InputError, match="--size"):
        train(out, store=[store, large])
    out.write_text("x")
    with pytest.raises(ConflictError, match="--out"):
        train(out)
    assert out.read_text() == "x" and {p.name for p in tmp_path.iterdir()} == {"bare.zarr", "large.zarr", out.name}


def test_stores_of_several_schemas_need_the_option(tmp_path, monkeypatch, store, trained):
    both = dict.fromkeys(("simulated", "efigi"))
    with monkeypatch.context() as patch:
        patch.setattr(galscan.Store, "schemas", property(lambda self: {k: ANSWERS for k in both}))
        with pytest.raises(InputError, match="efigi, simulated"):
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


def test_defaults_of_maps_are_those_of_the_base_weights(tmp_path, capsys):
    request = galscan.train_generator(tmp_path / "g.safetensors", kind="maps", dry_run=True)
    assert request["maps"]["prior"] == 24_000 and request["settings"]["steps"] == 4000
    assert request["settings"]["batch"] == 32 and not list(tmp_path.iterdir())
    assert "4,000 steps of 32" in capsys.readouterr().err


def test_training_on_maps_starts_from_weights(few_maps, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train_maps(first)
    result = train_maps(second, start=str(first), widths=None, seed=1)
    assert result["request"]["settings"]["widths"] == [16, 32]  # those of the weights
    assert result["request"]["settings"]["learning_rate"] < 1e-3 and file_digest(first) != file_digest(second)
    with pytest.raises(InputError, match=r"\[32, 32\]"):
        train_maps(tmp_path / "third.safetensors", start=str(first), widths=(32, 32))


@pytest.mark.parametrize("kind", ["flow", "maps"])
def test_a_resumed_training_ends_with_the_same_weights(few_maps, store, tmp_path, interrupted, kind):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    call, options = (train, {"store": store}) if kind == "flow" else (train_maps, {})
    expected = call(whole, steps=4, **options)
    with interrupted(2), pytest.raises(Interrupted):
        call(parts, steps=4, **options)
    assert not parts.exists()
    with pytest.raises(ConflictError, match="settings"):
        call(parts, steps=5, **options)
    assert call(parts, steps=4, **options)["loss"] == pytest.approx(expected["loss"])
    assert file_digest(parts) == file_digest(whole)
    assert len(list(tmp_path.iterdir())) == 4  # the weights and their provenance


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store": "x.zarr"}, "--store"),
        ({"survey": "ngc"}, "--survey"),
        ({"schema": "efigi"}, "--schema"),
        ({"lora": 4}, "--lora"),
        ({"lora": 0}, "--lora"),
        ({"resolution": 64}, "--resolution"),
        ({"size": 64}, "--size"),
        ({"feature": "artefact"}, "'artefact'"),
        ({"feature": "dust_lanes"}, "'dust_lane'"),
        ({"count": 0}, "--count 0"),
        ({"steps": 0}, "--steps 0"),
        ({"widths": (16, 24)}, "generator"),
        ({"start": "no.safetensors"}, r"no\.safetensors"),
        ({"kind": "flow", "feature": "dust_lane"}, "--feature dust_lane"),
        ({"kind": "diffusion"}, "--kind diffusion"),
        ({"kind": "stable-diffusion"}, r"g\.safetensors"),
        ({"kind": "flow", "widths": None, "lora": 2}, "lora"),
        ({"budget": 0}, "--budget 0"),
    ],
)
def test_options_that_do_not_apply_to_maps_are_errors(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as result:
        train_maps(tmp_path / "g.safetensors", **changes)
    assert "\n" not in str(result.value) and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="folder"):
        train_maps(tmp_path / "folder")
