"""FITS headers, read without the pixels, and their WCS.

Files may be compressed (``.gz .bz2``, or tiles: ``.fz``). One of several images in a file is named by the number of its
HDU: ``camera.fits[3]``.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from galscan.core.sky import unit_vectors
from galscan.surveys.file_names import band_of, is_companion
from galscan.surveys.flux_scale import FluxScale, flux_scale

BLOCK = 2880  # bytes of a FITS block
MAX_HEADER = 1000 * BLOCK  # longer than any real header: without END by then, it is not a FITS file
MAX_HDUS = 1000
FILTERS = ("FILTER", "BAND", "FILTNAM1", "FILTER1", "FILTER2", "INSFLNAM", "PHYSFILT", "FPA.FILTER", "FILTERID")
_SIP = re.compile(rb"[AB]P?_(?:ORDER|DMAX|\d+_\d+) *=")
_CELESTIAL = re.compile(r"RA-|DEC-|.LON|.LAT|..LN|..LT")
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
    flux: FluxScale = FluxScale()
    values: Mapping[str, str] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Return the name of the extension, with its version if that is not 1."""
        name, version = self.values.get("EXTNAME", ""), self.values.get("EXTVER", "1")
        return name if version == "1" else f"{name},{version}"


def split_extension(path: Path) -> tuple[Path, int | None]:
    """Split ``camera.fits[3]`` into the path of the file and the number of the HDU, None if there is none."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", path.name)
    return (path.with_name(match[1]), int(match[2])) if match else (path, None)


def read_header(path: Path) -> Header:
    """Read the header of an image of a FITS file, without its pixels: the first with a WCS that is no mask or the like.

    Raises `ValueError` if it is not a FITS file, is truncated within a header, or has no two-dimensional image, or if
    its pixels are not proportional to flux.
    """
    path, number = split_extension(path)
    found: dict[bool, Header] = {}  # the first picture without a WCS (a preview), and the first of anything else
    for header in _images(path):
        picture = is_picture(header.values)
        if header.hdu == number or (number is None and picture and _has_wcs(header)):
            return header._replace(flux=flux_scale(header.values))
        found.setdefault(picture, header)
    if not found or number is not None:
        raise ValueError("no two-dimensional image in the file")
    header = found.get(True) or found[False]
    return header._replace(flux=flux_scale(header.values))


def read_headers(path: Path) -> list[Header]:
    """Read the headers of all images of a FITS file that have a WCS and are no masks, weights or the like.

    Behind the image of a primary HDU, compressed files are not searched: they would have to be decompressed.
    """
    with open(path, "rb") as file:
        packed = file.read(3)[:2] in (b"\x1f\x8b", b"BZ")
    found: list[Header] = []
    for header in _images(path):
        if _has_wcs(header) and is_picture(header.values):
            found.append(header)
        if packed and header.hdu == 0:
            break
    return found


def _has_wcs(header: Header) -> bool:
    return _CELESTIAL.match(header.values.get("CTYPE1", "")) is not None


def is_picture(header: Mapping[str, Any]) -> bool:
    """Return whether an extension is an image of the sky, and not its errors, mask, weights or the like."""
    words = " ".join(str(header[key]) for key in ("EXTNAME", "EXTTYPE", "HDUCLAS2", "IMAGETYP") if key in header)
    return not is_companion(words, extension=True)


def image_band(header: Mapping[str, Any]) -> tuple[str, str]:
    """Return the bands that the name of an extension and that the keywords of its filter say; ``""`` where unknown."""
    name = band_of(str(header.get("EXTNAME", "")))
    texts = [str(header[key]) for key in FILTERS if key in header]
    return name, next((band for text in texts if (band := band_of(text))), "")


def bands_of(headers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the band of each image of a file, if every one is of another band; else an empty list."""
    for bands in zip(*map(image_band, headers), strict=True):
        if all(bands) and len(set(bands)) == len(bands):
            return list(bands)
    return []


def _images(path: Path) -> Iterator[Header]:
    """Yield the headers of the two-dimensional images of a file."""
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
                yield Header(
                    cards, shape, tiles, hdu, file.tell(), bitpix, scale, zero, blank, values=MappingProxyType(value)
                )
            file.seek(-(-_data_bytes(value) // BLOCK) * BLOCK, io.SEEK_CUR)


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
    return {key.rstrip(): _text(value) for key, value in map(_card, lines) if key}


def _card(line: str) -> tuple[str, str]:
    if line.startswith("HIERARCH "):
        key, _, value = line[9:].partition("=")
        return key.strip(), value
    return (line[:8], line[10:]) if line[8:10] == "= " else ("", "")


def _text(value: str) -> str:
    quoted = re.match(r"\s*'((?:[^']|'')*)'", value)
    return quoted[1].strip() if quoted else value.split("/")[0].strip(" '")


def _image(value: dict[str, str], tiles: bool) -> tuple[tuple[int, int], int] | None:
    """Return shape and BITPIX of a two-dimensional image, which may have further axes of length 1, else None."""
    z = "Z" if tiles else ""
    axes = int(value.get(f"{z}NAXIS", 0))
    if axes < 2 or (not tiles and value.get("XTENSION", "IMAGE") != "IMAGE"):
        return None
    if any(value[f"{z}NAXIS{k + 1}"] != "1" for k in range(2, axes)):
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
        from astropy.io import fits
        from astropy.wcs import WCS, WCSSUB_CELESTIAL, Wcsprm

        self.shape = header.shape
        self.system: Any = None  # astropy coordinate frame, None for ICRS
        cards = _without_unused_sip(header.cards)
        self.ignored_sip = len(cards) < len(header.cards)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old keywords, fixed as they are read
                # wcslib alone is forty times as fast as astropy's WCS. It lacks only lookup tables.
                self._wcs: Any = Wcsprm(cards, relax=True)
                if self._wcs.naxis > 2:  # further axes have length 1
                    self._wcs = self._wcs.sub([WCSSUB_CELESTIAL])
                self._wcs.fix()
                self._wcs.set()
                tables = any(word in cards for word in (b"D2IMDIS", b"CPDIS"))
                self._full_wcs = WCS(fits.Header.fromstring(cards)) if tables else None
                celestial = self._wcs.lng >= 0 and self._wcs.lat >= 0 and self._wcs.naxis == 2
                if celestial:
                    self.system = self._system(fits.Header.fromstring(cards))
        except Exception as error:  # wcslib raises a dozen types
            raise NoAstrometry(f"its WCS cannot be used ({' '.join(str(error).split())[:120]})") from error
        if not celestial:
            raise NoAstrometry("no celestial WCS")

    def _system(self, header: Any) -> Any:
        from astropy.coordinates import FK5
        from astropy.wcs import WCS
        from astropy.wcs.utils import wcs_to_celestial_frame

        equatorial = self._wcs.lngtyp.strip() == "RA"
        if equatorial and self._wcs.radesys.strip() == "ICRS":
            return None
        if equatorial and self._wcs.radesys.strip() == "FK5" and self._wcs.equinox == 2000:
            return FK5()
        return wcs_to_celestial_frame(WCS(header).celestial)

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


def _without_unused_sip(cards: bytes) -> bytes:
    """Return a header without SIP terms that its CTYPE does not switch on.

    The convention is that CTYPE ends with -SIP (Shupe et al. 2005, ASPC 347, 491). Programs that rectify an image often
    leave the terms in the header; wcslib and astropy would apply them, and astropy would say so on stdout.
    """
    lines = [cards[i : i + 80] for i in range(0, len(cards), 80)]
    if any(line.startswith(b"CTYPE") and b"-SIP" in line for line in lines):
        return cards
    return b"".join(line for line in lines if not _SIP.match(line))


def _transformed(lon: np.ndarray, lat: np.ndarray, old: Any, new: Any) -> tuple[np.ndarray, np.ndarray]:
    """Transform between coordinate frames of astropy; None is ICRS."""
    if old is new:
        return lon, lat
    from astropy.coordinates import ICRS, SkyCoord

    old, new = (ICRS() if frame is None else frame for frame in (old, new))  # a frame without data is False
    spherical = SkyCoord(lon, lat, unit="deg", frame=old).transform_to(new).spherical
    return spherical.lon.deg, spherical.lat.deg


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
