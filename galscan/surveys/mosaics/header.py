"""FITS headers, read without the pixels, and their WCS.

The first two-dimensional image of a file is used; files may be compressed (``.gz .bz2``, or tiles: ``.fz``).
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from galscan.core.sky import unit_vectors

BLOCK = 2880  # bytes of a FITS block
MAX_HEADER = 1000 * BLOCK  # longer than any real header: without END by then, it is not a FITS file
MAX_HDUS = 1000
TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


class Header(NamedTuple):
    """The header of an image: `cards` are its bytes, `hdu` and `offset` the position of its data."""

    cards: bytes
    shape: tuple[int, int]
    tiles: bool
    hdu: int
    offset: int
    bitpix: int
    bscale: float
    bzero: float
    blank: int | None


def read_header(path: Path) -> Header:
    """Read the header of the first image of a FITS file, without its pixels.

    Raises `ValueError` if it is not a FITS file, is truncated within a header, or has no two-dimensional image.
    """
    with open_decompressed(path) as file:
        for hdu in range(MAX_HDUS):
            cards = _cards(file)
            if not cards:
                break
            value = _values(cards)
            tiles = value.get("ZIMAGE") == "T"
            if image := _image(value, tiles):
                shape, bitpix = image
                scale, zero = (float(value.get(k, d).replace("D", "E")) for k, d in (("BSCALE", "1"), ("BZERO", "0")))
                blank = int(value["BLANK"]) if "BLANK" in value and bitpix > 0 else None
                return Header(cards, shape, tiles, hdu, file.tell(), bitpix, scale, zero, blank)
            file.seek(-(-_data_bytes(value) // BLOCK) * BLOCK, io.SEEK_CUR)
    raise ValueError("no two-dimensional image in the file")


def open_decompressed(path: Path) -> BinaryIO:
    """Open a file that may be compressed by gzip or bzip2, detected by its first bytes and not by its name."""
    with open(path, "rb") as file:
        magic = file.read(3)
    opener: Any = gzip.open if magic[:2] == b"\x1f\x8b" else bz2.open if magic == b"BZh" else open
    return opener(path, "rb")


def _cards(file: BinaryIO) -> bytes:
    """Return the cards of the next header up to END; empty at the end of the file."""
    cards = b""
    while len(cards) < MAX_HEADER:
        block = file.read(BLOCK)
        if not cards and not block.strip(b"\0 "):
            return b""
        if not cards and not block.startswith((b"SIMPLE  =", b"XTENSION=")):
            raise ValueError("not a FITS file")
        cards += block
        for start in range(len(cards) - len(block), len(cards), 80):
            if cards[start : start + 80].rstrip() == b"END":
                return cards[: start + 80]
        if len(block) < BLOCK:
            raise ValueError("truncated within a header")
    raise ValueError("a header without END")


def _values(cards: bytes) -> dict[str, str]:
    """Return the values of a header as text; enough for numbers, logical values and short strings."""
    lines = (cards[i : i + 80].decode("ascii", "replace") for i in range(0, len(cards), 80))
    return {c[:8].rstrip(): c[10:].split("/")[0].strip(" '") for c in lines if c[8:10] == "= "}


def _image(value: dict[str, str], tiles: bool) -> tuple[tuple[int, int], int] | None:
    """Return shape and BITPIX of a two-dimensional image, else None."""
    z = "Z" if tiles else ""
    if value.get(f"{z}NAXIS") != "2" or (not tiles and value.get("XTENSION", "IMAGE") != "IMAGE"):
        return None
    height, width, bitpix = (int(value[f"{z}{key}"]) for key in ("NAXIS2", "NAXIS1", "BITPIX"))
    if height < 1 or width < 1 or bitpix not in TYPES:
        raise ValueError(f"an image of {height} x {width} pixels with BITPIX {bitpix}")
    return (height, width), bitpix


def _data_bytes(value: dict[str, str]) -> int:
    axes = [int(value[f"NAXIS{k + 1}"]) for k in range(int(value.get("NAXIS", 0)))]
    pixels = math.prod(axes) if axes else 0
    return abs(int(value["BITPIX"])) // 8 * int(value.get("GCOUNT", 1)) * (int(value.get("PCOUNT", 0)) + pixels)


# -------------------------------------------------------------------------------------------- astrometry


class NoAstrometry(ValueError):
    """A header has no usable celestial WCS."""


class Astrometry:
    """Conversion between pixels (x along rows, y up, 0 at the centre of the first pixel) and the sky (ICRS, deg).

    Raises `NoAstrometry` if the header has no celestial coordinates, or unusable ones.
    """

    def __init__(self, header: Header):
        from astropy.wcs import WCS, Wcsprm

        self.shape = header.shape
        self.system: Any = None  # astropy coordinate frame, None for ICRS
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old keywords, fixed as they are read
                # wcslib alone is forty times as fast as astropy's WCS. It lacks only lookup tables, and SIP terms
                # that CTYPE does not mention.
                self._wcs: Any = Wcsprm(header.cards, relax=True)
                self._wcs.fix()
                self._wcs.set()
                named = any("-SIP" in c for c in self._wcs.ctype)
                tables = any(word in header.cards for word in (b"D2IMDIS", b"CPDIS"))
                full = tables or (b"A_ORDER " in header.cards and not named)
                self._full_wcs = WCS(_astropy_header(header)) if full else None
                celestial = self._wcs.lng >= 0 and self._wcs.lat >= 0 and self._wcs.naxis == 2
                if celestial:
                    self.system = self._system(header)
        except Exception as error:  # wcslib raises a dozen types
            raise NoAstrometry(f"its WCS cannot be used ({' '.join(str(error).split())[:120]})") from error
        if not celestial:
            raise NoAstrometry("no celestial WCS")

    def _system(self, header: Header) -> Any:
        from astropy.coordinates import FK5
        from astropy.wcs import WCS
        from astropy.wcs.utils import wcs_to_celestial_frame

        equatorial = self._wcs.lngtyp.strip() == "RA"
        if equatorial and self._wcs.radesys.strip() == "ICRS":
            return None
        if equatorial and self._wcs.radesys.strip() == "FK5" and self._wcs.equinox == 2000:
            return FK5()
        return wcs_to_celestial_frame(WCS(_astropy_header(header)))

    def pixels(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of positions, NaN outside the projection."""
        lon, lat = _transformed(ra, dec, None, self.system)
        if self._full_wcs is not None:
            order = (lon, lat) if self._wcs.lng == 0 else (lat, lon)
            return self._full_wcs.all_world2pix(*order, 0, quiet=True)
        world = np.empty((len(lon), 2))
        world[:, self._wcs.lng], world[:, self._wcs.lat] = lon, lat
        found = self._wcs.s2p(world, 0)
        pixels = np.where(found["stat"][:, None] == 0, found["pixcrd"], np.nan)
        return pixels[:, 0], pixels[:, 1]

    def sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return right ascension and declination of pixels, NaN outside the projection."""
        if self._full_wcs is not None:
            world = np.stack(self._full_wcs.all_pix2world(x, y, 0), axis=1)
        else:
            found = self._wcs.p2s(np.stack([x, y], axis=1).astype(float), 0)
            world = np.where(found["stat"][:, None] == 0, found["world"], np.nan)
        return _transformed(world[:, self._wcs.lng] % 360, world[:, self._wcs.lat], self.system, None)

    def local(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the Jacobian of the WCS at x, y: arcsec to the east and north per pixel in x and y.

        Shape (n, 2, 2), ``[[east by x, east by y], [north by x, north by y]]``; also defined at the poles.
        """
        n = len(x)
        steps = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5], [0, 0]])
        ra, dec = self.sky(*(np.stack([x, y], axis=1)[:, None] + steps).reshape(-1, 2).T)
        points = unit_vectors(ra, dec).reshape(n, 5, 3)
        ra, dec = np.radians(ra[4::5]), np.radians(dec[4::5])
        east = np.stack([-np.sin(ra), np.cos(ra), np.zeros(n)], axis=1)
        north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=1)
        across = np.stack([points[:, 1] - points[:, 0], points[:, 3] - points[:, 2]], axis=2)  # (n, 3, x or y)
        return np.degrees(np.stack([east, north], axis=1) @ across) * 3600


def _transformed(lon: np.ndarray, lat: np.ndarray, old: Any, new: Any) -> tuple[np.ndarray, np.ndarray]:
    """Transform between coordinate frames of astropy; None is ICRS."""
    if old is new:
        return lon, lat
    from astropy.coordinates import ICRS, SkyCoord

    old, new = (ICRS() if frame is None else frame for frame in (old, new))  # a frame without data is False
    spherical = SkyCoord(lon, lat, unit="deg", frame=old).transform_to(new).spherical
    return spherical.lon.deg, spherical.lat.deg


def _astropy_header(header: Header) -> Any:
    from astropy.io import fits

    return fits.Header.fromstring(header.cards)


def scale(local: np.ndarray) -> np.ndarray:
    """Return the pixel scale in arcsec for Jacobians of `Astrometry.local`."""
    return np.sqrt(np.abs(np.linalg.det(local)))


def quarters(local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether to mirror x, and the number of 90-degree rotations after it, that bring north up, east left.

    Applied to an image whose row 0 is at the bottom, north is within 45 degrees of up. Nothing is resampled.
    """
    mirror = np.linalg.det(local) > 0  # on the sky, east is to the left of north
    return mirror, np.rint(_angle(local, mirror) / 90).astype(int) % 4


def rotation(local: np.ndarray) -> np.ndarray:
    """Return the rotation that remains after 90-degree rotations: degrees from up to north, positive to the left."""
    angle = _angle(local, np.linalg.det(local) > 0)
    return angle - 90 * np.rint(angle / 90)


def _angle(local: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Return the angle (deg) of north, from up to the left."""
    north_x, north_y = local[:, 1, 0], local[:, 1, 1]
    return np.degrees(np.arctan2(np.where(mirror, north_x, -north_x), north_y))
