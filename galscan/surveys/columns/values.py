"""Values of a catalog's columns: exact ids, numbers, and angles in one unit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.columns import angles
from galscan.surveys.columns.angles import plain

MAX_ID = 64  # characters
FINEST = 0.002  # arcsec per pixel: anything finer is in degrees
PIXELS = ("fluxradius", "aimage", "bimage", "kronradius", "petroradius")  # radii of SExtractor, not in arcsec


def identifiers(column: pd.Series, where: str) -> np.ndarray:
    """Return ids as int64 if every one is a plain integer, else as fixed-width text.

    `InputError` is raised if an id is empty, longer than 64 characters, repeated, or has lost digits as a float.
    """
    where = f"id column '{column.name}' of {where}"
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.any(np.abs(values) > 2**53) or np.any(values % 1 != 0):  # NaN fails too
            raise InputError(
                f"{where} contains floating-point numbers, so digits may be lost; store it as integers or text"
            )
        text = pd.Series(values.astype(np.int64)).astype(str)
    else:
        text = column.astype("string").fillna("").str.strip().reset_index(drop=True)
    if len(empty := np.flatnonzero(text == "")):
        raise InputError(
            f"{where} is empty in {len(empty)} row(s), the first is row {empty[0] + 1}; give every object an id"
        )
    rounded = text[text.str.fullmatch(r"\d\.\d+[eE]\+?\d+")]
    if len(rounded):
        raise InputError(f"{where} contains {rounded.iloc[0]}: a spreadsheet rounded it; export the ids as text")
    repeated = text[text.duplicated()]
    if len(repeated):
        raise InputError(
            f"{where}: '{repeated.iloc[0]}' occurs more than once ({len(repeated)} duplicate row(s)); "
            "keep one row per object, or join the columns that are unique together: --column id=A+B"
        )
    longest = text.iloc[int(text.str.len().to_numpy().argmax())]
    if len(longest) > MAX_ID:
        raise InputError(
            f"{where}: '{longest[:24]}...' has {len(longest)} characters, at most {MAX_ID} are allowed; "
            "choose a shorter id column"
        )
    if text.str.fullmatch(r"0|-?[1-9]\d{0,18}").all():  # "007" stays text
        try:
            return np.array([int(t) for t in text], dtype=np.int64)
        except OverflowError:
            pass
    return np.array(text.tolist(), dtype=np.str_)


def numbers(column: pd.Series, where: str) -> np.ndarray:
    """Return a column as float64, NaN where empty; raise `InputError` if a value is not a number."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = column.astype("string").str.strip().replace("", pd.NA)
    values = pd.to_numeric(text, errors="coerce")
    if (bad := values.isna() & text.notna()).any():
        raise InputError(f"column '{column.name}' of {where}: '{text[bad].iloc[0]}' is not a number")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def unit_of(frame: pd.DataFrame, column: str, radius: bool = False) -> str:
    """Return the unit of a column, "" if neither the file nor the column's name says it."""
    declared = str(frame.attrs.get("unit", {}).get(column, "")).strip()
    return declared or angles.split_name(column, radius)[1]


def arcseconds(frame: pd.DataFrame, column: str, role: str, where: str) -> np.ndarray:
    """Return a column of radii or pixel scales in arcsec, converted by its unit; without one, it is in arcsec.

    `InputError` is raised if a value is not a number, or the unit is no angle: pixels, kpc.
    """
    unit = unit_of(frame, column, radius=True)
    if role == "radius" and not unit and plain(column) in PIXELS:
        unit = "pixel"
    degrees = angles.degrees_in(unit or "arcsec")
    if degrees is None:
        raise InputError(
            f"column '{column}' of {where} is in '{unit}', and a {role.replace('_', ' ')} must be an angle; convert it "
            f"to arcsec, or name another column: --column {role}=..."
        )
    values = numbers(frame[column], where) * (degrees * 3600)
    fine = values[values > 0]
    if role == "pixel_scale" and len(fine) and np.median(fine) < FINEST:
        raise InputError(
            f"column '{column}' of {where}: {np.median(fine):g} arcsec per pixel is finer than {FINEST:g}; if it is in "
            f"degrees, call the column '{column}_deg'"
        )
    return values
