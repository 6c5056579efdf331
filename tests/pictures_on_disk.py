"""Small pictures and frames on disk, for the tests of surveys.local and its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from galscan.surveys.base import Cutout, Failed
from galscan.surveys.files.local import LocalSurvey

OBJID = 588848901532418163  # loses its last digits as a float


def picture(path: Path, size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode=mode).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def frame(path: Path, pixels: np.ndarray, **header: object) -> Path:
    fits.PrimaryHDU(pixels.astype(np.float32), fits.Header(header)).writeto(path)
    return path


def sky_frame(seed: int, level: float = 0.0, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    galaxy = 200 * np.exp(-((x - size / 2) ** 2 + (y - size / 2) ** 2) / 40)
    return np.random.default_rng(seed).normal(level, 2, (size, size)) + galaxy


def only(survey: LocalSurvey) -> Cutout | Failed:
    (outcome,) = survey.cutouts(0, 1)
    return outcome


def three_bands(path: Path, level: float = 0.0, count: int = 2) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150, 2]
    wcs.wcs.crpix, wcs.wcs.cdelt = [24.5, 24.5], [-1e-4, 1e-4]
    for n in range(count):
        for b, band in enumerate("gri"):
            pixels = sky_frame(10 * n + b, level)
            pixels[40:44, 20:28] += 400 if band == "i" else 0  # a red star in the upper part of the sky (large y)
            frame(path / f"ob{n}_{band}.fits", pixels, **dict(wcs.to_header()))
