"""Put simulated galaxies into pictures: what surrounds them, the PSF, the noise, faults of the camera, the stretch.

Every function takes a *sky* as `galscan.surveys.simulated.starlight` does.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from galscan.surveys.simulated.starlight import (
    EXTINCTION,
    Sky,
    column,
    frame,
    sersic,
    starlight,
    subset,
    transmission,
    weights,
)

SDSS_PIXEL = 0.396  # arcsec
SKY_NOISE = np.array([0.020, 0.025, 0.035], np.float32)  # nanomaggies per SDSS pixel: g, r, i of a typical SDSS frame
ELECTRONS = 900.0  # photo-electrons per nanomaggy in a 54 s SDSS exposure, near enough in all three bands
BAND_SCALE = np.array(
    [1.7, 1.15, 1.0], np.float32
)  # chosen so that early types come out as yellow as in SDSS DR7 JPEGs
GRAIN = 0.25  # of the noise of a frame is left in stamps: compression and resampling take the rest (see tests)
SOFTENING, PEDESTAL = 20.0, 0.004  # Q and the offset of the stretch


def blur(bands: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Convolve images (n, b, size, size) with the PSF: two Gaussians as in SDSS (Stoughton et al. 2002).

    Parameters
    ----------
    fwhm : ndarray, shape (n,)
        Full width at half maximum of the core in pixels; the second Gaussian is 3 times wider, with 10 % of the light.
    """
    size, margin = bands.shape[-1], 6
    padded = fft.next_fast_len(size + 2 * margin, real=True)
    after = padded - size - margin
    images = np.pad(bands, ((0, 0), (0, 0), (margin, after), (margin, after)), mode="edge")
    k2 = np.square(np.fft.fftfreq(padded))[:, None] + np.square(np.fft.rfftfreq(padded))[None]
    exponent = (-2 * np.pi**2 * k2).astype(np.float32) * np.square(fwhm / 2.3548).astype(np.float32)[:, None, None]
    psf = 0.9 * np.exp(exponent) + 0.1 * np.exp(9 * exponent)
    images = fft.irfft2(fft.rfft2(images) * psf[:, None], s=(padded, padded))
    return images[..., margin : margin + size, margin : margin + size]


def pixel_scale(sky: Sky, size: int) -> np.ndarray:
    """Return arcsec per pixel, shape (n,)."""
    return sky["frame"] / size


def fwhm(sky: Sky, size: int) -> np.ndarray:
    """Return the seeing in pixels, shape (n,), never below what the pixels can carry."""
    return np.maximum(sky["seeing"] / pixel_scale(sky, size), 1.7)


def noise_level(sky: Sky, size: int) -> np.ndarray:
    """Return how many times quieter a stored pixel is than an SDSS pixel, shape (n,); resampling adds little noise."""
    return np.maximum(pixel_scale(sky, size) / SDSS_PIXEL, 0.7).astype(np.float32)


def lane_strength(sky: Sky) -> np.ndarray:
    """Return how plainly the dust is seen, 0..1, shape (n,), whatever the size of the stored pictures.

    Measured on noise-free r-band pictures of 64 pixels, stretched, with and without the dust. The loss is the share
    of the displayed brightness that the dust takes (a burnt-out nucleus hides dust as it does from people). The
    strength is the loss exceeded over 0.6 % of the frame (25 pixels) less that of the galaxy's median visible pixel (a
    veil over everything is no lane), in units of 0.45: a lane nobody overlooks. Visible means above 4 sigma of the sky.
    """
    size = 64
    stars = starlight(sky, size)[:, 1:2]
    pair = np.concatenate([stars, stars * transmission(sky, size, EXTINCTION[1:2])], axis=1)
    pair = blur(pair, fwhm(sky, size))
    level = np.arcsinh(SOFTENING * BAND_SCALE[1] * np.maximum(pair, 0)) / np.sqrt(SOFTENING)
    clean, dusty = np.moveaxis(np.minimum(level, 0.8).reshape(len(pair), 2, -1), 1, 0)
    loss = (clean - dusty) / (clean + 0.08)
    limit = 4 * SKY_NOISE[1] / noise_level(sky, size)
    visible = pair[:, 0].reshape(len(pair), -1) > limit[:, None]
    strongest = np.partition(np.where(visible, loss, 0), -25, axis=1)[:, -25]
    veil = np.array([np.median(row[seen]) if seen.any() else 0.0 for row, seen in zip(loss, visible, strict=True)])
    return np.clip((strongest - veil) / 0.45, 0, 1).astype(np.float32)


def _surroundings(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Add companions, field galaxies and saturated stars to `bands`, before the PSF."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)
    for k in range(sky["near_x"].shape[1]):
        here = np.flatnonzero(sky["near_flux"][:, k] > 0)
        if here.size == 0:
            continue
        one = {
            name: sky[name][here, k]
            for name in ("near_x", "near_y", "near_re", "near_q", "near_angle", "near_flux", "near_colour", "near_n")
        }
        x, y = frame({"x": one["near_x"], "y": one["near_y"]}, size, one["near_angle"])
        radius2 = x * x + np.square(y / column(one, "near_q")) + np.float32((0.4 / size) ** 2)
        light = sersic(radius2, one["near_re"], one["near_n"], one["near_q"], one["near_flux"])
        bands[here] += light[:, None] * weights(one["near_colour"])
    for j in np.flatnonzero(sky["saturated"] > 0):
        x, y = np.abs(axis - sky["glare_x"][j])[None, :] * size, np.abs(axis - sky["glare_y"][j])[:, None] * size
        colour = (
            weights(sky["star_colour"][j, :1])[0] * np.array([0.8, 0.7, 1.0], np.float32)[:, None, None]
        )  # the bands saturate unequally
        halo = 60 / (1 + (x * x + y * y) / 2) ** 1.9
        spikes = 1.0 * (np.exp(-x * x) / (1 + y / 3) ** 1.8 + np.exp(-y * y) / (1 + x / 3) ** 1.8)
        bleed = 8.0 * np.exp(-((x / 0.7) ** 4)) * (y < size * 0.1)  # charge runs along the columns
        bands[j] += (sky["saturated"][j] * colour * (halo + spikes + bleed)).astype(np.float32)


def _stars(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Add stars to `bands`, already through the PSF of `blur` (a point on the pixel grid would ring)."""
    area = np.square(pixel_scale(sky, size) / SDSS_PIXEL)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)
    for k in range(sky["star_x"].shape[1]):
        here = np.flatnonzero(sky["star_flux"][:, k] > 0)
        light = (sky["star_flux"][here, k] / area[here]).astype(np.float32)[:, None, None, None] * weights(
            sky["star_colour"][here, k]
        )
        dx2 = np.square((axis - sky["star_x"][here, k, None]) * size)
        dy2 = np.square((axis - sky["star_y"][here, k, None]) * size)
        for weight, factor in ((0.9, 1), (0.1, 9)):
            variance = factor * np.square(fwhm(sky, size)[here, None] / 2.3548)
            profile = np.exp(-dy2 / (2 * variance))[:, :, None] * np.exp(-dx2 / (2 * variance))[:, None, :]
            profile *= weight / (2 * np.pi * variance[:, :, None])
            bands[here] += profile.astype(np.float32)[:, None] * light


def _camera_faults(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Draw seams between frames (black) and satellite trails (bright, in one band: the bands are not simultaneous)."""
    for j in np.flatnonzero((sky["seam"] > 0) | (sky["trail"] > 0)):
        one = {
            name: sky[name][j : j + 1] for name in ("fault_x", "fault_y", "fault_angle", "seam_width", "seam", "trail")
        }
        along, across = frame({"x": one["fault_x"], "y": one["fault_y"]}, size, one["fault_angle"])
        line = np.exp(-((np.abs(across[0] * size) / one["seam_width"]) ** 4))
        if one["seam"][0] > 0:
            line = line * (along[0] > -0.5 * one["seam"][0] * 1.5)  # some seams end inside the stamp
            bands[j] *= 1 - 0.92 * line
        else:
            bands[j, int(one["trail"][0] * 2.999)] += (0.09 * line).astype(np.float32)


def lupton(bands: np.ndarray) -> np.ndarray:
    """Return the picture of g, r, i images: uint8, shape (n, size, size, 3), red = i, green = r, blue = g.

    The asinh stretch of Lupton et al. (2004, PASP 116, 133) that keeps colours at all brightnesses, as SDSS does.
    """
    light = bands * BAND_SCALE[:, None, None] + np.float32(PEDESTAL)
    mean = np.maximum(light.mean(axis=1, keepdims=True), np.float32(1e-4))
    light *= np.arcsinh(SOFTENING * mean) / (np.float32(np.sqrt(SOFTENING)) * mean)
    light *= 255 / np.maximum(light.max(axis=1, keepdims=True), 1)
    levels = (np.maximum(light, 0) + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(levels, 1, -1)[..., ::-1])


def pictures(sky: Sky, size: int, rng: np.random.Generator, *, dust: bool = True, noise: bool = True) -> np.ndarray:
    """Return finished pictures, uint8, shape (n, size, size, 3); without `dust` or `noise` if so asked (for tests)."""
    bands = starlight(sky, size)
    if dust and (dusty := sky["dust_tau"] > 0).any():
        bands[dusty] *= transmission(subset(sky, dusty), size)
    _surroundings(sky, size, bands)
    bands = blur(bands, fwhm(sky, size))
    _stars(sky, size, bands)
    if noise:
        # Sky noise, and the photons' own: a Gaussian of the Poisson variance (tens of electrons a pixel at least).
        variance = np.square(SKY_NOISE)[:, None, None] + np.maximum(bands, 0) / np.float32(ELECTRONS)
        deviates = rng.standard_normal(bands.shape, dtype=np.float32)
        deviates *= np.sqrt(variance)
        bands += GRAIN * deviates / noise_level(sky, size)[:, None, None, None]
    _camera_faults(sky, size, bands)
    return lupton(bands)
