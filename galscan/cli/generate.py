"""``galscan generate`` and ``train-generator``: synthetic galaxies, and the weights that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import (
    Budget,
    Device,
    DryRun,
    Json,
    Seed,
    Stores,
    Surveys,
    Target,
    command,
    number,
    option,
    pair,
)


def _interval(text: str) -> tuple[str, tuple[float, float]]:
    answer, bounds = pair(text)
    low, _, high = bounds.partition(":")
    return answer, (number(low), number(high or low))


def _weight(text: str) -> tuple[str, float]:
    answer, value = pair(text)
    return answer, number(value)


@command("generate", "--target dustlane --count 48 --out images/")
def generate(
    target: Target,
    count: Annotated[int, option("Number of synthetic galaxies.", min=1)],
    out: Annotated[Path, option("A folder of PNG images, or a store if it ends in .zarr.")],
    model: Annotated[Path | None, option("Trained model: its generator, its predictions of hosts.")] = None,
    generator: Annotated[str | None, option("Other weights (with --store): a file, folder, base; maps: prior.")] = None,
    store: Stores = None,
    base: Annotated[str | None, option("Rule for the real galaxies (hosts or conditions).", "--from")] = None,
    values: Annotated[
        list[str] | None,
        option("ANSWER=LOW:HIGH, range of a condition (whole images); repeatable.", "--set", parser=_interval),
    ] = None,
    weights: Annotated[
        list[str] | None,
        option("ANSWER=W, guidance weight of an answer (whole images); repeatable.", "--weight", parser=_weight),
    ] = None,
    guidance: Annotated[float | None, option("Guidance scale (whole images); 1 = none.", min=0)] = None,
    steps: Annotated[int | None, option("Sampling steps (whole images).", min=1)] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make synthetic galaxies of a rare class. Injects a feature into real galaxies, or samples whole images."""


@command("train-generator", "--out base.safetensors")
def train_generator(
    out: Annotated[Path, option("Weights to write, .safetensors; Stable Diffusion: a folder.")],
    kind: Annotated[str, option("flow, stable-diffusion, or maps (of a feature, trained on its prior).")] = "flow",
    feature: Annotated[str | None, option("Feature of the maps; default: dust_lane.")] = None,
    survey: Surveys = None,
    store: Stores = None,
    schema: Annotated[str | None, option("Labels used as conditions, e.g. efigi.")] = None,
    size: Annotated[int | None, option("Image size in pixels (simulated); default: 64.", min=16, max=512)] = None,
    count: Annotated[int | None, option("Galaxies to simulate (40,000), or maps (24,000).", min=16)] = None,
    steps: Annotated[
        int | None,
        option("Steps; default: 4,500, maps 4,000, Stable Diffusion 10,000 (0: the weights of --start).", min=0),
    ] = None,
    batch: Annotated[int | None, option("Galaxies or maps per step; default: 16, maps 32.", min=1)] = None,
    lora: Annotated[int | None, option("Stable Diffusion: train only LoRA adapters of this rank.", min=0)] = None,
    resolution: Annotated[int | None, option("Stable Diffusion: image size in pixels; default: 424.", min=16)] = None,
    start: Annotated[
        str | None,
        option("Start from: none, base, or a file; Stable Diffusion: a folder, or a name on the Hugging Face hub."),
    ] = None,
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train only a generator: the base weights, or your own. Run the same command to resume."""
