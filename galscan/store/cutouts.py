"""One object of a store as `astropy.nddata.NDData`: its row, its metadata and its WCS."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.core.errors import InputError, UnknownObjectError
from galscan.surveys.base import Flag

if TYPE_CHECKING:
    from astropy.wcs import WCS

NORTH_UP = "north up, east left"
NEARLY = 1.0  # degrees: an image that is rotated by less counts as north up
NEAREST = 3  # ids in the message about an unknown one
_COMPARED = 500  # ids on either side of the unknown one, in text order, that are compared with it


def checked_row(row: Any, count: int, where: str) -> int:
    """Return a row number as an int from 0; a negative one counts from the end.

    Raises
    ------
    UnknownObjectError
        If the store has no such row.
    InputError
        If it is not an integer.
    """
    try:
        number = operator.index(row)
    except TypeError:
        raise InputError(
            f"{row!r:.60} is not a row number of {where}; use store.cutout(id) for an id, store.images(slice) for many"
        ) from None
    if not -count <= number < count:
        raise UnknownObjectError(f"{where} has no row {number}; it has {count:,} objects, rows 0 to {count - 1}")
    return number % count


def row_of(ids: np.ndarray, wanted: Any, where: str) -> int:
    """Return the row of the object whose id is `wanted`, a number or text.

    Raises
    ------
    UnknownObjectError
        If no object has this id; the message names the nearest ids.
    InputError
        If several objects have it.
    """
    text = str(wanted).strip()
    if ids.dtype.kind == "U":
        found = np.flatnonzero(ids == text)
    else:
        found = np.flatnonzero(ids == int(text)) if _is_integer(text) else np.empty(0, int)
    if not len(found):
        near = ", ".join(_nearest(ids.astype(str), text))
        raise UnknownObjectError(f"{where} has no object with id {text[:60]!r}; the nearest ids are {near}")
    if len(found) > 1:
        rows = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise InputError(f"{len(found)} objects of {where} have id {text!r}; take one by its row: store[{rows}]")
    return int(found[0])


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and abs(int(digits)) < 2**63


def _nearest(ids: np.ndarray, text: str) -> list[str]:
    """Return the ids that are most similar, among those that are close in text order: there may be millions."""
    order = np.sort(ids)
    at = int(np.searchsorted(order, text))
    close = order[max(at - _COMPARED, 0) : at + _COMPARED].tolist()
    similar = difflib.get_close_matches(text, close, n=NEAREST, cutoff=0.6)
    return similar or order[max(at - 1, 0) :][:NEAREST].tolist() or order[-NEAREST:].tolist()


def orientation(provenance: Mapping[str, Any]) -> str:
    """Return the orientation of all cutouts of a store: `NORTH_UP`, or what is known instead."""
    recorded = str(provenance.get("orientation") or "")
    if recorded == NORTH_UP or provenance.get("survey") == "simulated":  # by definition, for simulated galaxies
        return NORTH_UP
    rotation = provenance.get("rotation_left")  # of frames that were turned by quarter turns
    if recorded.startswith(NORTH_UP) and rotation and max(map(abs, rotation)) <= NEARLY:
        return NORTH_UP
    return recorded or "unknown"


def metadata(
    survey: str, store: str, row: int, provenance: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``meta`` of a cutout; `values` holds its id, ra, dec, pixel_scale and flags."""
    rendering = provenance.get("rendering") or {}
    colours = [rendering[c] for c in ("blue", "green", "red") if rendering.get(c)]
    bands: Sequence[str] = provenance.get("bands") or list(dict.fromkeys(colours))
    return {
        "id": values["id"].item(),
        "survey": survey,
        "store": store,
        "row": row,
        "ra": float(values["ra"]),
        "dec": float(values["dec"]),
        "frame": "icrs",
        "pixel_scale": float(values["pixel_scale"]),
        "orientation": orientation(provenance),
        "framing": provenance.get("framing"),
        "bands": list(bands),
        "stretch": provenance.get("stretch") or provenance.get("rendering"),
        "flags": [str(flag.name).lower() for flag in Flag if flag and int(values["flags"]) & flag],
    }


def celestial_wcs(ra: float, dec: float, pixel_scale: float, size: int) -> WCS | None:
    """Return the WCS of an image with north up and east left, row 0 at the top; None if a value is unknown.

    Parameters
    ----------
    ra, dec : float
        Position of the centre, deg, ICRS.
    pixel_scale : float
        Arcsec per pixel.
    size : int
        Pixels on a side.
    """
    if not (math.isfinite(ra) and math.isfinite(dec) and pixel_scale > 0):
        return None
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(size + 1) / 2] * 2
    wcs.wcs.cdelt = [-pixel_scale / 3600] * 2  # the first row is the northernmost, so that declination falls with y
    wcs.array_shape = (size, size)
    return wcs
