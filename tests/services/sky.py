"""The sky of the loopback services: images at a position, and how to decode the position from an image.

Sixteen black or white cells in the top row of every image encode its position, so that tests detect a cutout stored
for the wrong object.
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from galscan.surveys.simulated.survey import SimulatedSurvey

KINDS = 8  # galaxies that are drawn; each position shows one of them
CELLS = 16
NANOMAGGIES = 0.0022  # of a count of the SDSS frames, on a pixel as small as those of Legacy Surveys


def code(ra: float, dec: float) -> int:
    """Return the 16 bits encoded in an image at this position."""
    return zlib.crc32(f"{ra:.5f} {dec:.5f}".encode()) & 0xFFFF


def read_code(image: np.ndarray) -> int:
    """Return the bits of a stored cutout, shape (size, size, 3)."""
    width = image.shape[1] / CELLS
    cells = [image[: int(width), int(k * width) : int((k + 1) * width)].mean() for k in range(CELLS)]
    return sum(int(mean > 127) << k for k, mean in enumerate(cells))


def covered(ra: float, dec: float) -> bool:
    """Return whether any survey covers the position: none in the south, and not one of 50 positions elsewhere."""
    return dec > -35 and zlib.crc32(f"hole {ra:.5f} {dec:.5f}".encode()) % 50 != 0


@lru_cache(maxsize=1)
def galaxies() -> list[np.ndarray]:
    return [cutout.image for cutout in SimulatedSurvey(KINDS, size=128, seed=7).cutouts(0, KINDS)]


@lru_cache(maxsize=64)
def _galaxy(kind: int, pixels: int) -> np.ndarray:
    return np.asarray(Image.fromarray(galaxies()[kind]).resize((pixels, pixels), Image.Resampling.HAMMING))


def picture(ra: float, dec: float, pixels: int) -> np.ndarray:
    """Return the image at a position, uint8 of shape (pixels, pixels, 3), row 0 at the top."""
    value = code(ra, dec)
    image = _galaxy(value % KINDS, pixels).copy()
    width = pixels / CELLS
    for k in range(CELLS):
        image[: int(width), int(k * width) : int((k + 1) * width)] = 255 * (value >> k & 1)
    return image


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cube(ra: float, dec: float, pixels: int, scale: float, bands: str, *, nan: bool = False) -> bytes:
    """Return a FITS cube (nband, H, W) of nanomaggies, or a plane where there is one band, as Legacy Surveys do."""
    real = _real(ra, dec, pixels, scale, bands)
    if real is not None:
        planes = real
    elif covered(ra, dec):
        light = picture(ra, dec, pixels)[::-1].astype(np.float32) / 255  # FITS counts rows from the bottom
        noise = np.random.default_rng(code(ra, dec)).normal(0, 0.003, (len(bands), pixels, pixels))
        planes = np.stack([light[:, :, 2 - min(k, 2)] * (1 + k) for k in range(len(bands))]) + noise
    else:
        planes = np.zeros((len(bands), pixels, pixels))
    header = fits.Header({"SURVEY": "LegacySurvey", "BANDS": bands} | dict(_wcs(ra, dec, pixels, scale).to_header()))
    buffer = io.BytesIO()
    data = np.full_like(planes, np.nan if nan else 0, np.float32) + planes.astype(np.float32)
    fits.PrimaryHDU(data if len(bands) > 1 else data[0], header).writeto(buffer)
    return buffer.getvalue()


EXPOSURE = {"g": 645.0, "r": 720.0, "i": 1035.0}  # seconds, of a stack


def stack(ra: float, dec: float, pixels: int, band: str, *, blank: bool = False) -> bytes:
    """Return a cutout of one band of a Pan-STARRS stack: counts over its exposure, linear, as fitscut gives it."""
    with fits.open(io.BytesIO(cube(ra, dec, pixels, 0.25, "gri"))) as hdus:
        plane, header = hdus[0].data["gri".index(band)] * 10 * EXPOSURE[band], _wcs(ra, dec, pixels, 0.25).to_header()
    header.update({"EXPTIME": EXPOSURE[band], "HIERARCH FPA.ZP": 25.0, "HIERARCH FPA.FILTERID": f"{band}.00000"})
    buffer = io.BytesIO()
    fits.PrimaryHDU(np.full_like(plane, np.nan) if blank else plane.astype(np.float32), header).writeto(buffer)
    return buffer.getvalue()


def _wcs(ra: float, dec: float, pixels: int, scale: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [ra, dec]
    wcs.wcs.crpix, wcs.wcs.cdelt = [pixels / 2 + 0.5] * 2, [-scale / 3600, scale / 3600]
    return wcs


# --------------------------------------------------------------------------------------------- real galaxies


def real_folder() -> Path:
    given = os.environ.get("GALSCAN_TEST_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"


@lru_cache(maxsize=1)
def real_galaxies() -> dict[str, tuple[float, float, float]]:
    """Return name -> (ra, dec, pixel scale) of the real SDSS frames, none where there are none."""
    found = {}
    for path in sorted((real_folder() / "fits-sdss-gri").glob("*_r.fits")):
        with fits.open(path) as hdus, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old keywords
            wcs, (height, width) = WCS(hdus[0].header), hdus[0].data.shape
        ra, dec = wcs.all_pix2world((width - 1) / 2, (height - 1) / 2, 0)
        scale = float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))) * 3600
        found[path.stem.removesuffix("_r")] = float(ra), float(dec), scale
    return found


def _real(ra: float, dec: float, pixels: int, scale: float, bands: str) -> np.ndarray | None:
    """Return a cutout of a real frame, resampled as the services do, where there is one; z is taken from i."""
    from scipy.ndimage import map_coordinates

    near = [n for n, (a, d, _) in real_galaxies().items() if abs(a - ra) < 1e-4 and abs(d - dec) < 1e-4]
    if not near:
        return None
    y, x = np.mgrid[:pixels, :pixels]
    there = _wcs(ra, dec, pixels, scale).all_pix2world(x.ravel(), y.ravel(), 0)
    planes = []
    for band in bands:
        with fits.open(real_folder() / "fits-sdss-gri" / f"{near[0]}_{'i' if band == 'z' else band}.fits") as hdus:
            column, row = WCS(hdus[0].header).all_world2pix(*there, 0)
            planes.append(map_coordinates(hdus[0].data.astype(float), [row, column], order=1).reshape(pixels, pixels))
    return NANOMAGGIES * np.stack(planes)
