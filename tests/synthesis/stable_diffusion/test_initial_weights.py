"""Initial weights of Stable Diffusion, with tiny checkpoints in the form of those that were released."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from galscan.core.errors import InputError, NotFoundError
from galscan.labels.recipe import validated
from galscan.labels.settings import GALAXYSD, STABLE_DIFFUSION, StableDiffusionSettings
from galscan.synthesis.stable_diffusion import initial_weights
from galscan.synthesis.stable_diffusion.initial_weights import (
    COMPONENTS,
    InitialWeights,
    find_initial_weights,
    latest_checkpoints,
    open_initial_weights,
)
from galscan.synthesis.stable_diffusion.model import open_pipeline
from tests.helpers import fill_hub_cache, released_checkpoints

UNET, TEXT = (f"{name}-10000.safetensors" for name in COMPONENTS)


def settings(start: Path | str, base: Path | str = STABLE_DIFFUSION) -> StableDiffusionSettings:
    given = {"kind": "stable-diffusion", "start": str(start), "base": str(base)}
    return validated(StableDiffusionSettings, "generator", given)


@pytest.fixture
def release(tiny_sd, tmp_path) -> Path:
    return released_checkpoints(tiny_sd, tmp_path / "release")


def weights(pipeline: Any, component: str) -> dict[str, torch.Tensor]:
    return {key: value.detach() for key, value in getattr(pipeline, component).named_parameters()}


@pytest.mark.parametrize("average", [True, False])
def test_a_release_replaces_every_weight_of_unet_and_text_encoder(tiny_sd, tmp_path, average):
    release = released_checkpoints(tiny_sd, tmp_path / "release", average=average)
    found = find_initial_weights(settings(release, tiny_sd))
    assert found == InitialWeights(tiny_sd, {"unet": release / UNET, "text_encoder": release / TEXT})
    loaded, base = open_initial_weights(found), open_pipeline(tiny_sd)
    section = "base_ema" if average else "base"
    for component, prefix in zip(COMPONENTS, ("", "text_model."), strict=True):
        stored = load_file(release / f"{component}-10000.safetensors")
        before = weights(base, component)
        for key, value in weights(loaded, component).items():
            assert torch.equal(value, stored[f"{section}:{prefix}{key}"]) and not torch.equal(value, before[key]), key
    assert all(torch.equal(v, weights(base, "vae")[k]) for k, v in weights(loaded, "vae").items())


def test_a_folder_of_diffusers_is_used_as_it_is(tiny_sd, tmp_path):
    found = find_initial_weights(settings(tiny_sd))
    assert found == InitialWeights(tiny_sd)
    loaded = weights(open_initial_weights(found), "unet")
    assert all(torch.equal(value, loaded[key]) for key, value in weights(open_pipeline(tiny_sd), "unet").items())


@pytest.mark.parametrize("names", [["base"], ["release"], ["base", "release"]])
def test_names_on_the_hub_are_found_in_its_cache(tiny_sd, release, tmp_path, monkeypatch, names):
    """With the base model alone, or the checkpoints alone, there is a remedy for what is missing."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sources = {"base": (STABLE_DIFFUSION, tiny_sd), "release": (GALAXYSD, release)}
    fill_hub_cache(tmp_path, dict(sources[name] for name in names))
    if len(names) == 2:
        found = find_initial_weights(settings(GALAXYSD))
        assert found.folder.parent.parent.name.endswith("stable-diffusion-v1-5")
        assert load_file(found.checkpoints["unet"]).keys() == load_file(release / UNET).keys()
    else:
        absent = {"base": f"generator.start = '{GALAXYSD}'", "release": f"generator.base = '{STABLE_DIFFUSION}'"}
        with pytest.raises(NotFoundError) as error:
            find_initial_weights(settings(GALAXYSD))
        assert absent[names[0]] in str(error.value) and "\n" not in str(error.value)


def test_only_the_latest_checkpoints_of_a_repository_are_downloaded(tiny_sd, release, tmp_path, monkeypatch):
    import huggingface_hub
    import huggingface_hub.constants as constants

    files = ["README.md", "ckpts/unet-2000.safetensors", "ckpts/text_encoder-2000.safetensors", UNET, TEXT]
    wanted = []

    def download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        wanted.extend(allow_patterns)
        return str(release)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_initial_weights(settings("some/weights", tiny_sd)).checkpoints["unet"] == release / UNET
    assert wanted == [UNET, TEXT]


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.sampled_from(["", "a/", "exps/b/ckpts/"]))
def test_the_latest_checkpoints_are_the_last_that_are_complete(unet, text, folder):
    files = [f"{folder}unet-{k}.safetensors" for k in unet] + [f"{folder}text_encoder-{k}.safetensors" for k in text]
    if not unet & text:
        with pytest.raises(InputError):
            latest_checkpoints([*files, f"{folder}unet-9-neg.safetensors"], "x")
    else:
        steps = max(unet & text)
        expected = {name: f"{folder}{name}-{steps}.safetensors" for name in COMPONENTS}
        assert latest_checkpoints([*files, "vae-40.safetensors", "xunet-40.safetensors"], "x") == expected


def test_two_checkpoints_of_the_same_steps_are_ambiguous(release):
    (release / "other").mkdir()
    shutil.copy(release / UNET, release / "other" / UNET)
    with pytest.raises(InputError, match=f"other/{UNET}"):
        find_initial_weights(settings(release))


def edit(path: Path, change: Any) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def put(key: str, value: torch.Tensor) -> Any:
    return lambda tensors: tensors.update({key: value})


BIAS = "base_ema:conv_in.bias"


def take(key: str) -> Any:
    return lambda tensors: tensors.pop(key)


@pytest.mark.parametrize(
    ("damage", "offending"),
    [
        (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-9]), f"{UNET} is cut off or damaged"),
        (lambda f: (f / TEXT).write_bytes(b""), f"{TEXT} is cut off or damaged"),
        (lambda f: (f / TEXT).unlink(), f"no {TEXT}"),
        (lambda f: edit(f / UNET, put("lora:a.weight", torch.ones(1))), "lora:a.weight"),
        (lambda f: edit(f / UNET, put("base:conv_in.other", torch.ones(1))), "base:conv_in.other"),
        (lambda f: edit(f / UNET, put("conv_in.weight", torch.ones(1))), "conv_in.weight"),
        (lambda f: edit(f / UNET, put("base:embeddings.position_ids", torch.ones(1))), "base:embeddings.position_ids"),
        (lambda f: edit(f / UNET, put(BIAS, torch.ones(3))), f"{BIAS} [3] instead of [16]"),
        (lambda f: edit(f / UNET, take(BIAS)), f"lacks: {BIAS}"),
        (lambda f: edit(f / UNET, take("base:conv_in.bias")), "lacks: base:conv_in.bias"),
        (lambda f: edit(f / UNET, dict.clear), "lacks: base:"),
        (lambda f: edit(f / UNET, put(BIAS, torch.full((16,), torch.nan))), BIAS),
        (lambda f: edit(f / UNET, put(BIAS, torch.ones(16, dtype=torch.int8))), BIAS),
        (lambda f: shutil.move(f / TEXT, f / UNET), f"no {TEXT}"),
        (lambda f: shutil.copy(f / UNET, f / TEXT), "base:conv_in.bias"),
    ],
)  # fmt: skip
def test_damaged_checkpoints_are_an_error(tiny_sd, release, damage, offending):
    damage(release)
    with pytest.raises(InputError) as error:
        open_initial_weights(find_initial_weights(settings(release, tiny_sd)))
    assert offending in str(error.value) and "\n" not in str(error.value)


def test_a_text_encoder_of_another_base_model_is_an_error(tiny_sd, tmp_path):
    from tests.helpers import tiny_stable_diffusion

    wider = released_checkpoints(tiny_stable_diffusion(tmp_path / "wider", room=40), tmp_path / "release")
    with pytest.raises(
        InputError, match=r"position_embedding.weight \[40, 32\] instead of \[32, 32\].*generator\.base"
    ):
        find_initial_weights(settings(wider, tiny_sd))


def test_what_is_no_start_is_an_error(tiny_sd, release, tmp_path):
    with pytest.raises(InputError, match=r"has neither model_index\.json nor unet-STEPS"):
        find_initial_weights(settings(tiny_sd / "vae"))
    with pytest.raises(InputError, match="is a file"):
        find_initial_weights(settings(release / UNET))
    with pytest.raises(InputError, match=r"generator\.base = .* has no model_index\.json"):
        find_initial_weights(settings(release, tiny_sd / "vae"))
    with pytest.raises(NotFoundError, match=r"generator\.start = './nowhere' does not exist"):
        find_initial_weights(settings("./nowhere"))
    with pytest.raises(NotFoundError, match=r"generator\.base = '/nowhere' does not exist"):
        find_initial_weights(settings(release, "/nowhere"))


def test_without_a_network_the_remedy_is_one_line(monkeypatch):
    def unreachable(*_):
        raise OSError("Network is unreachable\nsecond line")

    for name in ("_cached_pipeline", "_cached_checkpoints", "_download"):
        monkeypatch.setattr(initial_weights, name, unreachable)
    with pytest.raises(NotFoundError) as error:
        find_initial_weights(settings("owner/name"))
    assert error.value.exit_code == 2 and "owner/name" in str(error.value) and "\n" not in str(error.value)
