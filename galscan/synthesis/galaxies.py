"""Training galaxies of a generator, their pixel statistics, and properties measured on images. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Properties of every image, with or without labels. As conditions they keep brightness, colour, size and shape of
# synthetic galaxies realistic, also under strong guidance of a single answer.
MEASURED: dict[str, tuple[float, float]] = {
    "image_brightness": (0.0, 0.8),  # mean square root of pixel values in the inner half of the frame
    "image_colour": (-0.4, 0.5),  # (red - blue) / (red + blue) of the sky-subtracted light there
    "image_size": (0.0, 0.4),  # half-light radius over the side of the frame
    # Ellipticity as in weak lensing: 1 - axis ratio (second moments), times cosine and sine of twice the position angle
    # (from the row direction towards higher row numbers)
    "image_e1": (-1.0, 1.0),
    "image_e2": (-1.0, 1.0),
    "image_noise": (0.0, 0.15),  # pixel-to-pixel scatter of the square roots at the edge of the frame
}
SHAPE = ("image_size", "image_e1", "image_e2")


@dataclass(frozen=True)
class GalaxySet:
    """Training galaxies of a generator, in memory."""

    images: np.ndarray  # uint8, (n, S, S, 3)
    values: np.ndarray  # labels in their units, float32, (n, answers); NaN = not asked, all NaN = unlabelled
    survey: np.ndarray  # index of the survey of each galaxy, int, (n,)
    weight: np.ndarray  # relative sampling weight, float, (n,)


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], float]:
    """Return mean per band and common standard deviation of the square roots of pixels, from up to 2,000 images."""
    sample = np.sqrt(images[:: max(1, len(images) // 2000)].astype(np.float32) / 255)
    mean = sample.mean((0, 1, 2))
    return (float(mean[0]), float(mean[1]), float(mean[2])), float((sample - mean).std())


def measure(images: np.ndarray) -> np.ndarray:
    """Measure images (n, S, S, 3) uint8: the columns of `MEASURED`, clipped to their ranges, float32, (n, 6)."""
    batches = [_measure(images[start : start + 512]) for start in range(0, len(images), 512)]
    return np.concatenate(batches) if batches else np.empty((0, len(MEASURED)), np.float32)


def _measure(images: np.ndarray) -> np.ndarray:
    n, size = images.shape[:2]
    pixels = images.astype(np.float32) / 255
    line = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(line, line, indexing="ij")
    radius = np.hypot(x, y)
    edge = np.ones((size, size), bool)
    edge[2:-2, 2:-2] = False
    signal = (pixels - np.median(pixels[:, edge], axis=1)[:, None, None]).clip(0)

    inner = slice(size // 4, size - size // 4)
    brightness = np.sqrt(pixels[:, inner, inner]).mean((1, 2, 3))
    red, _, blue = signal[:, inner, inner].sum((1, 2)).T
    colour = (red - blue) / (red + blue + 1e-3)

    # Only pixels above the noise count: summed over a dark frame, noise makes every shape round.
    light = pixels.mean(3)
    border = light[:, edge]
    sky = np.median(border, axis=1)
    noise = 1.48 * np.median(np.abs(border - sky[:, None]), axis=1)
    light = light - sky[:, None, None]
    light = light * (light > np.maximum(3 * noise, 0.02)[:, None, None]) * (radius < 0.5)
    total = light.sum((1, 2)) + 1e-6
    order = np.argsort(radius, axis=None)
    cumulative = light.reshape(n, -1)[:, order].cumsum(1) / total[:, None]
    half = radius.ravel()[order][(cumulative < 0.5).sum(1).clip(max=order.size - 1)]
    # Moments within 2.5 half-light radii, to exclude stars at the edge of the frame.
    light = light * (radius < 2.5 * half[:, None, None])
    total = light.sum((1, 2)) + 1e-6
    xx, yy, xy = ((light * m).sum((1, 2)) / total for m in (x * x, y * y, x * y))
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    elongation = 1 - np.sqrt((xx + yy - root).clip(0) / (xx + yy + root + 1e-9))
    low, high = np.array(list(MEASURED.values())).T
    e1, e2 = elongation * (xx - yy) / (root + 1e-9), elongation * 2 * xy / (root + 1e-9)
    sides = np.concatenate([pixels[:, [0, 1, -2, -1]], pixels[:, :, [0, 1, -2, -1]].swapaxes(1, 2)], 1)
    steps = np.abs(np.diff(np.sqrt(sides), axis=2)).reshape(n, -1)
    grain = 1.05 * np.median(steps, axis=1)  # 1.48 / sqrt(2), for differences of two deviates
    return np.stack([brightness, colour, half, e1, e2, grain], 1).clip(low, high).astype(np.float32)


def turn(measured: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return the values of `measure` for images rotated by `angle` (n,), in radians from x towards y."""
    turned = measured.copy()
    e1, e2 = (list(MEASURED).index(name) for name in SHAPE[1:])
    cos, sin = np.cos(2 * angle), np.sin(2 * angle)
    turned[:, e1] = measured[:, e1] * cos - measured[:, e2] * sin
    turned[:, e2] = measured[:, e1] * sin + measured[:, e2] * cos
    return turned
