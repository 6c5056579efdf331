"""Units of angles in tables: read from a column's unit or its name, and converted to degrees."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd

from galscan.core.errors import InputError

DEGREE, HOUR = "deg", "hour"
# Degrees in one unit. astropy knows more of them; these are written in ways that it does not know, or are common.
DEGREES = {
    **dict.fromkeys(("deg", "degs", "degree", "degrees", "degr", "decimal degrees", "deg icrs", "°"), 1.0),
    **dict.fromkeys(("rad", "radian", "radians"), 180 / np.pi),
    **dict.fromkeys(("hour", "hours", "hourangle", "hr", "hrs", "h"), 15.0),
    **dict.fromkeys(("arcmin", "arcmins", "amin", "arcminute", "arcminutes", "'"), 1 / 60),
    **dict.fromkeys(("arcsec", "arcsecs", "asec", "arcsecond", "arcseconds", '"'), 1 / 3600),
    "mas": 1 / 3_600_000,
}
HOURS = {unit for unit, degrees in DEGREES.items() if degrees == 15.0}
# Sexagesimal text, and the degrees in its first field.
SEXAGESIMAL = {
    **dict.fromkeys(("h:m:s", "hms", "hh:mm:ss", "hours:minutes:seconds"), 15.0),
    **dict.fromkeys(("d:m:s", "dms", "dd:mm:ss", "deg:m:s", "deg:arcmin:arcsec"), 1.0),
}
# Units that names of columns end with: radius_arcmin, RA(deg), "pixel scale [deg]".
ENDINGS = ("deg", "degs", "degree", "degrees", "rad", "radian", "radians", "hour", "hours", "hourangle", "hr", "hrs",
           "hms", "arcmin", "arcsec", "asec", "mas", "pix", "pixel", "pixels", "px", "kpc")  # fmt: skip
PIXELS = ("pix", "pixel", "pixels", "px")
_BRACKETS = re.compile(r"\s*[\(\[{<]\s*([^\)\]}>]*?)\s*[\)\]}>]\s*$")
_ENDING = re.compile(rf"[\s_.\-]+({'|'.join(ENDINGS)})$", re.IGNORECASE)
_PER_PIXEL = re.compile(r"(\s*/\s*|[\s_]*per[\s_]*|\s+)(pix|pixel|px)s?(\*\*|\^)?(-1)?$", re.IGNORECASE)
_FIELDS = re.compile(
    r"([+-]?)\s*(\d{1,3})\s*[:hd°\s]\s*(\d{1,2})\s*[:m'\s]\s*(\d{1,2}(?:\.\d*)?)\s*(?:s|\"|'')?", re.IGNORECASE
)


def split_name(name: str, radius: bool = False) -> tuple[str, str]:
    """Return the name of a column without the unit at its end, and the unit in lower case, "" if there is none.

    ``RA(deg)``, ``ra_deg`` and ``RA [deg]`` are ``RA`` and ``deg``; ``RA (J2000)`` is ``RA J2000`` without a unit. In
    the name of a `radius`, ``rad`` is no unit.
    """
    name = _PER_PIXEL.sub("", name.strip())
    if found := _BRACKETS.search(name):
        unit = _PER_PIXEL.sub("", found[1].lower())
        if unit in DEGREES or unit in SEXAGESIMAL or unit in ENDINGS:
            return name[: found.start()].strip(), unit
        return f"{name[: found.start()].strip()} {found[1]}", ""
    found = _ENDING.search(name)
    if found and not (radius and found[1].lower() == "rad"):
        return name[: found.start()], found[1].lower()
    return name, ""


def plain(name: object) -> str:
    """Return the name of a column in lower case, without its unit, blanks and punctuation: ``ra`` for ``RA [deg]``."""
    return re.sub(r"[^a-z0-9]", "", split_name(str(name))[0].lower())


def degrees_in(unit: str, hours: bool = False) -> float | None:
    """Return the degrees in one `unit`; None if it is no angle.

    A unit per pixel is read as an angle. An hour is an angle only where `hours` allows it.
    """
    unit = _PER_PIXEL.sub("", unit.strip().strip('"').strip()) if len(unit.strip()) > 1 else unit
    if unit.lower() in HOURS and not hours:
        return None
    if unit.lower() in DEGREES:
        return DEGREES[unit.lower()]
    from astropy import units

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated spellings
            return float(units.Unit(unit).to(units.deg))
    except (ValueError, TypeError, units.UnitsError):
        return None


def sexagesimal_in(unit: str) -> float | None:
    """Return the degrees in the first field of sexagesimal text in `unit`; None if it is a unit of numbers."""
    return SEXAGESIMAL.get(unit.strip().strip('"').lower())


def parse_sexagesimal(text: pd.Series, first: float | None) -> pd.Series | None:
    """Return sexagesimal text in degrees, NaN where empty; None if it is not sexagesimal.

    `first` is the degrees in the first field: 15 for hours, 1 for degrees. If it is None, only text that says so by its
    letters (``12h30m00s``, ``+41d16m09s``) is read.
    """
    given = text.dropna()
    fields = given.str.extract(f"^{_FIELDS.pattern}$", flags=re.IGNORECASE)
    if not len(given) or fields[1].isna().any():
        return None
    hours, degrees = (given.str.contains(letter, case=False) for letter in ("h", "d|°"))
    if first is None and not (hours.all() or degrees.all()):
        return None
    unit = np.where(hours, 15.0, np.where(degrees, 1.0, 1.0 if first is None else first))
    parts = fields[[1, 2, 3]].astype(float)
    if (parts[[2, 3]] >= 60.0001).any(axis=None):
        return None
    value = (parts[1] + parts[2] / 60 + parts[3] / 3600) * unit * np.where(fields[0] == "-", -1, 1)
    return value.reindex(text.index)


def parse_position_unit(text: str) -> tuple[str, str]:
    """Return the units of right ascension and declination in a text like ``hour,deg`` or ``rad``.

    Raises `InputError` if one is no angle, or a declination is in hours.
    """
    words = [word.strip().lower() for word in text.split(",")]
    ra, dec = words if len(words) == 2 else (words[0], DEGREE if words[0] in HOURS else words[0])
    if len(words) > 2 or degrees_in(ra, hours=True) is None or degrees_in(dec) is None:
        raise InputError(f"--position-unit {text}: give deg, rad, or hour,deg (of right ascension and declination)")
    return ra, dec
