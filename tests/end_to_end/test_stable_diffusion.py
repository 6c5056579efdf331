"""GalaxySD through the command line, with a tiny Stable Diffusion of random weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import galscan
from galscan.cli import main
from galscan.core.files import read_json
from galscan.labels.settings import GALAXYSD, STABLE_DIFFUSION
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import evaluation
from tests.helpers import TINY_SETTINGS, fill_hub_cache, keep_all, released_checkpoints, tiny_stable_diffusion

pytest.importorskip("transformers", reason="needs the extra stable-diffusion")
pytest.importorskip("peft", reason="needs the extra stable-diffusion")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("galaxysd")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    sky = SimulatedSurvey(count=500, size=32, seed=1, rare_fraction=0.1, labelled=0.8)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def recipe(folder) -> Path:
    """Write the shipped recipe with a tiny network and settings that train in seconds."""
    tiny = tiny_stable_diffusion(folder / "tiny", room=77)
    generator = f'[generator]\nkind = "stable-diffusion"\nstart = "{tiny}"\nsteps = 3\nbatch = 4\nresolution = 32\n'
    rest = TINY_SETTINGS[TINY_SETTINGS.index("[synthetic]") :]
    text = galscan.load_recipe("dustlane-galaxysd").text
    head, rules = text[: text.index("[generator]")], text[text.index("[schemas.gz2]") :]
    path = folder / "tiny.toml"
    path.write_text(head.replace("size = 64", "size = 32") + generator + rest + rules)
    return path


@pytest.fixture(scope="module")
def model(folder, store, recipe) -> galscan.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "filter_synthetic", keep_all)
        return galscan.train_rare(str(recipe), store=store, out=folder / "model", device="cpu", seed=3)


def test_the_model_has_its_synthetic_galaxies(model):
    summary = model.metrics["generator"]
    assert (summary["kind"], summary["steps"]) == ("stable-diffusion", 3) and model.metrics["synthetic"]["all"] == 14
    names = {p.name for p in model.path.iterdir()}
    assert {"generator", "synthetic.zarr", "synthetic.png", "conditions.parquet"} <= names
    assert not list(model.path.glob("*.checkpoint*"))


def test_no_held_out_galaxy_is_a_starting_image(model, store):
    sky, splits = galscan.open(store), model.splits()
    held_out = set(splits.loc[splits["split"] != "train", "id"])
    owner = {image.tobytes(): str(i) for image, i in zip(sky.images(), sky.column("id"), strict=True)}
    starts = load_file(model.path / "generator" / "starts.safetensors")["images"].numpy()
    ids = {owner[image.tobytes()] for image in starts}
    assert len(held_out) > 100 and len(ids) > 100 and not ids & held_out


def test_the_model_generates_more_galaxies_and_they_are_evaluated(model, store, recipe, folder, capsys):
    out = folder / "d.zarr"
    line = f"generate --target {recipe} --model {model.path} --count 3 --weight dust_lane=1.5 --steps 2 --out {out}"
    assert main.run(line.split()) == 0
    provenance = galscan.open(out).attrs["provenance"]
    assert provenance["guidance"] == 6.5 and provenance["steps"] == 2
    assert provenance["weights"] == {"dust_lane": 1.5, "dusty": 1.3}
    line = f"evaluate {out} --target {recipe} --model {model.path} --store {store} --steps 4 --out {folder / 'j'}"
    assert main.run([*line.split(), "--device", "cpu"]) == 0
    assert read_json(folder / "j" / "evaluation.json")["request"]["model"] == model.model_hash


@pytest.mark.parametrize("lora", [[], ["--lora", "2"]])
def test_a_generator_is_trained_alone_and_generates(store, recipe, folder, tmp_path, capsys, lora):
    out = tmp_path / "galaxysd"
    line = f"train-generator --kind stable-diffusion --start {folder / 'tiny'} --store {store} --steps 2 --batch 4"
    assert main.run([*line.split(), *lora, "--resolution", "32", "--out", str(out), "--json"]) == 0
    training = read_json(out / "training.json")
    assert training["steps"] == 2 and training["weights"] == "galaxysd" and training["bytes"] > 1e5
    assert (out / "pytorch_lora_weights.safetensors").exists() == bool(lora)
    assert {p.name for p in tmp_path.iterdir()} == {"galaxysd"}
    line = f"generate --target {recipe} --generator {out} --store {store} --count 2 --steps 2 --out {tmp_path / 'd'}"
    assert main.run(line.split()) == 0
    assert len(list((tmp_path / "d" / "images").iterdir())) == 2


def test_the_released_weights_are_written_as_they_are(store, recipe, folder, tmp_path, capsys, monkeypatch):
    import huggingface_hub.constants as constants

    cache, out = tmp_path / "hub", tmp_path / "released"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    release = released_checkpoints(folder / "tiny", tmp_path / "files")
    fill_hub_cache(cache, {GALAXYSD: release, STABLE_DIFFUSION: folder / "tiny"})
    line = f"train-generator --kind stable-diffusion --start {GALAXYSD} --steps 0 --store {store} --resolution 32"
    assert main.run([*line.split(), "--out", str(out)]) == 0
    training, written = read_json(out / "training.json"), load_file(out / "text_encoder" / "model.safetensors")
    assert training["steps"] == 0 and training["loss"] is None
    expected = load_file(release / "text_encoder-10000.safetensors")
    for key, value in written.items():
        assert torch.equal(value, expected[f"base_ema:text_model.{key.removeprefix('text_model.')}"].half())
    (checkpoint,) = cache.glob("*GalaxySD/snapshots/*/unet-10000.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    capsys.readouterr()
    assert main.run([*line.split(), "--out", str(tmp_path / "cut")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(checkpoint) in message and {p.name for p in tmp_path.iterdir()} == {"hub", "files", "released"}


def test_an_ablation_with_it(recipe, store, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    result = galscan.ablate(
        str(recipe), store=store, out=tmp_path / "a", seeds=1, arms=["oversampled", "images"], method="images",
        device="cpu",
    )  # fmt: skip
    (repeat,) = result["repeats"]
    assert repeat["generator"]["steps"] == 1 and repeat["synthetic"]["images"]["made"] == 14
    assert (tmp_path / "a" / "repeat-00" / "generator" / "galscan.json").is_file()
    trained = set((tmp_path / "a" / "repeat-00" / "generator_ids.txt").read_text().split())
    tested = set(pd.read_parquet(tmp_path / "a" / "repeat-00" / "images.parquet")["id"])
    assert len(trained) > 100 and len(tested) > 100 and not trained & tested
