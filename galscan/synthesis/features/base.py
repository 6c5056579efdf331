"""Interface and registry of the features that can be injected.

A feature is described by a map in the frame of a host galaxy: an image, such as an extinction map, or a few parameters.
Its module has five functions: `prior` samples maps from a physical prior, `measure` measures them on galaxies with the
feature, `describe` computes the conditions of the diffusion model from maps, `inject` applies a map to a host, and
`deepen` makes maps more visible. A feature without conditions has no diffusion model. A feature of
`galscan.labels.settings.WITHOUT_PRIOR` has no prior either: its module has `variants`, which makes maps like the
measured ones. To add a feature, write such a module
and name it in `FEATURES` and in `galscan.labels.settings.InjectRule`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from galscan.core.errors import InputError, nearest
from galscan.labels.settings import WITHOUT_PRIOR
from galscan.synthesis.features import artefact, companion, dust_lane, lens, residual, ring, star, tidal
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

PRIOR_BLOCK = 1000  # maps that share one random generator


class Feature(Protocol):
    """Interface of a feature module."""

    CONDITIONS: Mapping[str, tuple[float, float]]
    """Conditions that `describe` measures, with their ranges; without any there is no diffusion model."""
    LEAST_DEPTH: float
    """Depth of `inject` below which the feature is invisible and is dropped."""
    DONORS: bool
    """Whether the feature is the light of other galaxies: then `inject` takes `donors`, a
    `galscan.synthesis.hosts.Donors` with one galaxy for each host, none of which is the host itself."""

    def prior(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Sample maps from the physical prior, float32, shape (count, channels, height, width).

        A feature without a prior returns no maps if `count` is 0, and raises `InputError` otherwise.
        """

    def deepen(self, maps: np.ndarray, factor: float) -> np.ndarray:
        """Return maps whose features are `factor` times as strong, e.g. in optical depth or in added light."""

    def describe(self, maps: np.ndarray) -> np.ndarray:
        """Measure `CONDITIONS` on maps; float32, shape (n, conditions)."""

    def measure(
        self, images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure maps on galaxies; return maps and a mask of the usable ones.

        Raises `InputError` if the feature cannot be measured.
        """

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
        """Apply a map to each host; return the images and the visible depth of each feature (0..1).

        A depth of 0 is an invisible feature, also where the host is unsuitable, e.g. too small.
        """


FEATURES: dict[str, Feature] = {
    "dust_lane": dust_lane, "artefact": artefact, "ring": ring, "lens": lens, "companion": companion, "tidal": tidal,
    "star": star, "residual": residual,
}  # fmt: skip


def find_feature(name: str) -> Feature:
    """Return the feature of that name; raises `InputError` if there is no such feature."""
    if name not in FEATURES:
        raise InputError(f"unknown feature '{name}'{nearest(name, FEATURES)}")
    return FEATURES[name]


def has_model(name: str) -> bool:
    """Return whether there is a diffusion model of the feature's maps, and not only a prior."""
    return bool(find_feature(name).CONDITIONS)


def has_prior(name: str) -> bool:
    """Return whether the feature has a physical prior; without, its maps are variants of measured ones."""
    return name not in WITHOUT_PRIOR


def prior_maps(name: str, count: int, seed: int) -> np.ndarray:
    """Sample `count` maps from a feature's prior as float16; map k does not depend on `count`."""
    feature = find_feature(name)
    blocks = range(max(1, -(-count // PRIOR_BLOCK)))
    maps = [feature.prior(PRIOR_BLOCK, np.random.default_rng([seed, k])).astype(np.float16) for k in blocks]
    return np.concatenate(maps)[:count]


def base_weights(name: str) -> Path | None:
    """Return the path of the shipped base weights of a feature's diffusion model, or None."""
    path = importlib.resources.files("galscan.synthesis.features") / f"{name}.safetensors"
    return Path(str(path)) if path.is_file() else None
