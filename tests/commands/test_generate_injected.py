from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import galscan
from galscan.cli import main
from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.models.network import GalaxyNet
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.diffusion.map_model import MapFlow, make_config
from galscan.synthesis.features.base import find_feature
from galscan.synthesis.synthetic_set import HOST, INJECTED, read_synthetic_set
from tests.helpers import tiny_bundle, tiny_recipe, tiny_store

SIZE, SCHEMA = 48, load_schema("simulated")
RULE = load_recipe("dustlane").schemas["simulated"].inject


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("injected")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=240, size=SIZE, seed=1, rare_fraction=0.1, labelled=0.6)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def recipe(folder) -> str:
    path = tiny_recipe(folder / "lanes.toml", size=SIZE)
    text, count = re.subn(r"plain = [\d.]+", "plain = 0.12", path.read_text())  # galaxies this small show little
    assert count
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def weights(folder) -> Path:
    """Write an untrained diffusion model of lanes."""
    torch.manual_seed(0)
    lanes = find_feature("dust_lane")
    maps = 60 * lanes.prior(8, np.random.default_rng(0))  # so that what it samples without training is seen
    network = MapFlow(make_config("dust_lane", lanes.CONDITIONS, maps, (16, 32)))
    network.save(folder / "maps.safetensors")
    return folder / "maps.safetensors"


@pytest.fixture(scope="module")
def model(folder, recipe, store) -> Path:
    """Make a model that predicts of every galaxy that it is a clean early type, and held out the first 60 objects."""
    sky = galscan.open(store)
    path = folder / "model"
    answers = SCHEMA.complete(load_recipe(recipe).schemas["simulated"].morphology)
    network = GalaxyNet(8, len(answers)).eval()
    with torch.no_grad():
        network.morphology.weight.zero_()
        network.morphology.bias[:] = torch.tensor([4.0 if a == "early_type" else -6.0 for a in answers])
    tiny_bundle(path, target="dustlane", size=SIZE, networks=[network])
    ids = sky.column("id").astype(str)
    splits = pd.DataFrame({"store": sky.name, "id": ids, "split": "train", "target": 0})
    splits.loc[:59, "split"] = np.resize(["test", "calibration"], 60)
    splits.to_parquet(path / "splits.parquet", index=False)
    return path


def generate(recipe: str, store: Path | None, out: Path, **changes) -> dict:
    options = {"count": 9, "store": store or (), "generator": "prior", "device": "cpu", "out": out}
    return galscan.generate(recipe, **(options | changes))


def test_the_command_writes_targets_and_their_hosts_to_a_store(recipe, store, tmp_path, capsys):
    line = (
        f"generate --target {recipe} --store {store} --generator prior --count 12 --out {tmp_path / 'd.zarr'} --seed 2"
    )
    assert main.run([*line.split(), "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    made, sky = read_synthetic_set(tmp_path / "d.zarr", "simulated"), galscan.open(store)
    injected, hosts = np.flatnonzero(made.origin == INJECTED), np.flatnonzero(made.origin == HOST)
    assert len(injected) == 12 == result["count"] and len(hosts) == result["hosts"] == len(made) - 12
    assert (made.target[injected] == 1).all() and (made.target[hosts] == 0).all()
    assert set(made.host[injected]) == set(hosts)
    changed = (made.images[injected] != made.images[made.host[injected]]).any(3).mean((1, 2))
    assert (changed > 0).all() and (changed < 0.9).all()  # and nothing else of the image
    assert (made.depth[injected] >= find_feature("dust_lane").LEAST_DEPTH).all()
    # Labels are those of the host, but for what the feature changes.
    free = [name for name in SCHEMA.names if name not in RULE.values]
    before, after = made.labels.iloc[made.host[injected]][free], made.labels.iloc[injected][free]
    np.testing.assert_array_equal(before, after)
    low, high = RULE.values["dust_lane"]
    assert made.labels["dust_lane"].iloc[injected].between(max(low, 0.5), high).all()  # plain enough to be targets
    # Hosts are galaxies of the store that satisfy the rule.
    labels = sky.labels("simulated")
    allowed = (labels["early_type"] >= 0.5) & (labels["dust_lane"] == 0) & (labels["artefact"] < 0.5)
    known = {image.tobytes() for image in sky.images()[np.flatnonzero(allowed)]}
    assert {image.tobytes() for image in made.images[hosts]} <= known
    provenance = galscan.open(tmp_path / "d.zarr").attrs["provenance"]
    assert provenance["maps"] == "prior" and provenance["stores"][0][2] == sky.content_hash
    assert f"{int(allowed.sum())} labelled hosts" in err
    assert {p.name for p in tmp_path.iterdir()} == {"d.zarr", "d.png"} and result["sheet"] == str(tmp_path / "d.png")


def test_a_folder_has_images_hosts_and_conditions(recipe, store, tmp_path):
    generate(recipe, store, tmp_path / "d")
    assert {p.name for p in (tmp_path / "d").iterdir()} == {
        "images", "hosts", "conditions.csv", "synthetic.json", "sheet.png",
    }  # fmt: skip
    table = pd.read_csv(tmp_path / "d" / "conditions.csv")
    assert list(table) == [*SCHEMA.names, "file", "host", "depth"] and len(table) == 9
    assert table["dust_lane"].between(0.5, 1).all() and table["depth"].between(0.08, 1).all()
    for file, host in zip(table["file"], table["host"], strict=True):
        assert file.startswith("images/") and host.startswith("hosts/")
        one, other = (np.asarray(Image.open(tmp_path / "d" / name), int) for name in (file, host))
        assert one.shape == other.shape == (SIZE, SIZE, 3) and one.sum() < other.sum()  # dust dims
    assert len(list((tmp_path / "d" / "hosts").iterdir())) == table["host"].nunique()


def test_the_sheet_shows_each_host_before_its_target(recipe, store, tmp_path, monkeypatch):
    from galscan.core import thumbnails

    shown = {}
    monkeypatch.setattr(
        thumbnails, "contact_sheet", lambda images, path, **options: shown.update(options, images=images)
    )
    with pytest.raises(FileNotFoundError):  # no sheet was written
        generate(recipe, store, tmp_path / "d.zarr", count=5)
    hosts, made = shown["images"][::2].astype(int), shown["images"][1::2].astype(int)
    assert len(hosts) == len(made) == 5 and (hosts.sum((1, 2, 3)) > made.sum((1, 2, 3))).all()
    assert [caption.split("\n")[0].split()[0] for caption in shown["captions"]] == ["host", "depth"] * 5


def test_the_seed_decides(recipe, store, tmp_path):
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        generate(recipe, store, tmp_path / f"{name}.zarr", seed=seed)
    one, same, other = (
        read_synthetic_set(tmp_path / f"{n}.zarr", "simulated").images for n in ("one", "same", "other")
    )
    np.testing.assert_array_equal(one, same)
    assert one.shape != other.shape or (one != other).any()


def test_weights_of_maps_are_the_base_ones_a_file_or_the_prior(recipe, store, weights, tmp_path, monkeypatch):
    from galscan.synthesis.diffusion import maps

    sampled, real = [], maps.sample_maps
    monkeypatch.setattr(
        maps, "sample_maps", lambda network, values, **options: (
            sampled.append(network.config.widths), real(network, values, steps=1, **options)
        )[1],
    )  # fmt: skip
    result = generate(recipe, store, tmp_path / "d", generator=str(weights), count=3)
    assert result["maps"] == str(weights) and set(sampled) == {(16, 32)}
    plan = generate(recipe, store, tmp_path / "e", generator=None, dry_run=True)
    assert plan["maps"] == "prior"  # as this recipe says
    sampling = tmp_path / "sampling.toml"
    sampling.write_text(Path(recipe).read_text().replace('maps = "prior"', 'maps = "diffusion"'))
    assert generate(str(sampling), store, tmp_path / "e", generator=None, dry_run=True)["maps"] == "base"
    assert generate(str(sampling), store, tmp_path / "e", dry_run=True)["maps"] == "prior"
    sampling.write_text(Path(recipe).read_text().replace('maps = "prior"', 'maps = "both"'))
    plan = generate(str(sampling), store, tmp_path / "e", generator=None, dry_run=True)
    assert plan["maps"] == "base, mixed with the prior"
    assert not (tmp_path / "e").exists()


def test_a_model_predicts_unlabelled_hosts_and_keeps_held_out_ones_out(recipe, store, model, tmp_path):
    result = generate(recipe, store, tmp_path / "d.zarr", model=model, count=40)
    made, sky = read_synthetic_set(tmp_path / "d.zarr", "simulated"), galscan.open(store)
    rows = {image.tobytes(): k for k, image in enumerate(sky.images())}
    hosts = np.array([rows[image.tobytes()] for image in made.images[made.origin == HOST]])
    unlabelled = sky.labels("simulated").isna().all(axis=1).to_numpy()
    assert (hosts >= 60).all()  # the model held out the others
    assert unlabelled[hosts].any() and result["hosts_unlabelled"] > 0
    alone = generate(recipe, store, tmp_path / "e.zarr", count=9)
    assert alone["hosts_unlabelled"] == 0


def test_another_rule_chooses_other_hosts(recipe, store, tmp_path):
    result = generate(recipe, store, tmp_path / "d.zarr", base="early_type == 0.75 and dust_lane == 0")
    made = read_synthetic_set(tmp_path / "d.zarr", "simulated")
    assert (made.labels["early_type"] == 0.75).all() and result["hosts"] == (made.origin == HOST).sum()
    with pytest.raises(InputError, match="0 of --count 9"):
        generate(recipe, store, tmp_path / "e.zarr", base="early_type < 0.5 and dust_lane == 0")
    assert not (tmp_path / "e.zarr").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store": ()}, "--store"),
        ({"weights": {"dust_lane": 2}}, "--weight"),
        ({"guidance": 2.0}, "--guidance"),
        ({"steps": 3}, "--steps"),
        ({"values": {"dust_lane": (0, 1)}}, "--set"),
        ({"base": "early_type >= 0.5 and size < 0.001"}, "size < 0.001"),
        ({"base": "early_typ > 0"}, "early_typ"),
        ({"generator": "no.safetensors"}, r"no\.safetensors"),
        ({"count": 0}, "--count 0"),
    ],
)
def test_invalid_arguments_are_errors(recipe, store, tmp_path, changes, words):
    options = {"store": store} | changes
    with pytest.raises(InputError, match=words) as raised:
        generate(recipe, options.pop("store"), tmp_path / "d", **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_stores_that_do_not_fit_are_errors(recipe, store, tmp_path):
    with pytest.raises(InputError, match="48 px"):
        generate("dustlane", store, tmp_path / "d")
    bare = tiny_store(tmp_path / "bare.zarr", 9, SIZE).path
    with pytest.raises(InputError, match="--labels"):
        generate(recipe, bare, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_feature_that_is_never_visible_is_an_error(recipe, store, tmp_path, monkeypatch):
    from galscan.synthesis.features import dust_lane

    monkeypatch.setattr(dust_lane, "LEAST_DEPTH", 0.99)
    with pytest.raises(InputError, match="'dust_lane'"):
        generate(recipe, store, tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_weights_of_whole_images_generate_them(recipe, store, tmp_path):
    """A recipe that injects, and a generator of whole images that is named."""
    from galscan.synthesis.diffusion.galaxy_model import Generator, make_config

    torch.manual_seed(0)
    network = Generator(make_config(galscan.open(store).images()[:, ::3, ::3], SCHEMA, ["sky"], (32, 32)))
    network.save(tmp_path / "g.safetensors")
    result = generate(recipe, store, tmp_path / "d.zarr", generator=str(tmp_path / "g.safetensors"), steps=1, count=2)
    made = read_synthetic_set(tmp_path / "d.zarr", "simulated")
    assert result["steps"] == 1 and "maps" not in result and made.images.shape == (2, 16, 16, 3)
    assert made.synthetic.all() and (made.host < 0).all()
