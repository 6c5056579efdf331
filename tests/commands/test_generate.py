from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image

import galscan
from galscan.cli import main
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.core.files import read_json
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.store.build import ingest_survey
from galscan.surveys.base import Flag
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import sampling, synthetic_set
from galscan.synthesis.diffusion.galaxy_model import Generator, make_config
from galscan.synthesis.galaxies import MEASURED, SHAPE, measure
from tests.helpers import tiny_bundle, tiny_recipe, tiny_store

SCHEMA = load_schema("simulated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("generated")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=120, size=32, seed=1, rare_fraction=0.1, labelled=0.9)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def conditions(store) -> pd.DataFrame:
    sky = galscan.open(store)
    labels = sky.labels("simulated")[SCHEMA.names]
    return pd.concat([labels, pd.DataFrame(measure(sky.images()), columns=list(MEASURED))], axis=1)


@pytest.fixture(scope="module")
def weights(folder, store) -> Path:
    torch.manual_seed(0)
    network = Generator(make_config(galscan.open(store).images()[:, ::2, ::2], SCHEMA, ["sky", "b"], (32, 32)))
    network.save(folder / "g.safetensors")
    return folder / "g.safetensors"


@pytest.fixture(scope="module")
def model(folder, weights, conditions) -> Path:
    """Make a model's folder with a generator of 16 px that knows the survey ``sky``."""
    path = tiny_bundle(folder / "model").path
    shutil.copy(weights, path / "generator.safetensors")
    surveys = np.resize(["sky", "elsewhere"], len(conditions))
    synthetic_set.write_conditions(conditions, np.zeros(len(conditions)), surveys, path / "conditions.parquet")
    return path


@pytest.fixture
def requested(monkeypatch) -> dict:
    """Record the arguments of the sampler."""
    arguments, real = {}, sampling.sample_images

    def spy(generator, values, survey, **options):
        arguments.update(options, values=values, survey=survey)
        return real(generator, values, survey, **options)

    monkeypatch.setattr(sampling, "sample_images", spy)
    return arguments


def generate(with_model: Path | None, out: Path, **changes) -> dict:
    options = {"count": 6, "model": with_model, "steps": 2, "device": "cpu", "out": out}
    return galscan.generate("dustlane", **(options | changes))


def test_a_folder_of_images_with_their_conditions(model, conditions, tmp_path):
    result = generate(model, tmp_path / "d")
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"images", "conditions.csv", "synthetic.json", "sheet.png"}
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert list(table) == [*SCHEMA.names, "file"] and len(table) == 6
    opened = [Image.open(tmp_path / "d" / name) for name in table["file"]]
    assert {p.size for p in opened} == {(16, 16)} and {p.mode for p in opened} == {"RGB"}
    assert table["dust_lane"].between(0.6, 1).all() and (table["early_type"] >= 0.5).all()
    assert result["out"] == str(tmp_path / "d") and result["sheet"] == str(tmp_path / "d" / "sheet.png")
    assert result["answers"]["dust_lane"] == pytest.approx(table["dust_lane"].mean(), abs=1e-6)
    assert (result["count"], result["guidance"], result["steps"]) == (6, Generator.guidance, 2)
    kept = {k: v for k, v in result.items() if k not in ("answers", "sheet")}
    assert read_json(tmp_path / "d" / "synthetic.json") == json.loads(json.dumps(kept))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_store_with_its_sheet_beside_it(model, tmp_path):
    result = generate(model, tmp_path / "d.zarr", seed=4)
    store = galscan.open(tmp_path / "d.zarr")
    assert (store.count, store.size, store.name) == (6, 16, "d") and (store.column("truth/target") == 1).all()
    assert store.labels("simulated")["dust_lane"].between(0.6, 1).all()
    assert store.attrs["provenance"]["synthetic"] is True and store.attrs["provenance"]["seed"] == 4
    assert store.attrs["provenance"]["from"] == load_recipe("dustlane").schemas["simulated"].synthetic.base
    assert result["sheet"] == str(tmp_path / "d.png")
    assert {p.name for p in tmp_path.iterdir()} == {"d.zarr", "d.png"}


def test_conditions_are_those_of_real_galaxies_but_for_what_is_set(model, conditions, tmp_path, requested):
    rule = load_recipe("dustlane").schemas["simulated"].synthetic
    generate(model, tmp_path / "d", count=30)
    free = [k for k, name in enumerate(conditions) if name not in (*rule.set, *SHAPE[1:])]  # shapes are turned
    known = {tuple(row[free]): k for k, row in enumerate(conditions.to_numpy(np.float32))}
    rows = np.array([known[tuple(row[free])] for row in requested["values"]])
    assert (conditions["early_type"].to_numpy()[rows] >= 0.5).all() and len(set(rows)) > 5
    np.testing.assert_array_equal(requested["survey"], np.where(rows % 2 == 0, 0, -1))  # -1: one it does not know
    assert requested["weights"] == rule.weights


def test_rule_ranges_and_weights_can_be_given(model, tmp_path, requested):
    result = generate(
        model, tmp_path / "d", base="spiral >= 0.25", values={"dust_lane": (0.2, 0.3), "bar": (1, 1)},
        weights={"dust_lane": 4.0, "bar": 2}, guidance=0.5,
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert (table["spiral"] >= 0.25).all() and (table["bar"] == 1).all() and table["dust_lane"].between(0.2, 0.3).all()
    shipped = load_recipe("dustlane").schemas["simulated"].synthetic
    assert result["from"] == "spiral >= 0.25" and requested["guidance"] == 0.5
    assert result["set"] == {**shipped.set, "dust_lane": (0.2, 0.3), "bar": (1, 1)}  # beside those of the recipe
    assert requested["weights"] == result["weights"] == {**shipped.weights, "dust_lane": 4.0, "bar": 2.0}


def images(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


def test_conditions_are_of_stores_where_a_generator_is_named(weights, store, conditions, tmp_path, requested):
    result = generate(None, tmp_path / "d", generator=str(weights), store=store, count=20)
    labelled = conditions.dropna()
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    rule = load_recipe("dustlane").schemas["simulated"].synthetic
    free = [name for name in SCHEMA.names if name not in rule.set]
    known = {tuple(np.float32(row)) for row in labelled[free].to_numpy()}
    assert {tuple(np.float32(row)) for row in table[free].to_numpy()} <= known
    assert result["count"] == len(table) == 20 and set(requested["survey"]) == {-1}  # unknown to it


def test_unusable_galaxies_give_no_conditions(weights, store, tmp_path, requested):
    shutil.copytree(store, tmp_path / "s.zarr")
    damaged = galscan.open(tmp_path / "s.zarr")
    early = np.flatnonzero(damaged.labels("simulated")["early_type"] >= 0.5)
    flags = zarr.open_group(tmp_path / "s.zarr", mode="r+")["flags"]
    marks = flags[:]
    marks[early[1:]] = Flag.BLANK
    flags[:] = marks
    generate(None, tmp_path / "d", generator=str(weights), store=tmp_path / "s.zarr")
    free = [k for k, name in enumerate(SCHEMA.names) if name in ("size", "redness", "inclination")]
    assert len({tuple(row[free]) for row in requested["values"]}) == 1


def test_the_model_of_the_home_is_the_default(model, tmp_path):
    home.model_path("dustlane").parent.mkdir(parents=True)
    home.model_path("dustlane").symlink_to(model)
    generate(None, tmp_path / "d")
    assert len(images(tmp_path / "d")) == 6


def test_another_recipe_with_the_same_model(model, tmp_path, requested):
    text = load_recipe("dustlane").text.replace('name = "dustlane"', 'name = "mine"')
    (tmp_path / "mine.toml").write_text(text.replace("dust_lane = [0.6, 1.0]", "dust_lane = [0.3, 0.4]"))
    options = {"count": 3, "out": tmp_path / "d", "model": model, "steps": 1, "device": "cpu"}
    galscan.generate(str(tmp_path / "mine.toml"), **options)
    lane = requested["values"][:, SCHEMA.names.index("dust_lane")]
    assert (lane >= 0.3).all() and (lane <= 0.4).all()


def test_a_plan_is_printed_and_nothing_written(model, tmp_path, capsys):
    plan = generate(model, tmp_path / "d", dry_run=True, values={"bar": (0, 0.5)})
    text = capsys.readouterr().err
    assert "early_type >= 0.5" in text and "bar" in text and "count        6" in text
    assert plan["set"]["bar"] == (0, 0.5) and plan["steps"] == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("where", "name"), [("sample_images", "d"), ("sheet", "d"), ("sheet", "d.zarr")])
def test_ctrl_c_leaves_nothing(model, tmp_path, monkeypatch, where, name):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling if where == "sample_images" else synthetic_set, where, stop)
    with pytest.raises(Interrupted):
        generate(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- the command line, and errors ----------------------------------------------------------------------


def test_the_command_line(model, tmp_path, capsys, requested):
    line = (
        f"generate --target dustlane --count 4 --model {model} --out {tmp_path}/d --steps 2 --seed 3 --device cpu "
        "--json --set dust_lane=0.8:0.9 --set bar=0.5 --weight dust_lane=2.5 --from 'early_type < 0.5' --guidance 2"
    )
    assert main.run(shlex.split(line)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert table["dust_lane"].between(0.8, 0.9).all() and (table["bar"] == 0.5).all()
    assert (table["early_type"] < 0.5).all() and len(table) == result["count"] == 4
    assert result["set"]["dust_lane"] == [0.8, 0.9] and result["weights"]["dust_lane"] == 2.5 and result["seed"] == 3
    assert (requested["guidance"], requested["steps"], requested["seed"]) == (2, 2, 3)
    capsys.readouterr()
    assert main.run(shlex.split(line)) == 2  # it exists now
    assert "--out" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"count": 0}, InputError, "--count 0"),
        ({"values": {"dust_lan": (0, 1)}}, InputError, "dust_lan'"),
        ({"values": {"dust_lane": (0.9, 0.1)}}, InputError, r"\[0.9, 0.1\]"),
        ({"values": {"dust_lane": (0, 1.5)}}, InputError, r"\[0, 1.5\]"),
        ({"weights": {"dusti": 2}}, InputError, "dusti"),
        ({"base": "early_typ > 0"}, InputError, "early_typ"),
        ({"base": "early_type > 1"}, InputError, "early_type > 1"),
        ({"base": "bar > 0.4 and bar < 0.45"}, InputError, "bar > 0.4"),
        ({"generator": "g.safetensors"}, InputError, "--generator"),
        ({"model": None}, InputError, "--store"),
        ({"model": Path("nowhere")}, NotFoundError, "nowhere"),
        ({"device": "tpu"}, InputError, "tpu"),
    ],
)
def test_invalid_arguments_are_errors(model, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as raised:
        generate(model, tmp_path / "d", **changes)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_generator_alone_needs_galaxies_with_its_labels(weights, tmp_path):
    with pytest.raises(InputError, match="--store"):
        generate(None, tmp_path / "d", generator=str(weights))
    with pytest.raises(InputError, match="--store"):
        generate(None, tmp_path / "d", generator=str(weights), store=tiny_store(tmp_path / "t.zarr", 20).path)
    whole = str(tiny_recipe(tmp_path / "whole.toml", whole=True))
    options = {"count": 3, "out": tmp_path / "d", "device": "cpu"}
    with pytest.raises(InputError, match="--generator none"):
        galscan.generate(whole, generator="none", **options)
    with pytest.raises(InputError, match=r"no\.safetensors"):
        galscan.generate(whole, generator=str(tmp_path / "no.safetensors"), **options)
    assert not (tmp_path / "d").exists()


def test_a_model_trained_without_synthetic_galaxies_cannot_generate(tmp_path):
    plain = tiny_bundle(tmp_path / "plain").path
    whole = str(tiny_recipe(tmp_path / "whole.toml", whole=True))
    with pytest.raises(NotFoundError, match=r"conditions\.parquet"):
        galscan.generate(whole, model=plain, count=3, out=tmp_path / "d", device="cpu")


@pytest.mark.parametrize("name", ["d", "d.zarr"])
def test_existing_output_is_not_changed(model, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("x")
    with pytest.raises(ConflictError, match="--out"):
        generate(model, tmp_path / name)
    assert (tmp_path / name / "thesis.tex").read_text() == "x"
    with pytest.raises(InputError, match="no"):
        generate(model, tmp_path / "no" / "d")


@pytest.mark.parametrize(("name", "there"), [("d.zarr", "d.png"), ("d", "d.partial/request.json")])
def test_existing_files_beside_the_output_are_not_changed(model, tmp_path, name, there):
    """A picture of the sheet's name; a training of the same name that was interrupted."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConflictError, match=there.split("/")[0]):
        generate(model, tmp_path / name)
    assert (tmp_path / there).read_text() == "mine" and not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"weights": {"dusty": -1.0}}, r"weights\.dusty"),
        ({"values": {"dusty": (float("nan"), 1.0)}}, r"set\.dusty"),
    ],
)
def test_impossible_numbers_are_errors(model, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        generate(model, tmp_path / "d", **changes)
    assert not list(tmp_path.iterdir())
