"""Seams between the frames of a survey: thin dark lines across a picture, which a careless network takes for dust.

A seam is grey, dust is red. Injected into clean galaxies it makes negatives, never targets. Its map is four numbers:
how far from the galaxy's centre it passes (half-light radii), its angle to the rows or columns (radians), its width
(pixels) and how much of the light is missing there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from galscan.errors import InputError
from galscan.generate.flux import Stretch
from galscan.generate.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.0


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw seams, float32, shape (count, 1, 1, 4)."""
    columns = [
        random.normal(0, 0.6, count), random.normal(0, 0.05, count) + random.integers(2, size=count) * np.pi / 2,
        random.uniform(0.3, 1.2, count), random.uniform(0.3, 1.0, count),
    ]  # fmt: skip
    return np.stack(columns, 1).astype(np.float32)[:, None, None]


def describe(maps: np.ndarray) -> np.ndarray:
    """Return nothing: there is no diffusion model of seams."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Refuse: seams are drawn, not measured.

    Raises
    ------
    InputError
        Always.
    """
    raise InputError("the feature 'seam' is not measured on galaxies; take 'measure' out of the recipe's rule for it")


def inject(
    images: np.ndarray,
    hosts: Hosts,
    maps: np.ndarray,
    stretch: Stretch,
    random: np.random.Generator,
    *,
    bands: str = "irg",
    seeing: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a seam across each picture: all bands are dimmed alike, without seeing, as the detector had no pixels there.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        The fraction of the light that is missing.
    """
    size = images.shape[1]
    row, column = np.indices((size, size), np.float32)
    offset, angle, width, depth = maps.reshape(len(maps), 4).T
    injected = np.empty_like(images)
    for k in range(len(images)):
        across = (column - hosts.x[k]) * np.sin(angle[k]) - (row - hosts.y[k]) * np.cos(angle[k])
        dark = depth[k] * np.exp(-((np.abs(across - offset[k] * hosts.radius[k]) / width[k]) ** 4))
        injected[k] = np.rint(stretch.to_pixels(stretch.to_flux(images[k]) * (1 - dark[..., None])))
    return injected, depth
