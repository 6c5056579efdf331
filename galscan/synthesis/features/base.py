"""Features that make a galaxy a target, and what any of them must be able to do.

A feature is a module with one map of it, in the frame of a host galaxy, and four functions: `prior` draws maps from
physics, `measure` measures them on galaxies that show the feature, `describe` says what a map shows (the conditions of
the diffusion model), and `inject` puts a map on a host. To add one, write such a module, name it in `FEATURES`, and in
`galscan.labels.settings.InjectRule`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from galscan.core.errors import InputError, nearest
from galscan.synthesis.features import artefact, dust_lane
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

PRIOR_BLOCK = 1000  # maps that share one random generator


class Feature(Protocol):
    """What every feature has."""

    CONDITIONS: Mapping[str, tuple[float, float]]
    """What `describe` measures, with the range of each; a feature without any has no diffusion model."""
    LEAST_DEPTH: float
    """Below this `inject`'s depth nobody sees it: it is left out."""

    def prior(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw maps from physics, float32, shape (count, channels, side, side)."""

    def describe(self, maps: np.ndarray) -> np.ndarray:
        """Measure `CONDITIONS` on maps; float32, shape (n, conditions)."""

    def measure(
        self, images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure maps on galaxies; return them, and which of them are usable (bool)."""

    def inject(
        self,
        images: np.ndarray,
        hosts: Hosts,
        maps: np.ndarray,
        stretch: Stretch,
        random: np.random.Generator,
        *,
        bands: str = "irg",
        seeing: np.ndarray | float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Put a map on each host; return the pictures, and how plainly each feature is seen (depth, 0..1)."""


FEATURES: dict[str, Feature] = {"dust_lane": dust_lane, "artefact": artefact}


def find_feature(name: str) -> Feature:
    """Return the feature of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in FEATURES:
        raise InputError(f"unknown feature '{name}'{nearest(name, FEATURES)}")
    return FEATURES[name]


def prior_maps(name: str, count: int, seed: int) -> np.ndarray:
    """Draw `count` maps from a feature's prior as float16: map k is the same however many follow."""
    feature = find_feature(name)
    blocks = range(max(1, -(-count // PRIOR_BLOCK)))
    parts = [feature.prior(PRIOR_BLOCK, np.random.default_rng([seed, k])).astype(np.float16) for k in blocks]
    return np.concatenate(parts)[:count]


def base_weights(name: str) -> Path | None:
    """Return the path of the base weights that are shipped for a feature's diffusion model; None if there are none."""
    path = importlib.resources.files("galscan.synthesis.features") / f"{name}.safetensors"
    return Path(str(path)) if path.is_file() else None
