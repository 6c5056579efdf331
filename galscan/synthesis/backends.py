"""The kinds of generator there are; who teaches, opens or uses one need not know which it is.

``flow``              the network of this project (`model`, `train`): one file, NAME.safetensors
``stable-diffusion``  GalaxySD (`stable_diffusion`, `fine_tune`): a folder, NAME

Both dream by `galscan.synthesis.sampling.sample_images`.
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
    """Refuse what cannot be started from, before anything long begins; weights that are far away are fetched.

    Raises
    ------
    InputError
        If weights to start from are missing or do not fit, or an extra is not installed.
    """
    if isinstance(settings, StableDiffusionSettings):
        find_start(settings.start)
    else:
        _flow_start(settings)


def teach(
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
    """Train a generator and keep it in `folder` under `name`; an interrupted call goes on.

    Parameters
    ----------
    galaxies : GalaxySet
        All that it may ever see: no object that is held out.
    start : path, optional
        A generator of the same kind, schema and surveys to go on from, instead of ``settings.start``.

    Returns
    -------
    dict
        ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps).
    """
    if isinstance(settings, StableDiffusionSettings):
        return fine_tune.fine_tune(
            galaxies, schema, surveys, settings, folder / name, seed=seed, device=device, seconds=seconds, start=start
        )
    # Going on from another, pixels must mean the same.
    begin = load_generator(start) if start else _flow_start(settings)
    config = begin.config if start and begin else make_config(galaxies.images, schema, surveys, settings.widths)
    return galaxy_training.train_generator(
        galaxies, config, settings, _file(folder, name), seed=seed, device=device, seconds=seconds,
        start=begin,
    )  # fmt: skip


def find(folder: Path, name: str = "generator") -> Path | None:
    """Return the generator of that name in `folder`, if there is one."""
    return next((path for path in (_file(folder, name), folder / name) if path.exists()), None)


def load(folder: Path, name: str = "generator") -> ImageGenerator:
    """Open what `teach` kept in `folder`.

    Raises
    ------
    InputError
        If it is not there, or damaged.
    """
    return load_stable_diffusion(folder / name) if (folder / name).is_dir() else load_generator(_file(folder, name))


def load_named(weights: str) -> ImageGenerator:
    """Open a generator by what a user calls it: "base", a file, or a folder.

    Raises
    ------
    InputError
        If it is none.
    """
    found = load_stable_diffusion(Path(weights)) if Path(weights).is_dir() else load_start(weights)
    if found is None:
        raise InputError(f"--generator {weights}: name weights to dream with, a file, a folder or base")
    return found


def draws_whole_images(weights: str) -> bool:
    """Return whether weights that a user names draw whole images: a folder, or a file that is no model of maps."""
    if Path(weights).is_dir():
        return True
    try:
        with safe_open(weights, framework="pt") as handle:
            return "feature" not in json.loads(handle.metadata()["config"])
    except UNREADABLE:
        return False


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _flow_start(settings: GeneratorSettings) -> Generator | None:
    start = load_start(settings.start)
    if start is not None:
        start.check_widths(settings.widths)
    return start
