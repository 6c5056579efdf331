"""Sky, noise, and light that is added: in flux, with the noise that it brings, and how visible it is."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from galscan.synthesis.flux import Stretch

# Flux of the sky, in units of its noise in one pixel: in r a pixel of SDSS (0.396 arcsec; a star of 20 mag has 2,000
# counts of 4.7 electrons) has 130 counts of sky, 20.9 mag per square arcsec, with a noise of 5.3 counts.
SKY_OVER_NOISE = 25.0
VEIL = 40.0  # pixel values: brightness of the display, below which differences are less visible
BRIGHTEST = 0.003  # fraction of the pixels, with the highest contrast, whose mean is the visibility
UNCHANGED = 0.05  # added light in units of the noise, below which a pixel is left as it is


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
    flux = stretch.to_flux(image)
    photons = np.sqrt(light.clip(0) * noise / SKY_OVER_NOISE * (1 - noisy)) * random.standard_normal(light.shape)
    after = np.rint(stretch.to_pixels(flux + light + photons))
    least = max(UNCHANGED * float(noise.mean()), 1e-7)
    changed = np.abs(light).max(-1, keepdims=True) > least
    return np.where(changed, after, image).astype(np.uint8), visibility(image, stretch.to_pixels(flux + light))


def visibility(before: np.ndarray, after: np.ndarray) -> float:
    """Return the contrast of added light as displayed, 0..1.

    It is the mean, over the `BRIGHTEST` fraction of the pixels, of the added brightness over the sum of the brightness
    after it and a veil: faint light is visible on the dark sky, and invisible on a bright nucleus.
    """
    dark, bright = (ndimage.uniform_filter(x.mean(2, dtype=np.float32), 3) for x in (before, after))
    contrast = np.sort(((bright - dark) / (bright + VEIL)).ravel())
    return float(contrast[-max(1, round(BRIGHTEST * contrast.size)) :].mean().clip(0, 1))
