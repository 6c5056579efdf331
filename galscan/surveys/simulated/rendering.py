"""Rendering of simulated galaxies: other sources, PSF, noise, camera artefacts, stretch.

Functions take a *sky* as defined in `galscan.surveys.simulated.starlight`.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from galscan.surveys.simulated.starlight import (
    EXTINCTION,
    Sky,
    column,
    frame,
    pixel_axis,
    sersic,
    starlight,
    subset,
    transmission,
    weights,
)

SDSS_PIXEL = 0.396  # arcsec
SKY_NOISE = np.array([0.020, 0.025, 0.035], np.float32)  # nanomaggies per SDSS pixel: g, r, i of a typical SDSS frame
ELECTRONS = 900.0  # photo-electrons per nanomaggy in a 54 s SDSS exposure, approximately, in all three bands
BAND_SCALE = np.array([1.7, 1.15, 1.0], np.float32)  # chosen so that early types are as yellow as in SDSS DR7 JPEGs
GRAIN = 0.25  # fraction of a frame's noise left in stamps after compression and resampling (see tests)
SOFTENING, PEDESTAL = 20.0, 0.004  # Q and the offset of the stretch
LANE_SIZE = 64  # pixels of the images on which dust lanes are measured


def blur(bands: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Convolve images (n, b, size, size) with the PSF: two Gaussians as in SDSS (Stoughton et al. 2002).

    The core has the full width at half maximum `fwhm` (pixels, shape (n,)); the second Gaussian is 3 times wider, with
    10 % of the light.
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
    """Return the seeing in pixels, shape (n,), at least what the pixels can sample."""
    return np.maximum(sky["seeing"] / pixel_scale(sky, size), 1.7)


def noise_level(sky: Sky, size: int) -> np.ndarray:
    """Return the noise of an SDSS pixel over that of a stored pixel, shape (n,)."""
    return np.maximum(pixel_scale(sky, size) / SDSS_PIXEL, 0.7).astype(np.float32)


def lane_strength(sky: Sky) -> np.ndarray:
    """Return the visible strength of the dust lane, 0..1, shape (n,), independent of the size of stored images.

    Measured on stretched noise-free r-band images of 64 pixels, with and without the dust. The loss is the fraction
    of the displayed brightness that the dust absorbs; in a saturated nucleus dust is invisible, as it is to people. The
    strength is the loss exceeded over 0.6 % of the frame (25 pixels) minus that of the galaxy's median visible pixel
    (uniform extinction is no lane), in units of 0.45, an obvious lane. Visible means above 4 sigma of the sky.
    """
    size = LANE_SIZE
    stars = starlight(sky, size)[:, 1:2]
    pair = np.concatenate([stars, stars * transmission(sky, size, EXTINCTION[1:2])], axis=1)
    pair = blur(pair, fwhm(sky, size))
    level = np.arcsinh(SOFTENING * BAND_SCALE[1] * np.maximum(pair, 0)) / np.sqrt(SOFTENING)
    clean, dusty = np.moveaxis(np.minimum(level, 0.8).reshape(len(pair), 2, -1), 1, 0)
    loss = (clean - dusty) / (clean + 0.08)
    limit = 4 * SKY_NOISE[1] / noise_level(sky, size)
    visible = pair[:, 0].reshape(len(pair), -1) > limit[:, None]
    strongest = np.partition(np.where(visible, loss, 0), -25, axis=1)[:, -25]
    median = np.array([np.median(row[mask]) if mask.any() else 0.0 for row, mask in zip(loss, visible, strict=True)])
    return np.clip((strongest - median) / 0.45, 0, 1).astype(np.float32)


def _surroundings(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Add companions, field galaxies and saturated stars to `bands`, before the PSF."""
    for k in range(sky["near_x"].shape[1]):
        rows = np.flatnonzero(sky["near_flux"][:, k] > 0)
        if rows.size == 0:
            continue
        near = {name.removeprefix("near_"): sky[name][rows, k] for name in sky if name.startswith("near_")}
        x, y = frame(near, size, near["angle"])
        radius2 = x * x + np.square(y / column(near, "q")) + np.float32((0.4 / size) ** 2)
        light = sersic(radius2, near["re"], near["n"], near["q"], near["flux"])
        bands[rows] += light[:, None] * weights(near["colour"])
    axis = pixel_axis(size)
    for j in np.flatnonzero(sky["saturated"] > 0):
        x, y = np.abs(axis - sky["glare_x"][j])[None, :] * size, np.abs(axis - sky["glare_y"][j])[:, None] * size
        unequal = np.array([0.8, 0.7, 1.0], np.float32)[:, None, None]  # saturation of the bands
        colour = weights(sky["star_colour"][j, :1])[0] * unequal
        halo = 60 / (1 + (x * x + y * y) / 2) ** 1.9
        spikes = np.exp(-x * x) / (1 + y / 3) ** 1.8 + np.exp(-y * y) / (1 + x / 3) ** 1.8
        bleed = 8.0 * np.exp(-((x / 0.7) ** 4)) * (y < size * 0.1)  # charge runs along the columns
        bands[j] += (sky["saturated"][j] * colour * (halo + spikes + bleed)).astype(np.float32)


def _stars(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Add stars to `bands`, already convolved with the PSF of `blur` (point sources on the pixel grid would ring)."""
    area = np.square(pixel_scale(sky, size) / SDSS_PIXEL)
    axis = pixel_axis(size)
    for k in range(sky["star_x"].shape[1]):
        rows = np.flatnonzero(sky["star_flux"][:, k] > 0)
        flux = (sky["star_flux"][rows, k] / area[rows]).astype(np.float32)[:, None, None, None]
        light = flux * weights(sky["star_colour"][rows, k])
        dx2 = np.square((axis - sky["star_x"][rows, k, None]) * size)
        dy2 = np.square((axis - sky["star_y"][rows, k, None]) * size)
        for weight, factor in ((0.9, 1), (0.1, 9)):
            variance = factor * np.square(fwhm(sky, size)[rows, None] / 2.3548)
            profile = np.exp(-dy2 / (2 * variance))[:, :, None] * np.exp(-dx2 / (2 * variance))[:, None, :]
            profile *= weight / (2 * np.pi * variance[:, :, None])
            bands[rows] += profile.astype(np.float32)[:, None] * light


def _camera_faults(sky: Sky, size: int, bands: np.ndarray) -> None:
    """Add seams between frames (black) and satellite trails (bright, in one band: the bands are not simultaneous)."""
    for j in np.flatnonzero((sky["seam"] > 0) | (sky["trail"] > 0)):
        place = {"x": sky["fault_x"][j : j + 1], "y": sky["fault_y"][j : j + 1]}
        along, across = frame(place, size, sky["fault_angle"][j : j + 1])
        line = np.exp(-((np.abs(across[0] * size) / sky["seam_width"][j]) ** 4))
        if sky["seam"][j] > 0:
            line = line * (along[0] > -0.5 * sky["seam"][j] * 1.5)  # some seams end inside the stamp
            bands[j] *= 1 - 0.92 * line
        else:
            bands[j, int(sky["trail"][j] * 2.999)] += (0.09 * line).astype(np.float32)


def lupton(bands: np.ndarray) -> np.ndarray:
    """Return RGB images of g, r, i images: uint8, shape (n, size, size, 3), red = i, green = r, blue = g.

    The asinh stretch of Lupton et al. (2004, PASP 116, 133), as used by SDSS: colours do not depend on brightness.
    """
    light = bands * BAND_SCALE[:, None, None] + np.float32(PEDESTAL)
    mean = np.maximum(light.mean(axis=1, keepdims=True), np.float32(1e-4))
    light *= np.arcsinh(SOFTENING * mean) / (np.float32(np.sqrt(SOFTENING)) * mean)
    light *= 255 / np.maximum(light.max(axis=1, keepdims=True), 1)
    levels = (np.maximum(light, 0) + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(levels, 1, -1)[..., ::-1])


def pictures(sky: Sky, size: int, rng: np.random.Generator, *, dust: bool = True, noise: bool = True) -> np.ndarray:
    """Return rendered images, uint8, shape (n, size, size, 3); `dust` and `noise` can be left out for tests."""
    bands = starlight(sky, size)
    if dust and (dusty := sky["dust_tau"] > 0).any():
        bands[dusty] *= transmission(subset(sky, dusty), size)
    _surroundings(sky, size, bands)
    bands = blur(bands, fwhm(sky, size))
    _stars(sky, size, bands)
    if noise:
        # Sky noise and photon noise: Gaussian with the Poisson variance (at least tens of electrons per pixel).
        variance = np.square(SKY_NOISE)[:, None, None] + np.maximum(bands, 0) / np.float32(ELECTRONS)
        deviates = rng.standard_normal(bands.shape, dtype=np.float32)
        deviates *= np.sqrt(variance)
        bands += GRAIN * deviates / noise_level(sky, size)[:, None, None, None]
    _camera_faults(sky, size, bands)
    return lupton(bands)
