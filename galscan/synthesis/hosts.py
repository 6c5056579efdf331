"""Centre, size and shape of the galaxy in an image: its coordinate frame for injecting and measuring features.

Coordinates are in half-light radii: `u` along the major axis, `v` along the minor axis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

LEAST_RADIUS = 3.0  # half-light radius in pixels: smaller galaxies do not resolve a feature
LARGEST_RADIUS = 0.38  # fraction of the frame: a larger half-light radius is set by the frame
OFF_CENTRE = 0.12  # largest offset of the galaxy from the middle, fraction of the frame: farther ones may be others
FILLED = 0.33  # fraction of the peak: with a brighter edge of the frame, the galaxy extends beyond it


class Hosts(NamedTuple):
    """Geometry of galaxies, each of shape (n,); NaN where it cannot be measured."""

    x: np.ndarray  # of the centre in pixels (column), 0 in the middle of the first pixel
    y: np.ndarray  # (row)
    radius: np.ndarray  # half-light radius in pixels, of circular apertures
    axis_ratio: np.ndarray
    angle: np.ndarray
    """Position angle of the major axis, radians from the row direction (+x) towards higher row numbers (+y)."""

    @property
    def measured(self) -> np.ndarray:
        """Mask of the measured galaxies, bool, shape (n,)."""
        return np.isfinite(self.radius)

    def select(self, rows: np.ndarray) -> Hosts:
        """Return the galaxies of these row numbers, or of a mask."""
        return Hosts(*(column[rows] for column in self))

    def frame(self, k: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each pixel's coordinates along and across the major axis of galaxy `k`, in pixels, (size, size)."""
        dy, dx = np.indices((size, size), np.float32) - np.array([self.y[k], self.x[k]], np.float32)[:, None, None]
        cos, sin = np.float32(np.cos(self.angle[k])), np.float32(np.sin(self.angle[k]))
        return dx * cos + dy * sin, dy * cos - dx * sin


class Donors(NamedTuple):
    """Galaxies whose light is added to hosts, e.g. as companions: one for each host, from the same store."""

    images: np.ndarray  # uint8, (n, S, S, 3)
    geometry: Hosts  # all are measured


def measure_hosts(images: np.ndarray) -> Hosts:
    """Measure the galaxy in the middle of each image (n, S, S, 3) uint8.

    Its pixels are the connected region above three times the noise, after slight smoothing, that contains the brightest
    pixel near the middle; other objects in the frame are ignored. The half-light radius is of circular apertures, the
    shape of second moments within 2.5 half-light radii.

    It is not measured where there is no light, the centre is farther from the middle than `OFF_CENTRE` of the frame,
    the galaxy fills the frame, or the half-light radius is below `LEAST_RADIUS` pixels or above `LARGEST_RADIUS` of the
    frame.
    """
    rows = np.array([_measure(image) for image in images], float).reshape(len(images), 5)
    return Hosts(*rows.T)


def _measure(image: np.ndarray) -> tuple[float, ...]:
    unknown = (np.nan,) * 5
    size = len(image)
    light = image.astype(np.float32).mean(2)
    edge = np.concatenate([light[:2].ravel(), light[-2:].ravel(), light[2:-2, :2].ravel(), light[2:-2, -2:].ravel()])
    sky = float(np.percentile(edge, 25))  # a low percentile, as the galaxy may reach the edge
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
        return unknown  # part of an object with its centre farther out
    inside = labels == labels[top]
    flux = np.where(inside, (light - sky).clip(0), 0)
    # Centroid of the pixels above 0.6 of the peak: neighbours distort the centroid of the outskirts.
    core = np.where(near & inside, (smooth - 0.6 * peak).clip(0), 0)
    y, x = (float((core * axis).sum() / core.sum()) for axis in np.indices(core.shape))
    dy, dx = np.indices(flux.shape) - np.array([y, x])[:, None, None]
    distance = np.hypot(dx, dy)
    order = np.argsort(distance, axis=None)
    cumulative = flux.ravel()[order].cumsum()
    radius = float(distance.ravel()[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
    if not LEAST_RADIUS <= radius <= LARGEST_RADIUS * size:
        return unknown
    weight = flux * (distance < 2.5 * radius)
    xx, yy, xy = (float((weight * m).sum() / weight.sum()) for m in (dx * dx, dy * dy, dx * dy))
    root = np.hypot(xx - yy, 2 * xy)
    ratio = np.sqrt(max(xx + yy - root, 0) / (xx + yy + root))
    return x, y, radius, float(np.clip(ratio, 0.1, 1)), float(np.arctan2(2 * xy, xx - yy) / 2)
