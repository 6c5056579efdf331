"""Lines that no galaxy drew, and that a careless network takes for dust: seams between frames, bad columns, trails.

A seam or a bad column is grey, dust is red; a satellite crosses one exposure, so its trail is bright in one band.
Injected into clean galaxies they make negatives, never targets. A map is eight numbers: how far from the galaxy's
centre the line passes (half-light radii), its angle to the rows (radians), its half-width (pixels), where it begins and
ends along itself (in half sides of the picture, from the foot of the centre), and for each of red, green and blue what
it does there: below zero the fraction of the light that is missing, above zero the light added, in units of the
brightest pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from galscan.core.errors import InputError
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.0
TRAILS = 0.25  # fraction of the lines that are bright
BEYOND = 10.0  # half sides: outside any picture


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw lines, float32, shape (count, 1, 1, 8).

    Two in three run along rows or columns, as in frames that were not turned; half of them end inside the picture.
    """
    across = random.integers(2, size=count) * np.pi / 2 + random.normal(0, 0.1, count)
    angle = np.where(random.random(count) < 2 / 3, across, random.uniform(0, np.pi, count))
    ends = random.uniform(0.1, 1, (2, count))
    ends[random.random((2, count)) < 0.7] = BEYOND
    missing = np.where(random.random(count) < 0.5, 1.0, random.uniform(0.3, 1, count))
    colour = -np.tile(missing[:, None], 3)
    bright = random.random(count) < TRAILS
    band = random.integers(3, size=count)
    added = np.exp(random.uniform(np.log(0.01), np.log(0.5), count))
    colour[bright] = (added[:, None] * np.where(np.arange(3) == band[:, None], 1, 0.1))[bright]
    columns = [random.normal(0, 0.6, count), angle, random.uniform(0.3, 1.2, count), -ends[0], ends[1], *colour.T]
    return np.stack(columns, 1).astype(np.float32)[:, None, None]


def describe(maps: np.ndarray) -> np.ndarray:
    """Return nothing: there is no diffusion model of lines."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Refuse: artefacts are drawn, not measured.

    Raises
    ------
    InputError
        Always.
    """
    raise InputError("the feature 'artefact' is not measured on galaxies; take 'measure' out of the recipe's rule")


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
    """Draw a line across each picture, without seeing: the detector had no pixels there, or something passed in focus.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        The fraction of the light that is missing, or of the brightest pixel that is added.
    """
    size = images.shape[1]
    row, column = np.indices((size, size), np.float32)
    lines = maps.reshape(len(maps), 8)
    injected = np.empty_like(images)
    for k, (offset, angle, width, begin, end, *colour) in enumerate(lines):
        right, down = column - hosts.x[k], row - hosts.y[k]
        across = right * np.sin(angle) - down * np.cos(angle)
        along = (right * np.cos(angle) + down * np.sin(angle)) / (size / 2)
        there = np.exp(-((np.abs(across - offset * hosts.radius[k]) / width) ** 4)) * ((along > begin) & (along < end))
        there, tint = there[..., None].astype(np.float32), np.array(colour, np.float32)
        flux = stretch.to_flux(images[k])
        flux = flux * (1 + there * np.minimum(tint, 0)) + there * np.maximum(tint, 0) * flux.max()
        injected[k] = np.rint(stretch.to_pixels(flux))
    return injected, np.abs(lines[:, 5:]).max(1)
