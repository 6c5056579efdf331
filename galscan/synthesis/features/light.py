"""Sky, noise, and light that is added: in flux, with the noise that it brings, and how visible it is."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

# Flux of the sky, in units of its noise in one pixel: in r a pixel of SDSS (0.396 arcsec; a star of 20 mag has 2,000
# counts of 4.7 electrons) has 130 counts of sky, 20.9 mag per square arcsec, with a noise of 5.3 counts.
SKY_OVER_NOISE = 25.0
VEIL = 40.0  # pixel values: brightness of the display, below which differences are less visible
BRIGHTEST = 0.003  # fraction of the pixels, with the highest contrast, whose mean is the visibility
UNCHANGED = 0.05  # added light in units of the noise, below which a pixel is left as it is
BRIGHT = 8.0  # times the noise: least brightness at the peak of a donor
CUT_OFF = 0.15  # of its peak as displayed: with a brighter border of its image, a donor is cut off
FADING = 0.07  # fraction of the side of its image, over which a donor fades out towards the border
SOFT = 1.5  # pixels: standard deviation of the edge of a donor


def sky_level(flux: np.ndarray) -> np.ndarray:
    """Return the sky level in each band of an image (S, S, 3) in flux, from its upper and lower edge, shape (3,)."""
    edge = np.concatenate([flux[:2].reshape(-1, 3), flux[-2:].reshape(-1, 3)])
    return np.percentile(edge, 25, axis=0).astype(np.float32)


def border_noise(image: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Return the noise of a pixel on the dark border of an image (S, S, 3), in flux, float32, shape (3,)."""
    border = image[:3].astype(np.float32)
    grain = min(1.05 * float(np.median(np.abs(np.diff(border, axis=1)))), 6.0)
    level = np.median(border, axis=(0, 1), keepdims=True)
    return (stretch.to_flux(level + grain) - stretch.to_flux(level))[0, 0]


def light_within(image: np.ndarray, hosts: Hosts, k: int, stretch: Stretch, *, radii: float = 2.5) -> np.ndarray:
    """Return the flux of host `k` in each band within so many half-light radii, above the sky, float32, shape (3,)."""
    flux = stretch.to_flux(image)
    u, v = hosts.frame(k, len(image))
    return (flux - sky_level(flux))[np.hypot(u, v) < radii * hosts.radius[k]].sum(0).clip(0)


def add_light(
    image: np.ndarray, light: np.ndarray, stretch: Stretch, random: np.random.Generator, *, noisy: float = 0.0
) -> tuple[np.ndarray, float]:
    """Add light to an image, with its photon noise.

    Photons are as many per flux as in the sky, whose noise is measured on the border of the image.

    Parameters
    ----------
    image : ndarray of uint8, shape (S, S, 3)
    light : ndarray of float32, shape (S, S, 3)
        In flux (`galscan.synthesis.flux`).
    noisy : float
        Fraction of the variance that the light has already, 0..1.

    Returns
    -------
    image : ndarray of uint8, shape (S, S, 3)
        Unchanged where no light is added.
    depth : float
        See `visibility`.
    """
    noise = border_noise(image, stretch)
    changed = np.abs(light).max(-1, keepdims=True) > max(UNCHANGED * float(noise.mean()), 1e-7)
    if not changed.any():
        return image.copy(), 0.0
    flux = stretch.to_flux(image)
    photons = np.sqrt(light.clip(0) * noise / SKY_OVER_NOISE * (1 - noisy)) * random.standard_normal(light.shape)
    after = np.rint(stretch.to_pixels(flux + light + photons))
    return np.where(changed, after, image).astype(np.uint8), visibility(image, stretch.to_pixels(flux + light))


def visibility(before: np.ndarray, after: np.ndarray) -> float:
    """Return the contrast of added light as displayed, 0..1.

    It is the mean, over the `BRIGHTEST` fraction of the pixels, of the added brightness over the sum of the brightness
    after it and a veil: faint light is visible on the dark sky, and invisible on a bright nucleus.
    """
    dark, bright = (ndimage.uniform_filter(x.mean(2, dtype=np.float32), 3) for x in (before, after))
    contrast = np.sort(((bright - dark) / (bright + VEIL)).ravel())
    return float(contrast[-max(1, round(BRIGHTEST * contrast.size)) :].mean().clip(0, 1))


def galaxy_light(image: np.ndarray, stretch: Stretch) -> tuple[np.ndarray, np.ndarray] | None:
    """Cut out the galaxy in the middle of an image (S, S, 3), with a soft edge.

    The galaxy is the connected region above three times the noise, or a tenth of its peak, that contains the brightest
    pixel near the middle.

    Returns
    -------
    light : ndarray of float32, shape (S, S, 3)
        Its flux above the sky; 0 elsewhere.
    weight : ndarray of float32, shape (S, S)
        By which the flux was multiplied: 1 on the galaxy, 0 elsewhere.

    None if it is fainter than `BRIGHT`, or cut off by the border of the image (`CUT_OFF`).
    """
    size = len(image)
    edge = np.ones((size, size), bool)
    edge[2:-2, 2:-2] = False
    pixels = image.mean(2, dtype=np.float32)
    level = float(np.percentile(pixels[edge], 25))  # a low percentile, as the galaxy may reach the border
    noise = max(1.48 * float(np.median(np.abs(pixels[edge] - np.median(pixels[edge])))), 1.0)
    smooth = ndimage.gaussian_filter(pixels, 1.0) - level
    middle = slice(size * 3 // 8, size - size * 3 // 8)
    row, column = np.unravel_index(int(np.argmax(smooth[middle, middle])), smooth[middle, middle].shape)
    peak = (row + middle.start, column + middle.start)
    if smooth[peak] < BRIGHT * noise:
        return None
    # The scatter of the border is more than noise where the galaxy reaches it.
    labels, _ = ndimage.label(smooth > min(3 * noise, 0.1 * smooth[peak]))
    inside = labels == labels[peak]
    if (edge & inside).any() and smooth[edge & inside].max() > CUT_OFF * smooth[peak]:
        return None
    flux = stretch.to_flux(image)
    # The sky of each band is measured where there is no object.
    empty = flux[edge & (labels == 0)] if (edge & (labels == 0)).any() else flux[edge]
    soft = ndimage.gaussian_filter(ndimage.binary_dilation(inside, iterations=3).astype(np.float32), SOFT)
    # Light of neighbours that the soft edge would include.
    others = ndimage.gaussian_filter(ndimage.binary_dilation((labels > 0) & ~inside).astype(np.float32), 0.7)
    soft = np.where(inside, 1, soft * (1 - others.clip(0, 1)))
    line = (np.minimum(np.arange(size), np.arange(size)[::-1]) / (FADING * size)).clip(0, 1)
    soft = soft * (line * line * (3 - 2 * line))[:, None] * (line * line * (3 - 2 * line))
    soft = soft.astype(np.float32)
    return ((flux - np.median(empty, axis=0)) * soft[..., None]).astype(np.float32), soft
