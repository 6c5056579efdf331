"""The planes of an object by band, from FITS files: one file per band, one extension per band, or a cube."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from galscan.surveys.file_names import band_of, split_band
from galscan.surveys.flux_scale import flux_scale
from galscan.surveys.header import Astrometry, Header, bands_of, is_picture, scale

MAX_PIXELS = 64_000_000  # of one file, against decompression bombs
MAX_PLANES = 8
SCIENCE = (
    "SCI",
    "SCIENCE",
    "IMAGE",
    "DATA",
    "COADD",
)  # names of the extension that is the picture, whatever the others


class FileInMemory(io.BytesIO):
    """A file in memory, from an archive or a service; its name may contain the band."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def read_planes(
    paths: Sequence[Path | FileInMemory], bands: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Read the bands of one object: planes by band, and the FITS headers of the files.

    One file per band, or one file with a plane or an extension per band. `bands` are the bands of the files, by default
    those in their names. Planes without band names are called 0, 1, 2: blue to red, as in the cutouts of the Legacy
    Surveys. Axes of length 1 are left out, and so are extensions of errors, masks and weights.

    Raises `ValueError` if a file has no image, or a too large one, several that are not bands, or pixels that are not
    proportional to flux. Astropy raises other errors for broken files.
    """
    from astropy.io import fits

    planes: dict[str, np.ndarray] = {}
    headers = []
    for path, band in zip(paths, bands or [split_band(p.name)[1] for p in paths], strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old keywords, fixed by astropy as it reads
            with fits.open(path, memmap=False) as hdus:
                found, header = _planes(path.name, hdus, band)
        if twice := found.keys() & planes.keys():
            raise ValueError(f"{path.name} is another image of band {twice.pop()}")
        planes |= found
        headers.append(header)
    return planes, headers


def _planes(name: str, hdus: Any, band: str) -> tuple[dict[str, np.ndarray], Any]:
    """Return the planes of one file, and the header of the first."""
    images = [hdu for hdu in hdus if hdu.is_image and len(_axes(hdu.shape)) in (2, 3)]
    if not images:
        raise ValueError(f"{name} has no image")
    images = [hdu for hdu in images if is_picture(hdu.header)] or images
    if len(images) > 1 and len(science := [hdu for hdu in images if hdu.name in SCIENCE]) == 1:
        images = science
    if (pixels := sum(np.prod(hdu.shape, dtype=float) for hdu in images)) > MAX_PIXELS:
        raise ValueError(f"{name} has {pixels:,.0f} pixels, at most {MAX_PIXELS:,} are allowed")
    header = images[0].header
    if len(images) == 1:
        data = _flux(images[0])
        if data.ndim == 2:
            return {band or "0": data}, header
        if len(data) > MAX_PLANES:
            raise ValueError(f"{name} has {len(data)} planes, at most {MAX_PLANES} bands are allowed")
        return dict(zip(_plane_names(header, len(data)), data, strict=True)), header
    names = bands_of([hdu.header for hdu in images])
    if not names or len({_axes(hdu.shape) for hdu in images}) > 1 or len(_axes(images[0].shape)) > 2:
        listed = ", ".join(hdu.name or str(k) for k, hdu in enumerate(images))
        raise ValueError(
            f"{name} has {len(images)} images ({listed[:60]}) whose EXTNAME and FILTER name no bands; keep one, name "
            "the bands, or cut objects from the chips of a camera: --survey frames"
        )
    return {b: _flux(hdu) for b, hdu in zip(names, images, strict=True)}, header


def _axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths of the axes of an image but for additional ones of length 1."""
    extra = [k for k, length in enumerate(shape) if length == 1][: max(len(shape) - 2, 0)]
    return tuple(length for k, length in enumerate(shape) if k not in extra)


def _flux(hdu: Any) -> np.ndarray:
    """Return the pixels, proportional to flux, as float32."""
    scale = flux_scale(hdu.header)
    values = np.asarray(hdu.data, dtype=np.float64 if scale.softening else np.float32)
    return scale.linear(values).astype(np.float32, copy=False).reshape(_axes(hdu.shape))


def _plane_names(header: Mapping[str, Any], count: int) -> list[str]:
    """Return the bands of a cube: of BANDS (``grz`` or ``F606W,F814W``) or BAND0, BAND1 ...; else their numbers."""
    text = str(header.get("BANDS", "")).strip()
    numbered = [str(header.get(f"BAND{k}", "")).strip() for k in range(count)]
    for names in (list(text), re.split(r"[\s,;]+", text), numbered):
        known = [band_of(name) or name for name in names]
        if len(known) == count and all(known) and len(set(known)) == count:
            return known
    return [str(k) for k in range(count)]


def astrometry(headers: Sequence[Any], planes: Mapping[str, np.ndarray]) -> Astrometry | None:
    """Return the astrometry of the first header with celestial coordinates; None if there is none."""
    shape = next(iter(planes.values())).shape
    for header in headers:
        with suppress(Exception):  # wcslib and astropy raise many types of errors
            cards = header.tostring(sep="", endcard=True, padding=False).encode("ascii")
            return Astrometry(Header(cards, (shape[0], shape[1]), False, 0, 0, -32, 1.0, 0.0, None))
    return None


def read_centre(path: Path | FileInMemory) -> tuple[float, float]:
    """Return the position (ICRS, deg) of the centre of a FITS image. Raises any error if there is none."""
    planes, headers = read_planes([path])
    found = astrometry(headers, planes)
    if found is None:
        raise ValueError(f"{path.name} has no celestial WCS")
    ra, dec = found.sky(*_centre(found))
    return float(ra[0]), float(dec[0])


def centre_scale(headers: Sequence[Any], planes: Mapping[str, np.ndarray]) -> float:
    """Return arcsec per pixel at the centre of an image, NaN if it has no celestial WCS."""
    found = astrometry(headers, planes)
    return float(scale(found.local(*_centre(found)))[0]) if found is not None else float("nan")


def _centre(found: Astrometry) -> tuple[np.ndarray, np.ndarray]:
    height, width = found.shape
    return np.array([(width - 1) / 2]), np.array([(height - 1) / 2])
