"""Common interface of the generator backends for whole images.

``flow``              the network of this project (`galscan.synthesis.diffusion`): one file, NAME.safetensors
``stable-diffusion``  GalaxySD (`galscan.synthesis.stable_diffusion`): a folder, NAME

`galscan.synthesis.sampling.sample_images` generates images with either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from galscan.core.errors import InputError
from galscan.labels.schema import Schema
from galscan.labels.settings import GeneratorSettings, StableDiffusionSettings
from galscan.synthesis.diffusion import galaxy_training
from galscan.synthesis.diffusion.checkpoint import UNREADABLE
from galscan.synthesis.diffusion.galaxy_model import Generator, load_start, make_config
from galscan.synthesis.galaxies import GalaxySet
from galscan.synthesis.sampling import ImageGenerator
from galscan.synthesis.stable_diffusion import fine_tune
from galscan.synthesis.stable_diffusion.initial_weights import find_initial_weights
from galscan.synthesis.stable_diffusion.model import load_stable_diffusion

AnySettings = GeneratorSettings | StableDiffusionSettings


def check_start(settings: AnySettings) -> None:
    """Raise `InputError` if initial weights are missing or incompatible; those on the hub are downloaded."""
    if isinstance(settings, StableDiffusionSettings):
        find_initial_weights(settings)
    else:
        _flow_start(settings)


def train(
    galaxies: GalaxySet,
    schema: Schema,
    surveys: Sequence[str],
    settings: AnySettings,
    folder: Path,
    *,
    name: str = "generator",
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: Path | None = None,
) -> dict[str, float]:
    """Train a generator and write it to `folder` as `name`; the same call resumes after an interruption.

    Parameters
    ----------
    galaxies : GalaxySet
        Training galaxies; none is held out.
    start : path, optional
        A generator of the same kind, schema and surveys to start from, instead of ``settings.start``.

    Returns
    -------
    dict
        ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps).
    """
    how: dict[str, Any] = {"seed": seed, "device": device, "seconds": seconds}
    if isinstance(settings, StableDiffusionSettings):
        return fine_tune.fine_tune(galaxies, schema, surveys, settings, folder / name, start=start, **how)
    # A generator that starts from another one needs its pixel normalisation.
    initial = Generator.load(start) if start else _flow_start(settings)
    config = initial.config if start and initial else make_config(galaxies.images, schema, surveys, settings.widths)
    out = folder / f"{name}.safetensors"
    return galaxy_training.train_generator(galaxies, config, settings, out, start=initial, **how)


def find(folder: Path, name: str = "generator") -> Path | None:
    """Return the path of the generator of that name in `folder`, or None."""
    return next((path for path in (folder / f"{name}.safetensors", folder / name) if path.exists()), None)


def load(folder: Path, name: str = "generator") -> ImageGenerator:
    """Load a generator written by `train`; one that is missing or damaged raises an `InputError`."""
    if (folder / name).is_dir():
        return load_stable_diffusion(folder / name)
    return Generator.load(folder / f"{name}.safetensors")


def load_named(weights: str) -> ImageGenerator:
    """Load a generator that a user names: "base", a file, or a folder; `InputError` if it is none."""
    generator = load_stable_diffusion(Path(weights)) if Path(weights).is_dir() else load_start(weights)
    if generator is None:
        raise InputError(f"--generator {weights}: name the weights of a generator: a file, a folder or base")
    return generator


def generates_whole_images(weights: str) -> bool:
    """Return whether `weights` generate whole images: a folder, or a file that is not a model of feature maps."""
    if Path(weights).is_dir():
        return True
    try:
        with safe_open(weights, framework="pt") as handle:
            return "feature" not in json.loads(handle.metadata()["config"])
    except UNREADABLE:
        return False


def _flow_start(settings: GeneratorSettings) -> Generator | None:
    start = load_start(settings.start)
    if start is not None:
        start.check_widths(settings.widths)
    return start
