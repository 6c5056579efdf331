"""Dust lanes, lifted off galaxies that have one and laid over others.

Dust between us and the stars multiplies their light (a foreground screen: Holmberg 1958; the lanes of early types are
mapped in just this way, e.g. Kulkarni et al. 2014, A&A 563, A137). An early type is smooth, so what it would be without
dust can be read off its own isophotes, and the ratio is the screen. Laid over another galaxy, at another angle and
size and a little thicker or thinner, it shows a lane that nobody has seen there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from galscan.generate.galaxies import MEASURED, SHAPE, measure

RINGS = np.linspace(0, 2.2, 23)  # edges of the isophotes, in half-light radii
CLEAN = 0.85  # quantile along an isophote: light that no dust dims
LEAST = 0.04  # depths below are noise and isophotes that are no ellipses
HOLE = 0.45  # of the clean brightness, a fifth of the light: half of the stars are before the dust, so this is no dust
SOFT = 0.02  # of square-rooted brightness, added to both sides of the ratio: the sky has no screen
VISIBLE = 0.06  # depth that a laid lane exceeds on 0.6 % of the frame, or it is not called one (as in surveys._render)


class Screens(NamedTuple):
    """What the dust of some galaxies lets through.

    Attributes
    ----------
    transmission : ndarray of float32, shape (n, S, S, 3)
        Of square-rooted pixels, 0..1; 1 where there is no dust, or no light to see it against.
    shape : ndarray of float32, shape (n, 3)
        Half-light radius, e1 and e2 of the galaxy behind (`galscan.generate.galaxies.SHAPE`).
    """

    transmission: np.ndarray
    shape: np.ndarray


def lift(images: np.ndarray) -> Screens:
    """Return the dust screens of smooth galaxies.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
        Early types: what is patchy by itself, like arms, would be taken for dust.
    """
    shape = _shape(images)
    roots = ndimage.gaussian_filter(_roots(images), (0, 0.7, 0.7, 0))
    transmission = np.ones_like(roots)
    for k, radius in enumerate(_elliptical_radius(shape, images.shape[1])):
        clean = _smooth_light(roots[k], radius)
        ratio = np.minimum((roots[k] + SOFT) / (clean + SOFT), 1)
        # Trusted where there is light behind, and fading out with it.
        trust = ((1.6 - radius) / 0.5).clip(0, 1) * ((clean.mean(2) - 0.12) / 0.1).clip(0, 1)
        trust *= ~ndimage.binary_dilation(ratio.mean(2) < HOLE, iterations=2)
        transmission[k] -= (1 - ratio - LEAST).clip(0) * trust[..., None]
    return Screens(transmission, shape)


def lay(
    images: np.ndarray, screens: Screens, donors: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lay screens over galaxies, each at an angle, size and thickness of its own.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    donors : ndarray of int, shape (n,)
        Which screen goes over which image.

    Returns
    -------
    laid : ndarray of uint8, shape (n, S, S, 3)
    visible : ndarray of bool, shape (n,)
        Where a lane is to be seen: some end up beyond the light, or are too faint.
    """
    n, size = images.shape[:2]
    middle = (size - 1) / 2
    line = np.arange(size, dtype=np.float32) - middle
    y, x = np.meshgrid(line, line, indexing="ij")
    angle = random.uniform(0, 2 * np.pi, size=(n,))
    side = np.where(random.random(n) < 0.5, -1.0, 1.0)
    thickness: np.ndarray = np.exp(random.normal(0, 0.3, size=(n,)))
    # Lanes come in the size of their galaxy, give or take a fifth.
    spread = np.exp(random.normal(0, 0.2, size=(n,)))
    scale: np.ndarray = screens.shape[donors, 0] / _shape(images)[:, 0].clip(0.02) * spread
    laid, visible = np.empty_like(images), np.empty(n, bool)
    for k in range(n):
        across = (-x * np.sin(angle[k]) + y * np.cos(angle[k])) * scale[k] * side[k] + middle
        along = (x * np.cos(angle[k]) + y * np.sin(angle[k])) * scale[k] + middle
        screen = np.stack(
            [
                ndimage.map_coordinates(screens.transmission[donors[k], ..., band], [across, along], order=1, cval=1.0)
                for band in range(3)
            ],
            axis=2,
        ) ** thickness[k]  # fmt: skip
        laid[k] = (np.square(_roots(images[k]) * screen) * 255).round()
        depth = (1 - screen.mean(2)) * (images[k].max(2) > 30)
        visible[k] = np.partition(depth.ravel(), -(size * size // 164))[-(size * size // 164)] > VISIBLE
    return laid, visible


def _roots(images: np.ndarray) -> np.ndarray:
    return np.sqrt(images.astype(np.float32) / 255)


def _shape(images: np.ndarray) -> np.ndarray:
    return measure(images)[:, [list(MEASURED).index(name) for name in SHAPE]]


def _elliptical_radius(shape: np.ndarray, size: int) -> np.ndarray:
    """Return distances from the middle in half-light radii, 1 on an ellipse of the area of the half-light circle."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    y, x = np.meshgrid(line, line, indexing="ij")
    half, e1, e2 = (column[:, None, None] for column in shape.T)
    angle, ratio = np.arctan2(e2, e1) / 2, np.sqrt((1 - np.hypot(e1, e2)).clip(0.15))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.hypot(along * ratio, across / ratio) / half.clip(0.02)


def _smooth_light(roots: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return what a galaxy (S, S, 3) would be without dust: an upper quantile of each isophote, falling outwards."""
    ring = np.digitize(radius, RINGS)
    middles, levels = [], []
    for number in range(1, len(RINGS) + 1):
        inside = ring == number
        if inside.sum() >= 3:
            middles.append(radius[inside].mean())
            levels.append(np.quantile(roots[inside], CLEAN, axis=0))
    falling = np.minimum.accumulate(np.array(levels))
    return np.stack([np.interp(radius, middles, falling[:, band]) for band in range(3)], axis=2).astype(np.float32)
