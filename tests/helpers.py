"""Small stores and models for tests: random, seeded, built in a blink."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from galscan.store import layout
from galscan.surveys.base import Flag


def tiny_store(
    path: Path, count: int = 600, size: int = 32, *, seed: int = 0, survey: str = "tiny", unusable: int = 0
) -> layout.Store:
    """Write a store of random blobs; the last `unusable` rows carry flags that forbid scoring."""
    rng = np.random.default_rng(seed)
    group = layout.create(
        path, survey=survey, count=count, size=size, id_dtype=np.dtype("int64"), schemas={}, provenance={"seed": seed}
    )
    images = _blobs(rng, count, size)
    flags = np.zeros(count, "uint8")
    if unusable:
        images[-unusable:] = 0
        flags[-unusable:] = np.resize([Flag.MISSING, Flag.UNREADABLE, Flag.BLANK], unusable)
    group["images"][:] = images
    group["id"][:] = np.arange(count) + 1000 * (seed + 1)
    group["ra"][:] = rng.uniform(0, 360, count)
    group["dec"][:] = rng.uniform(-60, 60, count)
    group["pixel_scale"][:] = 0.4
    group["flags"][:] = flags
    layout.finish(path, f"tiny-{seed}-{count}-{size}-{unusable}")
    return layout.open_store(path)


def _blobs(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    width = rng.uniform(2, size / 4, (count, 1, 1, 1))
    blob = 200 * np.exp(-((x**2 + y**2)[None, ..., None]) / (2 * width**2)) * rng.uniform(0.3, 1, (count, 1, 1, 3))
    return np.clip(blob + rng.normal(10, 4, blob.shape), 0, 255).astype("uint8")


def tiny_model(
    path: Path, target: str = "dustlane", size: int = 32, seed: int = 0, members: int = 1, schema: str = "simulated",
    networks=None, recipe=None,
):  # fmt: skip
    """Write a model with random weights (or `networks`), calibrated with blobs like those of `tiny_store`."""
    import torch

    from galscan.labels.recipe import load_recipe
    from galscan.labels.schema import load_schema
    from galscan.models import model
    from galscan.models.ensemble import member_scores
    from galscan.models.network import GalaxyNet
    from galscan.stats import calibration

    recipe = recipe or load_recipe(target)
    answers = load_schema(schema).complete(recipe.schemas[schema].morphology)
    torch.manual_seed(seed)
    networks = networks or [GalaxyNet(8, len(answers)).eval() for _ in range(members)]
    rng = np.random.default_rng(seed)
    scores = member_scores(networks, _blobs(rng, 330, size), torch.device("cpu")).mean(0)[:, 0]
    best = np.argsort(-scores - 0.5 * scores.std() * rng.normal(size=330))[:30]
    targets = np.isin(np.arange(330), best).astype(int)
    splits = pd.DataFrame({
        "store": "tiny", "id": [str(i) for i in (990, 991, *range(1000, 1010))],
        "split": ["calibration"] * 2 + ["train"] * 10, "target": [1, 0] + [1] * 5 + [0] * 5,
    })  # fmt: skip
    return model.write_model(
        path, recipe=recipe, target=target, schema=load_schema(schema), size=size, seed=seed, answers=answers,
        networks=networks, calibration=calibration.fit(scores, targets), splits=splits,
        metrics={"real_only": None, "real_plus_synthetic": None, "chosen": "real_only"},
    )  # fmt: skip


tiny_bundle = tiny_model  # its old name

_TINY_NETWORKS = """
[classifier]
width = 8
members = 2
steps = 8
batch = 16
[prefilter]
steps = 0
[purity]
bootstrap = 30
"""
# Whole images, of a generator that starts from nothing.
TINY_SETTINGS = (
    """
[generator]
widths = [32, 32]
start = "none"
steps = 3
batch = 4
[synthetic]
injected = 0
positives = 6
negatives = 8
steps = 2
"""
    + _TINY_NETWORKS
)
# A feature injected, whose maps are sampled from the prior.
TINY_INJECTED = (
    """
[generator]
kind = "maps"
maps = "prior"
[synthetic]
injected = 32
positives = 0
"""
    + _TINY_NETWORKS
)


def tiny_recipe(path: Path, target: str = "dustlane", size: int = 32, *, whole: bool = False) -> Path:
    """Write the shipped recipe of `target` with settings that train in seconds.

    As the recipe does, it injects a feature, or samples whole images; with `whole` it does the latter in any case.
    """
    from galscan.labels.recipe import load_recipe

    recipe = load_recipe(target)
    text = re.sub(r"^size = \d+", f"size = {size}", recipe.text, count=1, flags=re.MULTILINE)
    tables = r"^\[(generator|synthetic|classifier|prefilter|purity)\]\n.*?(?=^\[|\Z)"
    text = re.sub(tables, "", text, flags=re.MULTILINE | re.DOTALL)
    settings = TINY_INJECTED if recipe.generator.kind == "maps" and not whole else TINY_SETTINGS
    path.write_text(text + settings, encoding="utf-8")
    return path


OWN_SCHEMA = """name = "mine"
title = "What I saw"
kind = "attributes"
reference = "my notebook"
[[answer]]
name = "odd"
low = 1
high = 9
"""


def keep_all(synthetic, *_) -> pd.DataFrame:
    """Stand in for `galscan.synthesis.evaluation.filter_synthetic`: which drops all after 3 steps."""
    return pd.DataFrame({"kept": np.ones(len(synthetic), bool), "reason": ""})


def tiny_stable_diffusion(
    path: Path, *, size: int = 16, room: int = 32, predicts: str = "epsilon", seed: int = 0
) -> Path:
    """Write a Stable Diffusion of random weights, in the form of diffusers: it works at `size` px and reads letters.

    Its autoencoder has almost no variance, and its scale gives latents a standard deviation of 1.
    """
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.:-"]
    merges = [("l", "a"), ("la", "t"), ("lat", "e</w>"), ("e", "a"), ("ea", "r"), ("ear", "l"), ("earl", "y</w>")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters), *map("".join, merges)]
    tokenizer = CLIPTokenizer(
        vocab={word: k for k, word in enumerate(words)}, merges=merges, model_max_length=room
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=room, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=size // 2, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        sample_size=size,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -20  # log of the variance
        spread = vae.encode(torch.rand(64, 1, size, size).expand(-1, 3, -1, -1) * 2 - 1).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=1 / float(spread))
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=predicts,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def released_checkpoints(base: Path, path: Path, *, average: bool = True, steps: int = 10_000) -> Path:
    """Write checkpoints over the Stable Diffusion in `base`, in the form of HCP-Diffusion, to the folder `path`.

    Those of the text encoder have the names of transformers 4. All weights differ from the base model's, and the moving
    averages from the weights.
    """
    import torch
    from safetensors.torch import load_file, save_file

    path.mkdir()
    for component, prefix in {"unet": "", "text_encoder": "text_model."}.items():
        (file,) = (base / component).glob("*.safetensors")
        weights = {prefix + key: value for key, value in load_file(file).items()}
        tensors = {f"base:{key}": value + 0.5 for key, value in weights.items()}
        if average:
            tensors |= {f"base_ema:{key}": value + 0.25 for key, value in weights.items()}
            if component == "text_encoder":
                tensors["base_ema:text_model.embeddings.position_ids"] = torch.arange(32)[None]
        save_file(tensors, path / f"{component}-{steps}.safetensors")
    return path


def fill_hub_cache(cache: Path, repositories: Mapping[str, Path]) -> None:
    """Copy folders into a cache of the Hugging Face hub, as its repositories of these names."""
    for name, source in repositories.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(source, folder / "snapshots" / "0a")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0a")
