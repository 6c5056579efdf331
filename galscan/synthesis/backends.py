"""Common interface of the generator backends for whole images.

``flow``              the network of this project (`galscan.synthesis.diffusion`): one file, NAME.safetensors
``stable-diffusion``  GalaxySD (`galscan.synthesis.stable_diffusion`): a folder, NAME

`galscan.synthesis.sampling.sample_images` generates images with either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from galscan.core.errors import InputError
from galscan.labels.schema import Schema
from galscan.labels.settings import GeneratorSettings, StableDiffusionSettings
from galscan.synthesis.diffusion import galaxy_training
from galscan.synthesis.diffusion.checkpoint import UNREADABLE
from galscan.synthesis.diffusion.galaxy_model import Generator, load_generator, load_start, make_config
from galscan.synthesis.galaxies import GalaxySet
from galscan.synthesis.sampling import ImageGenerator
from galscan.synthesis.stable_diffusion import fine_tune
from galscan.synthesis.stable_diffusion.model import find_start, load_stable_diffusion

AnySettings = GeneratorSettings | StableDiffusionSettings


def check_start(settings: AnySettings) -> None:
    """Check the initial weights before training starts; weights on the Hugging Face hub are downloaded.

    Raises
    ------
    InputError
        If initial weights are missing or incompatible, or an extra is not installed.
    """
    if isinstance(settings, StableDiffusionSettings):
        find_start(settings.start)
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
    if isinstance(settings, StableDiffusionSettings):
        return fine_tune.fine_tune(
            galaxies, schema, surveys, settings, folder / name, seed=seed, device=device, seconds=seconds, start=start
        )
    # A generator that starts from another one needs its pixel normalisation.
    initial = load_generator(start) if start else _flow_start(settings)
    config = initial.config if start and initial else make_config(galaxies.images, schema, surveys, settings.widths)
    return galaxy_training.train_generator(
        galaxies, config, settings, _flow_file(folder, name), seed=seed, device=device, seconds=seconds,
        start=initial,
    )  # fmt: skip


def find(folder: Path, name: str = "generator") -> Path | None:
    """Return the path of the generator of that name in `folder`, or None."""
    return next((path for path in (_flow_file(folder, name), folder / name) if path.exists()), None)


def load(folder: Path, name: str = "generator") -> ImageGenerator:
    """Load a generator written by `train`.

    Raises
    ------
    InputError
        If it is missing or damaged.
    """
    return (
        load_stable_diffusion(folder / name) if (folder / name).is_dir() else load_generator(_flow_file(folder, name))
    )


def load_named(weights: str) -> ImageGenerator:
    """Load a generator that a user names: "base", a file, or a folder.

    Raises
    ------
    InputError
        If it is no generator.
    """
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


def _flow_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _flow_start(settings: GeneratorSettings) -> Generator | None:
    start = load_start(settings.start)
    if start is not None:
        start.check_widths(settings.widths)
    return start
