"""Positions in catalogs: which columns they are, in which unit, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.surveys.columns import angles
from galscan.surveys.columns.angles import plain
from galscan.surveys.columns.names import MAIN, by_ucd, find_pairs, single_coordinates
from galscan.surveys.columns.values import numbers, unit_of

AGREE = 2 / 3600  # degrees between two pairs of columns that hold the same positions


@dataclass(frozen=True)
class Positions:
    """Right ascension (0 to 360) and declination in degrees, NaN where missing, and what the user should know."""

    ra: np.ndarray
    dec: np.ndarray
    notes: list[str] = field(default_factory=list)


def named_column(frame: pd.DataFrame, role: str, columns: Mapping[str, str], where: str) -> str:
    """Return the column that the user named for `role`; raise `InputError` if it does not exist."""
    present = [str(c) for c in frame.columns]
    if columns[role] not in present:
        raise InputError(f"{where} has no column '{columns[role]}' for {role}{nearest(columns[role], present)}")
    return columns[role]


def position_columns(
    frame: pd.DataFrame, columns: Mapping[str, str] | None, where: str
) -> tuple[str, str] | tuple[None, None]:
    """Return the columns of right ascension and declination, or None and None.

    In this order: those named in `columns`; those that the file names; the main ones by UCD; ``ra`` and ``dec``; others
    by UCD; other usual names, of which those that hold numbers take precedence over sexagesimal text. `columns` is None
    where the user cannot name columns; then a remedy is to rename them.

    Raises
    ------
    InputError
        If only one coordinate has a column, or several pairs have different positions.
    """
    present = [str(c) for c in frame.columns]
    pairs = find_pairs(present)
    given = {role: named_column(frame, role, columns, where) for role in ("ra", "dec") if columns and role in columns}
    if len(given) == 2:
        return given["ra"], given["dec"]
    if given:
        role, name = next(iter(given.items()))
        other = "dec" if role == "ra" else "ra"
        partners = [pair for pair in pairs if pair[role == "dec"] == name] or pairs
        if not partners:
            raise InputError(f"{where}: --column {role}={name} needs the other coordinate; add --column {other}=...")
        return (name, partners[0][1]) if role == "ra" else (partners[0][0], name)
    if set(pair := frame.attrs.get("positions", ("", ""))) <= set(present):
        return pair[0], pair[1]
    main = by_ucd(frame, "ra", 0, MAIN), by_ucd(frame, "dec", 0, MAIN)
    if main[0] and main[1]:
        return main[0], main[1]
    usable = [pair for pair in pairs if all(_is_number(frame, c) for c in pair)]
    if usable and tuple(map(plain, usable[0])) == ("ra", "dec"):
        return _agreed([p for p in usable if tuple(map(plain, p)) == ("ra", "dec")], frame, columns, where)
    others = by_ucd(frame, "ra", MAIN), by_ucd(frame, "dec", MAIN)
    if others[0] and others[1]:
        return others[0], others[1]
    if usable:
        return _agreed(usable, frame, columns, where)
    if pairs:
        return pairs[0]  # `positions` says what is wrong with it
    alone = single_coordinates(present)
    for role, other in (("ra", "dec"), ("dec", "ra")):
        if alone[role]:
            raise InputError(
                f"{where} has a column for {role}, '{alone[role][0]}', but none for {other} (it has "
                f"{', '.join(present[:12])}); " + _naming(columns, **{other: "..."})
            )
    return None, None


def _is_number(frame: pd.DataFrame, column: str) -> bool:
    """Return whether a column of positions can be converted to degrees."""
    if pd.api.types.is_numeric_dtype(frame[column].dtype):
        return True
    text = frame[column].dropna().astype("string").str.strip().replace("", pd.NA).dropna().head(20)
    if pd.to_numeric(text, errors="coerce").notna().all():
        return True
    first = angles.sexagesimal_in(unit_of(frame, column))
    return angles.parse_sexagesimal(text, 1.0 if "position_unit" in frame.attrs else first) is not None


def _naming(columns: Mapping[str, str] | None, **roles: str) -> str:
    """Return how the user can name the columns of `roles`."""
    if columns is None:
        return "rename " + " and ".join(
            f"{name} '{role}'" if name != "..." else f"it '{role}'" for role, name in roles.items()
        )
    return "name it: " + " ".join(f"--column {role}={name}" for role, name in roles.items())


def _agreed(
    pairs: Sequence[tuple[str, str]], frame: pd.DataFrame, columns: Mapping[str, str] | None, where: str
) -> tuple[str, str]:
    """Return the first of several pairs of columns, which must hold the same positions."""
    sample = frame.head(1000)
    sample.attrs = frame.attrs
    values = [tuple(_degrees(sample, c, role, where) for c, role in zip(p, ("ra", "dec"), strict=True)) for p in pairs]
    for (ra, dec), pair in zip(values[1:], pairs[1:], strict=True):
        apart = np.abs((ra - values[0][0] + 180) % 360 - 180) * np.cos(np.radians(dec))
        if (apart > AGREE).any() or (np.abs(dec - values[0][1]) > AGREE).any():
            first = pairs[0]
            raise InputError(
                f"{where} has several columns that may be the positions, and they differ: {first[0]}, {first[1]} and "
                f"{pair[0]}, {pair[1]}; " + _naming(columns, ra=first[0], dec=first[1])
            )
    return pairs[0]


def read_positions(frame: pd.DataFrame, ra: str | None, dec: str | None, ids: np.ndarray, where: str) -> Positions:
    """Return right ascension (0 to 360) and declination in degrees, NaN where missing, and notes for the user.

    They are converted by the unit of their columns. A few rows outside the sky, as -999, have no position.

    Raises
    ------
    InputError
        If the unit is no angle, the coordinate system is neither ICRS nor FK5, values are not numbers, or more than
        half of the rows are outside the sky.
    """
    if ra is None or dec is None:
        nowhere = np.full(len(frame), np.nan)
        return Positions(nowhere, nowhere.copy(), [
            f"no positions: no column of {where} is known as right ascension and declination (it has "
            f"{', '.join(map(str, frame.columns[:12]))}); name them: --column ra=... --column dec=..."
        ])  # fmt: skip
    found = _degrees(frame, ra, "ra", where), _degrees(frame, dec, "dec", where)
    off = (np.abs(found[0]) > 360) | (np.abs(found[1]) > 90)  # also infinite ones
    notes = []
    if off.any():
        k = int(off.argmax())
        role, column = ("dec", 1) if abs(found[1][k]) > 90 else ("ra", 0)
        value = f"{role} of {ids[k]} is {found[column][k]:g}"
        if 2 * off.sum() > (np.isfinite(found[0]) | np.isfinite(found[1]) | off).sum():
            limit = 90 if column else 360
            raise InputError(f"{where}: {value}; it must be within {-limit:g} to {limit:g} degrees")
        notes.append(f"{off.sum():,} object(s) of {where} are outside the sky, and have no position: {value}")
        for values in found:
            values[off] = np.nan
    if len(lost := np.flatnonzero(np.isnan(found[0]) != np.isnan(found[1]))):
        notes.append(f"{len(lost):,} object(s) of {where} have one coordinate without the other, as {ids[lost[0]]}")
    declared = "position_unit" in frame.attrs or unit_of(frame, ra) or unit_of(frame, dec)
    if not declared and (doubt := _doubt(*found)):
        notes.append(f"{ra} and {dec} of {where} look as if they are in {doubt[0]}: if so, give {doubt[1]}")
    return Positions(found[0] % 360, found[1], notes)


def _degrees(frame: pd.DataFrame, column: str, role: str, where: str) -> np.ndarray:
    """Return a coordinate in degrees, converted by its unit."""
    system = frame.attrs.get("system", {}).get(column, "") or ("B1950" if "1950" in column else "")
    if system:
        raise InputError(f"column '{column}' of {where} is in the system {system}; convert positions to ICRS")
    stated = frame.attrs.get("position_unit")
    unit = stated[role == "dec"] if stated else unit_of(frame, column)
    values = frame[column]
    first = angles.sexagesimal_in(unit)
    per_unit = angles.degrees_in(unit or "deg", hours=role == "ra")
    if not pd.api.types.is_numeric_dtype(values.dtype):
        text = values.astype("string").str.strip().replace("", pd.NA)
        if first is None and stated:
            first = per_unit
        if (parsed := angles.parse_sexagesimal(text, first)) is not None:
            return parsed.to_numpy(np.float64, na_value=np.nan)
        try:
            numbers(values, where)
        except InputError as error:
            raise InputError(
                f"{error} of decimal degrees; if these are hours and degrees, give --position-unit hour,deg"
            ) from None
    if per_unit is None and first is None:
        raise InputError(
            f"column '{column}' of {where} is in '{unit}', which is no angle; give decimal degrees, or --position-unit"
        )
    return numbers(values, where) * (per_unit if per_unit is not None else 1.0)


def _doubt(ra: np.ndarray, dec: np.ndarray) -> tuple[str, str] | None:
    """Return the unit, and the option, of positions that may not be in degrees."""
    known = np.isfinite(ra) & np.isfinite(dec)
    ra, dec = ra[known], dec[known]
    if len(ra) < 3 or ra.min() < -np.pi or np.ptp(ra) == 0:
        return None
    if ra.max() <= 2 * np.pi and np.abs(dec).max() <= np.pi / 2:
        return "radians", "--position-unit rad"
    if ra.min() >= 0 and ra.max() <= 24 and (np.ptp(ra) >= 12 or np.ptp(dec) >= 24):
        return "hours", "--position-unit hour,deg"
    return None
