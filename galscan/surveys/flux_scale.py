"""The scale of the pixels of a FITS image, by its header: linear, or to be made linear; and its zero point."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from galscan.core.errors import InputError

LUPTITUDE = 2.5 / np.log(10)
MAX_DIFFERENCE = 0.3  # mag between the zero points of images that are rendered with one stretch
_FLUX_UNITS = {"njy": 31.4, "ujy": 23.9, "microjy": 23.9, "mjy": 16.4, "jy": 8.9, "nanomaggy": 22.5, "nmgy": 22.5}
_NOT_LINEAR = re.compile(r"^\s*(?:(?:-?2\.5\s*)?log|ln\b|dex\b|asinh|sqrt|(?:ab|vega)?\s*-?mag(?:nitude)?s?\b)", re.I)


class FluxScale(NamedTuple):
    """Asinh magnitudes of Pan-STARRS1 stacks; a `softening` of 0 means that pixels are linear."""

    softening: float = 0.0
    offset: float = 0.0
    exposure: float = 1.0

    def linear(self, values: np.ndarray) -> np.ndarray:
        """Return pixels that are proportional to flux: as they are, or counts per second of a Pan-STARRS1 stack.

        https://outerspace.stsci.edu/display/PANSTARRS/PS1+Stack+images: flux is
        ``BOFFSET + 2 BSOFTEN sinh(pixel / 1.0857)``.
        """
        if not self.softening:
            return values
        wide = np.asarray(values, dtype=np.float64)
        flux = (self.offset + 2 * self.softening * np.sinh(wide / LUPTITUDE)) / self.exposure
        return flux.astype(np.float32) if values.dtype == np.float32 else flux


def flux_scale(header: Mapping[str, Any]) -> FluxScale:
    """Return the scale of an image. `header` has numbers, or their text, by keyword.

    Raises `ValueError` if pixels are magnitudes, logarithms or the like, whose noise about zero is lost.
    """
    unit = str(header.get("BUNIT", ""))
    if _NOT_LINEAR.match(unit):
        raise ValueError(f"pixels are in '{unit.strip()}' (BUNIT), not proportional to flux; give images in flux")
    if "BSOFTEN" not in header:
        return FluxScale()
    softening, offset = _number(header["BSOFTEN"]), _number(header.get("BOFFSET", 0))
    exposure = _number(header.get("EXPTIME", 1))
    if not (softening > 0 and np.isfinite(offset) and exposure > 0):
        raise ValueError(
            f"pixels are asinh magnitudes with BSOFTEN {softening:g}, BOFFSET {offset:g} and EXPTIME {exposure:g}, "
            "which must be above 0; download the image again"
        )
    return FluxScale(softening, offset, exposure)


def zero_point(header: Mapping[str, Any]) -> float | None:
    """Return the AB magnitude of one count by FLUXMAG0 (HSC), MAGZERO (Euclid, DECam) or BUNIT; None if unknown."""
    if "FLUXMAG0" in header and (flux := _number(header["FLUXMAG0"])) > 0:
        return float(2.5 * np.log10(flux))
    if "MAGZERO" in header and np.isfinite(value := _number(header["MAGZERO"])):
        return value
    return _FLUX_UNITS.get(str(header.get("BUNIT", "")).strip().lower())


def check_zero_points(headers: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Check that images of one band have one zero point; `headers` are band, name and header of each.

    Raises `InputError` if they differ: one stretch would render objects of one magnitude differently.
    """
    first: dict[str, tuple[str, float]] = {}
    for band, name, header in headers:
        if (value := zero_point(header)) is None:
            continue
        other, reference = first.setdefault(band, (name, value))
        if abs(value - reference) > MAX_DIFFERENCE:
            raise InputError(
                f"the zero points of {other} and {name} are {reference:.2f} and {value:.2f} mag, at most "
                f"{MAX_DIFFERENCE:g} mag is allowed for one stretch; scale the images to one unit, or ingest them apart"
            )


def _number(value: Any) -> float:
    """Return a value of a header as a number, NaN if it is none."""
    try:
        return float(str(value).replace("D", "E"))
    except ValueError:
        return float("nan")
