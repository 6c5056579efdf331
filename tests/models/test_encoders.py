"""timm encoders with galscan heads. Tests that need timm are skipped without it."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.labels.settings import ClassifierSettings
from galscan.models import ensemble
from galscan.models.encoders import build_network, find_encoder, start_network
from galscan.models.network import Ensemble, to_unit
from galscan.models.weights import load_network, save_network
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.train import train_classifier
from tests.helpers import tiny_recipe
from tests.training.test_train import examples, scores

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def timm():
    try:
        import timm
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"needs a timm that imports here (extra encoders): {str(error).splitlines()[0]}")
    return timm


@pytest.fixture(scope="module")
def folder(timm, tmp_path_factory):
    """Return a function that writes an encoder of random weights in timm's format and returns folder and encoder."""
    place = tmp_path_factory.mktemp("encoders")

    def write(architecture: str, name: str = "", **args) -> tuple[Path, torch.nn.Module]:
        path = place / (name or architecture)
        torch.manual_seed(1)
        model = timm.create_model(architecture, pretrained=False, num_classes=10, **args).eval()
        for module in model.modules():  # statistics that are nobody's defaults
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
        if not path.is_dir():
            path.mkdir()
            keys = ("input_size", "fixed_input_size", "mean", "std", "first_conv", "classifier")
            cfg = {k: v for k, v in model.pretrained_cfg.items() if k in keys}
            told = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": cfg, "model_args": args}
            (path / "config.json").write_text(json.dumps(told))
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path / "model.safetensors")
        model.reset_classifier(0)
        return path, model

    return write


def settings(path: Path | str, **changes) -> ClassifierSettings:
    return ClassifierSettings(**{"encoder": str(path), "steps": 60, "batch": 16, "learning_rate": 1e-2} | changes)


def pictures(size: int = 32, n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


# Run always: error messages where timm is missing or does not work.


def refuse(monkeypatch, name: str, error: Exception) -> None:
    """Make the import of `name` fail."""
    real = builtins.__import__

    def fails(wanted, *arguments, **options):
        if wanted.split(".")[0] == name:
            raise error
        return real(wanted, *arguments, **options)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", fails)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'timm'", name="timm"),
            r"not installed: pip install 'galscan\[encoders\]'",
        ),
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "--no-deps torchvision"),
        (RuntimeError("operator torchvision::nms does not exist\nmore"), "nms does not exist.*--no-deps torchvision"),
    ],
)
def test_without_a_timm_that_works_one_line_says_what_to_install(monkeypatch, error, said):
    refuse(monkeypatch, "timm", error)
    with pytest.raises(InputError, match=said) as told:
        find_encoder("resnet18")
    assert "\n" not in str(told.value) and f"built for torch {torch.__version__}" in str(told.value)


def test_a_training_is_refused_before_it_begins(monkeypatch, tmp_path):
    refuse(monkeypatch, "timm", ModuleNotFoundError("No module named 'timm'", name="timm"))
    recipe = tiny_recipe(tmp_path / "dustlane.toml")
    recipe.write_text(recipe.read_text().replace("[classifier]\n", '[classifier]\nencoder = "resnet18"\n'))
    with pytest.raises(InputError, match="pip install"):
        galscan.train_rare(str(recipe), store=tmp_path / "none.zarr", out=tmp_path / "m", dry_run=True)
    assert not (tmp_path / "m").exists()


def told(**changes) -> dict:
    architecture = {"name": "x", "architecture": "test_resnet", "args": {}, "size": 0, "mean": [0] * 3, "std": [1] * 3}
    return {"encoder": architecture | changes, "frozen": True, "answers": 2, "targets": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"args": {"checkpoint_path": "/etc/passwd"}}, {"args": {"pretrained": True}}, {"args": {"cache_dir": "/"}},
        {"size": 10**9}, {"std": [0, 1, 1]}, {"mean": [0]}, {"mean": [float("nan")] * 3}, {"more": 1},
    ],
)  # fmt: skip
def test_a_tampered_architecture_is_refused(changes):
    with pytest.raises(InputError, match=r"^encoder\.") as error:
        build_network(told(**changes))
    assert "\n" not in str(error.value)


# With timm.


@pytest.mark.parametrize(
    ("architecture", "size", "shown", "args"),
    [
        ("test_resnet", 0, 0, {}), ("test_resnet", 64, 64, {}), ("test_convnext", 32, 0, {}), ("test_vit", 0, 160, {}),
        ("test_vit", 96, 96, {}), ("test_vit", 0, 48, {"img_size": 48}), ("mobilenetv3_small_050", 0, 0, {}),
    ],
)  # fmt: skip
def test_features_are_those_of_timm_on_pixels_scaled_as_the_encoder_wants(folder, architecture, size, shown, args):
    path, model = folder(architecture, f"{architecture}-{args.get('img_size', 0)}", **args)
    network = start_network(settings(path, encoder_size=size), 32, 2, 1).eval()
    assert network.architecture.size == shown
    x = pictures().permute(0, 3, 1, 2) / 255
    if shown:
        x = torch.nn.functional.interpolate(x, (shown, shown), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.inference_mode():
        seen = network.features(to_unit(pictures()))
        if (architecture, size) != ("test_vit", 96):  # whose positions timm resamples
            torch.testing.assert_close(seen, model((x - mean) / std), rtol=1e-4, atol=1e-5)
        assert seen.shape[1] == network.target.in_features


def test_zoobot_sees_pixels_in_0_to_1_whatever_its_configuration_says(folder):
    path, model = folder("test_convnext", "zoobot-encoder-tiny")
    network = start_network(settings(path), 32, 2, 1).eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            network.features(to_unit(pictures())), model(pictures().permute(0, 3, 1, 2) / 255), rtol=1e-4, atol=1e-5
        )


def test_a_frozen_encoder_stays_and_is_shared_by_its_networks(folder, tmp_path):
    path, model = folder("test_resnet")
    frozen = settings(path, encoder_frozen=True)
    networks = [train_classifier(examples(), None, frozen, steps=3, seed=s, device=CPU) for s in (0, 1)]
    for network in networks:  # the statistics of its normalisation layers, too
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in network.encoder.state_dict().items())
    assert not torch.equal(networks[0].target.weight, networks[1].target.weight)

    for k, network in enumerate(networks):
        save_network(network, tmp_path / f"n-{k}.safetensors")
    beside = [p for p in tmp_path.iterdir() if p.name.startswith("encoder-")]
    assert len(beside) == 1 and len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "n-0.safetensors").stat().st_size < 0.1 * beside[0].stat().st_size
    back = [load_network(tmp_path / f"n-{k}.safetensors").eval() for k in (0, 1)]
    both = Ensemble(back, embeddings=True).eval()
    assert len(both.trunks) == 1
    seen = []
    both.trunks[0].encoder.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        logits, _, embedding = both(pictures(16))
        for k, network in enumerate(networks):
            torch.testing.assert_close(logits[:, k], network(to_unit(pictures(16)))[0][:, 0])
    assert len(seen) == 1 and embedding.shape == (3, 96)
    back[0].encoder.register_forward_hook(lambda *_: seen.append(2))
    back[1].encoder.register_forward_hook(lambda *_: seen.append(2))
    ensemble.member_scores(back, pictures(16).numpy(), CPU)
    assert seen.count(2) == 1

    beside[0].write_bytes(beside[0].read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(InputError, match=r"encoder-.*is not the file"):
        load_network(tmp_path / "n-0.safetensors")
    beside[0].unlink()
    with pytest.raises(InputError, match=r"encoder-.*is missing"):
        load_network(tmp_path / "n-0.safetensors")


def test_heads_learn_on_a_frozen_encoder(folder):
    path, _ = folder("test_convnext")  # random, too, but its features are normalised
    with pytest.raises(InputError, match=r"does not take colour images of 16 px .*try encoder_size"):
        train_classifier(examples(), None, settings(path), steps=1, seed=0, device=CPU)
    shown = settings(path, encoder_frozen=True, encoder_size=32)
    network = train_classifier(examples(), None, shown, steps=60, seed=0, device=CPU)
    held_out = examples(seed=1)
    s = scores(network, held_out)
    assert s[held_out.target == 1].min() > s[held_out.target == 0].max()


def test_fine_tuning_moves_the_encoder_more_slowly_than_the_heads(folder, monkeypatch):
    path, model = folder("test_resnet")
    rates = []
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    tuned = settings(path, encoder_learning_rate=1e-3)
    a, b = (train_classifier(examples(), None, tuned, steps=3, seed=3, device=CPU) for _ in range(2))
    assert not torch.equal(a.encoder.conv1[0].weight, model.conv1[0].weight)
    assert torch.equal(a.target.weight, b.target.weight), (
        "the same seed, the same network: also built from what is kept"
    )
    assert {round(max(step) / min(step), 6) for step in rates} == {10.0}


def test_a_network_of_several_targets_is_taken_apart(folder):
    path, _ = folder("test_resnet")
    joint = start_network(settings(path, encoder_frozen=True), 32, 3, 2).eval()
    with torch.inference_mode():
        whole = joint(to_unit(pictures()))[0]
        for k in range(2):
            one = joint.only(k)
            assert one.trunk_hash() == joint.trunk_hash() and one.config["targets"] == 1
            torch.testing.assert_close(one(to_unit(pictures()))[0][:, 0], whole[:, k])


def test_other_pixels_make_another_trunk(folder):
    path, _ = folder("test_resnet")
    a, b = (start_network(settings(path, encoder_size=s), 32, 1, 1) for s in (0, 64))
    assert a.trunk_hash() != b.trunk_hash() == start_network(settings(path, encoder_size=64), 32, 1, 1).trunk_hash()


def test_what_cannot_be_had_is_refused_in_one_line(folder, tmp_path):
    for name, said in (
        ("resnet81", "not a model of timm .*did you mean .*resnet18"),
        ("resnet18.a1_in1", "available: resnet18.a1_in1k"),
        ("mwalmsley/zoobot-encoder-convnext_nano", "or hf-hub:mwalmsley/zoobot-encoder-convnext_nano"),
        (f"local-dir:{tmp_path}", "no config.json"),
    ):
        with pytest.raises(NotFoundError, match=said) as error:
            find_encoder(name)
        assert "\n" not in str(error.value)
    for name in ("resnet18", "resnet18.a1_in1k", "hf-hub:mwalmsley/zoobot-encoder-convnext_nano"):
        find_encoder(name)
    path, _ = folder("test_resnet", "broken")
    (path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded") as error:
        start_network(settings(path), 32, 1, 1)
    assert "\n" not in str(error.value)
    grey, _ = folder("test_resnet", "grey", in_chans=1)
    with pytest.raises(InputError, match="does not take colour images of 32 px"):
        start_network(settings(grey), 32, 1, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"architecture": "resnet_of_tomorrow"}, "has no model 'resnet_of_tomorrow'"),
     ({"architecture": "test_convnext"}, "not a readable"), ({"args": {"depth": 3}}, "cannot be built"),
     ({"architecture": "local-dir:/etc"}, "has no model"), ({"args": {"checkpoint_path": "x"}}, "not an argument of")],
)  # fmt: skip
def test_a_tampered_network_is_refused_in_one_line(folder, tmp_path, changes, said):
    path, _ = folder("test_resnet")
    network = start_network(settings(path), 32, 2, 1)
    config = network.config
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    config["encoder"] |= changes
    save_file(tensors, tmp_path / "n.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(InputError, match=said) as error:
        load_network(tmp_path / "n.safetensors")
    assert "\n" not in str(error.value) and "n.safetensors" in str(error.value)


@pytest.mark.parametrize("frozen", [True, False])
def test_train_and_scan_without_the_encoder_at_hand(folder, tmp_path, frozen, monkeypatch):
    path, _ = folder("test_resnet")
    sky = ingest_survey(
        SimulatedSurvey(count=500, size=32, seed=1, rare_fraction=0.1, labelled=0.8), tmp_path / "sky.zarr", workers=1
    )
    recipe = tiny_recipe(tmp_path / "dustlane.toml")
    text = recipe.read_text().replace("[classifier]\n", f'[classifier]\nencoder = "{tmp_path / "mine"}"\n')
    recipe.write_text(text.replace("[classifier]\n", f"[classifier]\nencoder_frozen = {str(frozen).lower()}\n"))
    path.rename(tmp_path / "mine")
    try:
        model = galscan.train_rare(str(recipe), store=sky.path, out=tmp_path / "m", device="cpu", synthetic=False)
    finally:
        (tmp_path / "mine").rename(path)  # as on another machine
    assert len(list(model.path.glob("encoder-*"))) == int(frozen)
    how = "frozen" if frozen else "fine-tuned"
    assert f"mine ({how})" in model.summary()["text"] and how in (model.path / "report.html").read_text()
    run = galscan.scan(store=sky.path, model=model.path, out=tmp_path / "run", top=20, workers=1, embeddings=True)
    assert len(run.candidates) == 20
    said = ensemble.load_scorer([model], "cpu", "fp32")(sky.group["images"][:8])
    assert ensemble.embedding_size(model) == 96 and np.isfinite(said.score).all()
    refuse(monkeypatch, "timm", ModuleNotFoundError("No module named 'timm'", name="timm"))
    with pytest.raises(InputError, match="pip install"):
        galscan.scan(store=sky.path, model=model.path, out=tmp_path / "none", workers=1)
    assert not (tmp_path / "none").exists()
