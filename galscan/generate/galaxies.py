"""The galaxies a generator learns from, and their pixel statistics. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GalaxySet:
    """Galaxies to learn from, in memory.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    values : ndarray of float32, shape (n, answers)
        Labels in their own units, NaN = not asked (all NaN for an unlabelled galaxy).
    survey : ndarray of int, shape (n,)
        Index of the survey each is from.
    weight : ndarray of float, shape (n,)
        How often each is drawn, relative to the others.
    """

    images: np.ndarray
    values: np.ndarray
    survey: np.ndarray
    weight: np.ndarray


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """Return mean per band and common standard deviation of square-rooted pixels, of up to 2,000 images."""
    sample = np.sqrt(images[:: max(1, len(images) // 2000)].astype(np.float32) / 255)
    mean = sample.mean((0, 1, 2))
    return (float(mean[0]), float(mean[1]), float(mean[2])), float((sample - mean).std())
