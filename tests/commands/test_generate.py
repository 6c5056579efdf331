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
from galscan.synthesis import sampling
from galscan.synthesis import synthetic_set as dreaming
from galscan.synthesis.diffusion.galaxy_model import Generator, make_config
from galscan.synthesis.galaxies import MEASURED, SHAPE, measure
from tests.helpers import tiny_bundle, tiny_recipe, tiny_store

SCHEMA = load_schema("simulated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dream")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=120, size=32, seed=1, rare_fraction=0.1, labelled=0.9)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def conditions(store) -> pd.DataFrame:
    sky = galscan.open_store(store)
    labels = sky.labels("simulated")[SCHEMA.names]
    return pd.concat([labels, pd.DataFrame(measure(sky.images()), columns=list(MEASURED))], axis=1)


@pytest.fixture(scope="module")
def weights(folder, store) -> Path:
    torch.manual_seed(0)
    network = Generator(make_config(galscan.open_store(store).images()[:, ::2, ::2], SCHEMA, ["sky", "b"], (32, 32)))
    network.save(folder / "g.safetensors")
    return folder / "g.safetensors"


@pytest.fixture(scope="module")
def model(folder, weights, conditions) -> Path:
    """Make a model's folder with a generator of 16 px that knows the survey ``sky``."""
    path = tiny_bundle(folder / "model").path
    shutil.copy(weights, path / "generator.safetensors")
    surveys = np.resize(["sky", "elsewhere"], len(conditions))
    dreaming.write_conditions(conditions, np.zeros(len(conditions)), surveys, path / "conditions.parquet")
    return path


@pytest.fixture
def asked(monkeypatch) -> dict:
    """Record the arguments of the sampler."""
    seen, real = {}, sampling.sample_images

    def spy(generator, values, survey, **options):
        seen.update(options, values=values, survey=survey)
        return real(generator, values, survey, **options)

    monkeypatch.setattr(sampling, "sample_images", spy)
    return seen


def generate(with_model: Path | None, out: Path, **changes) -> dict:
    options = {"count": 6, "model": with_model, "steps": 2, "device": "cpu", "out": out}
    return galscan.generate("dustlane", **(options | changes))


def test_a_folder_of_pictures_with_what_was_asked(model, conditions, tmp_path):
    told = generate(model, tmp_path / "d")
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"images", "conditions.csv", "synthetic.json", "sheet.png"}
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert list(table) == [*SCHEMA.names, "file"] and len(table) == 6
    pictures = [Image.open(tmp_path / "d" / name) for name in table["file"]]
    assert {p.size for p in pictures} == {(16, 16)} and {p.mode for p in pictures} == {"RGB"}
    assert table["dust_lane"].between(0.6, 1).all() and (table["early_type"] >= 0.5).all()
    assert told["out"] == str(tmp_path / "d") and told["sheet"] == str(tmp_path / "d" / "sheet.png")
    assert told["answers"]["dust_lane"] == pytest.approx(table["dust_lane"].mean(), abs=1e-6)
    assert (told["count"], told["guidance"], told["steps"]) == (6, Generator.guidance, 2)
    kept = {k: v for k, v in told.items() if k not in ("answers", "sheet")}
    assert read_json(tmp_path / "d" / "synthetic.json") == json.loads(json.dumps(kept))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_store_with_its_sheet_beside_it(model, tmp_path):
    told = generate(model, tmp_path / "d.zarr", seed=4)
    store = galscan.open_store(tmp_path / "d.zarr")
    assert (store.count, store.size, store.name) == (6, 16, "d") and (store.column("truth/target") == 1).all()
    assert store.labels("simulated")["dust_lane"].between(0.6, 1).all()
    assert store.attrs["provenance"]["synthetic"] is True and store.attrs["provenance"]["seed"] == 4
    assert store.attrs["provenance"]["from"] == load_recipe("dustlane").schemas["simulated"].synthetic.base
    assert told["sheet"] == str(tmp_path / "d.png")
    assert {p.name for p in tmp_path.iterdir()} == {"d.zarr", "d.png"}


def test_conditions_are_those_of_real_galaxies_but_for_what_is_set(model, conditions, tmp_path, asked):
    rule = load_recipe("dustlane").schemas["simulated"].synthetic
    generate(model, tmp_path / "d", count=30)
    free = [k for k, name in enumerate(conditions) if name not in (*rule.set, *SHAPE[1:])]  # shapes are turned
    known = {tuple(row[free]): k for k, row in enumerate(conditions.to_numpy(np.float32))}
    rows = np.array([known[tuple(row[free])] for row in asked["values"]])
    assert (conditions["early_type"].to_numpy()[rows] >= 0.5).all() and len(set(rows)) > 5
    np.testing.assert_array_equal(asked["survey"], np.where(rows % 2 == 0, 0, -1))  # -1: one it does not know
    assert asked["weights"] == rule.weights


def test_rule_ranges_and_weights_can_be_given(model, tmp_path, asked):
    told = generate(
        model, tmp_path / "d", base="spiral >= 0.25", values={"dust_lane": (0.2, 0.3), "bar": (1, 1)},
        weights={"dust_lane": 4.0, "bar": 2}, guidance=0.5,
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert (table["spiral"] >= 0.25).all() and (table["bar"] == 1).all() and table["dust_lane"].between(0.2, 0.3).all()
    shipped = load_recipe("dustlane").schemas["simulated"].synthetic
    assert told["from"] == "spiral >= 0.25" and asked["guidance"] == 0.5
    assert told["set"] == {**shipped.set, "dust_lane": (0.2, 0.3), "bar": (1, 1)}  # beside those of the recipe
    assert asked["weights"] == told["weights"] == {**shipped.weights, "dust_lane": 4.0, "bar": 2.0}


def pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


def test_the_seed_decides(model, tmp_path):
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        generate(model, tmp_path / name, seed=seed)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "same")
    assert not set(pictures(tmp_path / "one")) & set(pictures(tmp_path / "other"))
    tables = {name: (tmp_path / name / "conditions.csv").read_text() for name in ("one", "same", "other")}
    assert tables["one"] == tables["same"] != tables["other"]


def test_a_generator_alone_draws_its_conditions_from_stores(weights, store, conditions, tmp_path, asked):
    told = generate(None, tmp_path / "d", generator=str(weights), store=store, count=20)
    labelled = conditions.dropna()
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    rule = load_recipe("dustlane").schemas["simulated"].synthetic
    free = [name for name in SCHEMA.names if name not in rule.set]
    known = {tuple(np.float32(row)) for row in labelled[free].to_numpy()}
    assert {tuple(np.float32(row)) for row in table[free].to_numpy()} <= known
    assert told["count"] == len(table) == 20 and set(asked["survey"]) == {-1}  # "simulated": not one of its surveys


def test_galaxies_that_cannot_be_used_lend_no_condition(weights, store, tmp_path, asked):
    shutil.copytree(store, tmp_path / "s.zarr")
    spoilt = galscan.open_store(tmp_path / "s.zarr")
    early = np.flatnonzero(spoilt.labels("simulated")["early_type"] >= 0.5)
    flags = zarr.open_group(tmp_path / "s.zarr", mode="r+")["flags"]
    marks = flags[:]
    marks[early[1:]] = Flag.BLANK
    flags[:] = marks
    generate(None, tmp_path / "d", generator=str(weights), store=tmp_path / "s.zarr")
    free = [k for k, name in enumerate(SCHEMA.names) if name in ("size", "redness", "inclination")]
    assert len({tuple(row[free]) for row in asked["values"]}) == 1


def test_the_model_of_the_home_is_the_default(model, tmp_path):
    home.model_path("dustlane").parent.mkdir(parents=True)
    home.model_path("dustlane").symlink_to(model)
    generate(None, tmp_path / "d")
    assert len(pictures(tmp_path / "d")) == 6


def test_a_recipe_of_ones_own_with_the_model_of_another(model, tmp_path, asked):
    text = load_recipe("dustlane").text.replace('name = "dustlane"', 'name = "mine"')
    (tmp_path / "mine.toml").write_text(text.replace("dust_lane = [0.6, 1.0]", "dust_lane = [0.3, 0.4]"))
    options = {"count": 3, "out": tmp_path / "d", "model": model, "steps": 1, "device": "cpu"}
    galscan.generate(str(tmp_path / "mine.toml"), **options)
    lane = asked["values"][:, SCHEMA.names.index("dust_lane")]
    assert (lane >= 0.3).all() and (lane <= 0.4).all()


def test_a_plan_is_printed_and_nothing_written(model, tmp_path, capsys):
    plan = generate(model, tmp_path / "d", dry_run=True, values={"bar": (0, 0.5)})
    text = capsys.readouterr().err
    assert "early_type >= 0.5" in text and "bar" in text and "count        6" in text
    assert plan["set"]["bar"] == (0, 0.5) and plan["steps"] == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "name"),
    [("sample_images", "d"), ("sheet", "d"), ("sample_images", "d.zarr"), ("sheet", "d.zarr")],
)
def test_ctrl_c_leaves_nothing(model, tmp_path, monkeypatch, where, name):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling if where == "sample_images" else dreaming, where, stop)
    with pytest.raises(Interrupted, match="nothing was written"):
        generate(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


# --- the command line, and mistakes ----------------------------------------------------------------------


def test_the_command_line(model, tmp_path, capsys, asked):
    line = (
        f"generate --target dustlane --count 4 --model {model} --out {tmp_path}/d --steps 2 --seed 3 --device cpu "
        "--json --set dust_lane=0.8:0.9 --set bar=0.5 --weight dust_lane=2.5 --from 'early_type < 0.5' --guidance 2"
    )
    assert main.run(shlex.split(line)) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert table["dust_lane"].between(0.8, 0.9).all() and (table["bar"] == 0.5).all()
    assert (table["early_type"] < 0.5).all() and len(table) == told["count"] == 4
    assert told["set"]["dust_lane"] == [0.8, 0.9] and told["weights"]["dust_lane"] == 2.5 and told["seed"] == 3
    assert asked["guidance"] == 2 and asked["steps"] == 2
    capsys.readouterr()
    assert main.run(shlex.split(line)) == 2  # it is there now
    assert "another --out" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"count": 0}, InputError, "--count 0: give 1 or more"),
        ({"values": {"dust_lan": (0, 1)}}, InputError, "synthetic.set names .*did you mean 'dust_lane'"),
        ({"values": {"dust_lane": (0.9, 0.1)}}, InputError, r"synthetic\.set\.dust_lane = \[0.9, 0.1\] must rise"),
        ({"values": {"dust_lane": (0, 1.5)}}, InputError, r"must rise and lie within 0\.\.1"),
        ({"weights": {"dusti": 2}}, InputError, "synthetic.weights names .*did you mean 'dusty'"),
        ({"base": "early_typ > 0"}, InputError, "did you mean 'early_type'"),
        ({"base": "early_type > 1"}, InputError, "impossible rule"),
        ({"base": "bar > 0.4 and bar < 0.45"}, InputError, "no training galaxy satisfies 'bar > 0.4"),
        ({"generator": "g.safetensors"}, InputError, "--model and --generator exclude each other"),
        ({"model": None}, InputError, "--store is missing: 'dustlane' injects a feature"),
        ({"model": Path("nowhere")}, NotFoundError, "no model at nowhere"),
        ({"device": "tpu"}, InputError, "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(model, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as told:
        generate(model, tmp_path / "d", **changes)
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())


def test_a_generator_alone_needs_galaxies_with_its_labels(weights, tmp_path):
    with pytest.raises(InputError, match="needs --store with simulated labels"):
        generate(None, tmp_path / "d", generator=str(weights))
    with pytest.raises(InputError, match="needs --store with simulated labels"):
        generate(None, tmp_path / "d", generator=str(weights), store=tiny_store(tmp_path / "t.zarr", 20).path)
    whole = str(tiny_recipe(tmp_path / "whole.toml", whole=True))
    options = {"count": 3, "out": tmp_path / "d", "device": "cpu"}
    with pytest.raises(InputError, match="--generator none: name the weights"):
        galscan.generate(whole, generator="none", **options)
    with pytest.raises(InputError, match=r"no\.safetensors is not a readable generator"):
        galscan.generate(whole, generator=str(tmp_path / "no.safetensors"), **options)
    assert not (tmp_path / "d").exists()


def test_a_model_trained_without_dreams_cannot_dream(tmp_path):
    plain = tiny_bundle(tmp_path / "plain").path
    whole = str(tiny_recipe(tmp_path / "whole.toml", whole=True))
    with pytest.raises(NotFoundError, match=r"conditions\.parquet is missing: .*--no-synthetic"):
        galscan.generate(whole, model=plain, count=3, out=tmp_path / "d", device="cpu")


@pytest.mark.parametrize("name", ["d", "d.zarr"])
def test_what_is_there_is_left_alone(model, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("x")
    with pytest.raises(ConflictError, match="choose another --out"):
        generate(model, tmp_path / name)
    assert (tmp_path / name / "thesis.tex").read_text() == "x"
    with pytest.raises(InputError, match="does not exist; make it first"):
        generate(model, tmp_path / "no" / "d")


@pytest.mark.parametrize(("name", "there"), [("d.zarr", "d.png"), ("d", "d.partial/request.json")])
def test_what_is_there_beside_it_is_left_alone(model, tmp_path, name, there):
    """A picture of the sheet's name; a training of the same name that was interrupted."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(ConflictError, match=f"{there.split('/')[0]} exists; choose another --out"):
        generate(model, tmp_path / name)
    assert (tmp_path / there).read_text() == "mine" and not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "synthetic: steps: .*greater than or equal to 1.*got 0"),
        ({"guidance": -1.0}, "synthetic: guidance: .*got -1"),
        ({"weights": {"dusty": -1.0}}, r"synthetic: weights\.dusty: .*got -1"),
        ({"values": {"dusty": (float("nan"), 1.0)}}, r"synthetic: set\.dusty"),
    ],
)
def test_impossible_numbers_are_refused(model, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        generate(model, tmp_path / "d", **changes)
    assert not list(tmp_path.iterdir())
