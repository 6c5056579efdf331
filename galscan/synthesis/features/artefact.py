"""Linear image artefacts that resemble dust lanes: seams between frames, bad columns, satellite trails.

Seams and bad columns are grey, dust reddens; a satellite crosses one exposure, so its trail is bright in one band.
Injected into clean galaxies, artefacts make negatives, never targets. A map has eight numbers: distance of the line
from the galaxy's centre (half-light radii), its angle to the rows (radians), half-width (pixels), start and end along
the line (in half sides of the image, from the point nearest to the centre), and for red, green and blue the fraction of
light lost (negative) or the light added in units of the brightest pixel (positive).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from galscan.core.errors import InputError
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.0
DONORS = False
TRAILS = 0.25  # fraction of the lines that are bright trails
BEYOND = 10.0  # half sides: outside any image


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample lines, float32, shape (count, 1, 1, 8).

    Two in three run along rows or columns, as in frames that were not rotated; half of them end inside the image.
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


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return lines that take or add `factor` times as much light."""
    deeper = maps.copy()
    deeper[..., 5:] = np.maximum(maps[..., 5:] * factor, -1)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of lines."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Raise an `InputError`: artefacts are only injected."""
    raise InputError("the feature 'artefact' cannot be measured on galaxies; remove 'measure' from the recipe's rule")


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
    """Add a line to each image, not blurred by the seeing, as it is due to the detector or to an object nearby.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Fraction of the light lost, or added light as a fraction of the brightest pixel.
    """
    size = images.shape[1]
    row, column = np.indices((size, size), np.float32)
    lines = maps.reshape(len(maps), 8)
    injected = np.empty_like(images)
    for k, (offset, angle, width, start, end, *colour) in enumerate(lines):
        right, down = column - hosts.x[k], row - hosts.y[k]
        across = right * np.sin(angle) - down * np.cos(angle)
        along = (right * np.cos(angle) + down * np.sin(angle)) / (size / 2)
        profile = np.exp(-((np.abs(across - offset * hosts.radius[k]) / width) ** 4)) * (
            (along > start) & (along < end)
        )
        profile, amplitude = profile[..., None].astype(np.float32), np.array(colour, np.float32)
        flux = stretch.to_flux(images[k])
        flux = flux * (1 + profile * np.minimum(amplitude, 0)) + profile * np.maximum(amplitude, 0) * flux.max()
        injected[k] = np.rint(stretch.to_pixels(flux))
    return injected, np.abs(lines[:, 5:]).max(1)
