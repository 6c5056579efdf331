"""Where the galaxy of a picture is, how large and how elongated: the frame for injecting and measuring features.

Lengths in that frame are half-light radii, `u` runs along the major axis and `v` across it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

LEAST_RADIUS = 3.0  # pixels: in a smaller galaxy no feature can be drawn
LARGEST_RADIUS = 0.38  # of the frame: beyond it the half-light radius is that of the frame
OFF_CENTRE = 0.12  # of the frame, between its middle and the galaxy's centre: more, and it may be another object
FILLED = 0.33  # of the brightest light: where the edge of the frame is as bright, the galaxy goes on beyond it


class Hosts(NamedTuple):
    """The geometry of some galaxies; rows that cannot be measured are NaN.

    Attributes
    ----------
    x, y : ndarray of float, shape (n,)
        Centre in pixels (column, row), 0 in the middle of the first pixel.
    radius : ndarray of float, shape (n,)
        Half-light radius in pixels, of circular apertures.
    axis_ratio : ndarray of float, shape (n,)
    angle : ndarray of float, shape (n,)
        Of the major axis, radians from the row direction (+x) towards higher row numbers (+y).
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    axis_ratio: np.ndarray
    angle: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        """Which could be measured, bool, shape (n,)."""
        return np.isfinite(self.radius)

    def select(self, rows: np.ndarray) -> Hosts:
        """Return those of these row numbers, or where this mask is true."""
        return Hosts(*(column[rows] for column in self))


def measure_hosts(images: np.ndarray) -> Hosts:
    """Measure the galaxy in the middle of each picture.

    Its pixels are those above three times the noise that hang together with the brightest ones near the middle, after
    a light blur; other objects in the frame do not count. Size is that of growing circular apertures, shape that of
    second moments within 2.5 half-light radii.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)

    Returns
    -------
    Hosts
        NaN where there is no light, the centre is off the middle by more than `OFF_CENTRE` of the frame, the galaxy
        fills the frame, or the half-light radius is below `LEAST_RADIUS` pixels or above `LARGEST_RADIUS` of the frame.
    """
    rows = np.array([_measure(image) for image in images], float).reshape(len(images), 5)
    return Hosts(*rows.T)


def _measure(image: np.ndarray) -> tuple[float, ...]:
    unknown = (np.nan,) * 5
    size = len(image)
    light = image.astype(np.float32).mean(2)
    edge = np.concatenate([light[:2].ravel(), light[-2:].ravel(), light[2:-2, :2].ravel(), light[2:-2, -2:].ravel()])
    sky = float(np.percentile(edge, 25))  # a galaxy that reaches the edge of the frame is no sky
    noise = 1.48 * float(np.median(np.abs(edge - np.median(edge))))
    smooth = ndimage.gaussian_filter(light, max(1.0, size / 96)) - sky
    line = np.arange(size) - (size - 1) / 2
    near = np.hypot(*np.meshgrid(line, line)) < OFF_CENTRE * size
    peak = smooth[near].max()
    threshold = max(3 * noise, 0.03 * peak, 2.0)
    if peak < 2 * threshold or sky > FILLED * (peak + sky):
        return unknown
    labels, _ = ndimage.label(smooth > threshold)
    top = np.unravel_index(int(np.argmax(np.where(near, smooth, -np.inf))), smooth.shape)
    if smooth[top] < ndimage.maximum_filter(smooth, 3)[top]:
        return unknown  # the flank of an object whose centre is farther out
    inside = labels == labels[top]
    flux = np.where(inside, (light - sky).clip(0), 0)
    # The centre is that of the brightest fifth, not of the outskirts, which a neighbour may pull away.
    core = np.where(near & inside, (smooth - 0.6 * peak).clip(0), 0)
    y, x = (float((core * axis).sum() / core.sum()) for axis in np.indices(core.shape))
    dy, dx = np.indices(flux.shape) - np.array([y, x])[:, None, None]
    distance = np.hypot(dx, dy)
    order = np.argsort(distance, axis=None)
    grown = flux.ravel()[order].cumsum()
    radius = float(distance.ravel()[order][np.searchsorted(grown, grown[-1] / 2)])
    if not LEAST_RADIUS <= radius <= LARGEST_RADIUS * size:
        return unknown
    weight = flux * (distance < 2.5 * radius)
    xx, yy, xy = (float((weight * m).sum() / weight.sum()) for m in (dx * dx, dy * dy, dx * dy))
    root = np.hypot(xx - yy, 2 * xy)
    ratio = np.sqrt(max(xx + yy - root, 0) / (xx + yy + root))
    return x, y, radius, float(np.clip(ratio, 0.1, 1)), float(np.arctan2(2 * xy, xx - yy) / 2)
