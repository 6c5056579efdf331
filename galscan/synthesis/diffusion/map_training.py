"""Training of the diffusion model of a feature's maps on the prior alone: the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.core.progress import track
from galscan.labels.settings import MapSettings
from galscan.synthesis.diffusion.map_model import MapFlow, load_maps_model, make_config, train_maps
from galscan.synthesis.diffusion.maps import SEED, conditions_of
from galscan.synthesis.features.base import FEATURES, base_weights, find_feature, prior_maps

COUNT = 24_000  # maps of the prior
STEPS, BATCH, LEARNING_RATE, EMA = 4000, 32, 1e-3, 0.998  # of the base weights
CHUNK = 1000  # maps whose conditions are computed at a time
MAPS = "maps.npy"  # in the staging folder: sampling the prior takes minutes


def check_feature(name: str) -> None:
    """Check that a feature has a diffusion model.

    Raises
    ------
    InputError
        If it is unknown, or its maps have no conditions.
    """
    if not find_feature(name).CONDITIONS:
        supported = ", ".join(key for key, feature in FEATURES.items() if feature.CONDITIONS)
        raise InputError(
            f"the feature '{name}' has no diffusion model of maps, only a prior; choose one of: {supported}"
        )


def load_weights(feature: str, weights: str) -> MapFlow:
    """Load a diffusion model of a feature's maps: "base", or a path.

    Raises
    ------
    InputError
        If there are no such weights, or they are of another feature.
    """
    path = base_weights(feature) if weights == "base" else Path(weights)
    if path is None:
        raise InputError(
            f"no base weights are shipped for the feature '{feature}'; train some: galscan train-generator --kind maps "
            f"--feature {feature} --out {feature}.safetensors"
        )
    model = load_maps_model(path)
    if model.config.feature != feature:
        raise InputError(f"{path} samples maps of '{model.config.feature}', not of '{feature}'")
    return model


def train_on_prior(
    feature: str,
    count: int,
    settings: MapSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: MapFlow | None = None,
) -> dict[str, Any]:
    """Train the diffusion model of a feature's maps on `count` maps of its prior; an interrupted call resumes.

    Parameters
    ----------
    out : path
        The weights; the maps are stored beside them as `MAPS`.
    start : MapFlow, optional
        Weights to start from, with their configuration.

    Returns
    -------
    dict
        ``steps``, ``seconds``, ``loss`` (mean over the last tenth of the steps) and ``maps``.
    """
    maps = _maps(feature, count, out.with_name(MAPS))
    values = np.concatenate(
        [conditions_of(feature, maps[first : first + CHUNK], measured=False) for first in range(0, count, CHUNK)]
    )
    config = start.config if start else make_config(feature, find_feature(feature).CONDITIONS, maps, settings.widths)
    outcome = train_maps(
        maps, values, np.ones(count), config, out, steps=settings.steps, batch=settings.batch,
        learning_rate=settings.learning_rate, ema=settings.ema, seed=seed, device=device, seconds=seconds, start=start,
    )  # fmt: skip
    return {**outcome, "maps": count}


def _maps(feature: str, count: int, path: Path) -> np.ndarray:
    if path.is_file():
        return np.load(path, allow_pickle=False)
    with track("sample maps from the prior", count, "map") as advance:
        maps = prior_maps(feature, count, SEED)
        advance(count)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, maps, allow_pickle=False)
    return maps
