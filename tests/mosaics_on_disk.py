"""Frames of a small simulated sky on disk, for the tests of surveys.mosaics."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS, Sip

from galscan.surveys.base import Outcome
from galscan.surveys.mosaics.cutting import FrameCutouts

SCALE = 0.4  # arcsec a pixel


def tan(ra: float, dec: float, shape: tuple[int, int], *, turn: float = 0.0, mirror: bool = False) -> WCS:
    """Return a TAN WCS whose centre pixel is at ra, dec; north is `turn` degrees from up to the left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    # Rows are east and north. North runs along (-s, c) of x and y, east a quarter turn further to the left.
    cd = np.array([[-c, -s], [-s, c]]) * SCALE / 3600
    wcs.wcs.cd = cd * [-1, 1] if mirror else cd
    wcs.wcs.radesys = "ICRS"
    return wcs


def bend(wcs: WCS) -> WCS:
    """Add a distortion of some pixels."""
    a, b = np.zeros((3, 3)), np.zeros((3, 3))
    a[2, 0], a[1, 1], b[0, 2], b[2, 0] = 2e-5, -1e-5, 3e-5, 1e-5
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    return wcs


def pixels(shape: tuple[int, int], seed: int, stars: int = 12) -> np.ndarray:
    """Return sky noise and a few blobs, float32."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, shape)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(stars):
        at_y, at_x, flux, width = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(20, 90), 3.0
        image += flux * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * width**2))
    return image.astype(np.float32)


def mosaic(path: Path, data: np.ndarray, wcs: WCS | fits.Header | None, **cards: object) -> Path:
    """Write one frame, packed as its name says: .fits, .fits.gz, .fits.bz2 or .fits.fz (without loss)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = fits.Header() if wcs is None else wcs.to_header(relax=True) if isinstance(wcs, WCS) else wcs.copy()
    header.update(cards)
    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".fz"))
    if path.suffix == ".fz":
        fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(data, header, compression_type="GZIP_2", quantize_level=0)]
        ).writeto(path)
        return path
    fits.PrimaryHDU(data, header).writeto(plain)
    if path != plain:
        pack = gzip.compress if path.suffix == ".gz" else bz2.compress
        path.write_bytes(pack(plain.read_bytes()))
        plain.unlink()
    return path


def three_bands(root: Path, name: str, wcs: WCS, shape: tuple[int, int], seed: int = 0, suffix: str = ".fits") -> None:
    """Write the g, r and i bands of one frame."""
    for k, band in enumerate("gri"):
        mosaic(root / f"{name}-{band}{suffix}", pixels(shape, seed) * (0.5 + 0.5 * k), wcs)


def cut_short(path: Path, fraction: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def results(survey: FrameCutouts) -> dict[object, Outcome]:
    """Return the outcome of each object by its id."""
    return dict(zip(survey.ids.tolist(), survey.cutouts(0, len(survey)), strict=True))


SKY_SHAPE = (120, 160)
EAST = 160 * SCALE / 3600  # width of a frame of `write_sky` in degrees
SKY = {
    f"{n}-{name}": (10 + 1.1 * n * EAST + dx * EAST, dec)
    for n, name, dx, dec in (
        (2, "a", 0, 0.0), (0, "a", 0, 0.0), (1, "b", 0.1, 0.001), (0, "b", 0.1, 0.001), (1, "a", 0, 0.0),
        (2, "b", 0.1, 0.001),
    )
}  # fmt: skip


def table(path: Path, positions: dict[str, tuple[float, float]], **columns: object) -> Path:
    frame = pd.DataFrame([(i, *p) for i, p in positions.items()], columns=["id", "ra", "dec"]).assign(**columns)
    frame.to_csv(path, index=False)
    return path


def write_sky(root: Path, suffix: str = ".fits") -> Path:
    """Write three frames in a row, a little apart, and a catalog: two objects on each, in turn, and one on none."""
    for n in range(3):
        three_bands(root, f"m{n}", tan(10 + 1.1 * n * EAST, 0.0, SKY_SHAPE), SKY_SHAPE, seed=n, suffix=suffix)
    table(root / "catalog.csv", SKY | {"off": (50.0, 0.0)})
    return root
