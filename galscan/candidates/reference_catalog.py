"""Reference lists of known objects, read from a user's catalog file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from galscan.core.errors import InputError
from galscan.core.sky import unit_vectors
from galscan.store import identity
from galscan.surveys import tables

# Arcsec. Reference lists are often older and less accurate than stores: twice the radius between these.
RADIUS, LARGEST = 2 * identity.RADIUS, identity.LARGEST
NAMES = ("name", "designation", "object", "object_name", "main_id", "galaxy", *tables.ROLES["id"])


class Titled(Protocol):
    """A source of known objects: a list, or a service."""

    @property
    def title(self) -> str: ...


@dataclass(frozen=True)
class ReferenceCatalog:
    """Objects of one reference list that have a position.

    Attributes
    ----------
    title : str
        The file's name without suffix, used in ``known_ref``.
    names : ndarray of str
    ra, dec : ndarray of float64
        Degrees.
    unplaced : int
        Rows of the list without a position.
    warnings : list of str
    """

    title: str
    names: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    without_position: int
    warnings: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def tree(self) -> KDTree:
        """Objects as points on the unit sphere."""
        return KDTree(unit_vectors(self.ra, self.dec))


def read_known(path: str | os.PathLike[str]) -> ReferenceCatalog:
    """Read a reference list: a CSV, FITS, VOTable or Parquet table with positions in decimal degrees, ICRS.

    Positions are read from columns named ``ra`` and ``dec`` or another usual name (RAJ2000, ra_icrs, ...), the first
    that holds numbers. Names are read from ``name`` (or designation, object, main_id, id, ...); without such a column
    a name is the title and the row number.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it cannot be read, is empty, or has no positions on the sky.
    """
    path = Path(path)
    frame = tables.read_table(path, {})
    where = str(path)
    (ra_name, ra), (dec_name, dec) = (_position(frame, role, where) for role in ("ra", "dec"))
    off = np.isfinite(ra) & ((ra < -180) | (ra > 360)) | np.isfinite(dec) & (np.abs(dec) > 90)
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise InputError(
            f"{where}, row {row + 1}: {ra_name} {ra[row]:g}, {dec_name} {dec[row]:g} is not on the sky; "
            "give decimal degrees, right ascension 0 to 360 and declination -90 to 90"
        )
    has_position = np.isfinite(ra) & np.isfinite(dec)
    if not has_position.any():
        raise InputError(f"{where} has no row with a position in {ra_name} and {dec_name}; give decimal degrees")
    warnings = []
    if len(frame) > 2 and ra[has_position].max() <= 24 and "deg" not in ra_name.lower():
        warnings.append(
            f"all {ra_name} of {where} are at most {ra[has_position].max():g}: if they are in hours, multiply them by "
            "15 and run this again"
        )
    title = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    names = _names(frame, title)
    return ReferenceCatalog(
        title, names[has_position], ra[has_position], dec[has_position], int((~has_position).sum()), warnings
    )


def _position(frame: pd.DataFrame, role: str, where: str) -> tuple[str, np.ndarray]:
    """Return the first usual column that holds numbers; VizieR has RAJ2000 as text in hours beside one in degrees."""
    lower = {str(name).lower(): str(name) for name in reversed(list(frame.columns))}
    present = [lower[name] for name in tables.ROLES[role] if name in lower]
    if not present:
        raise InputError(
            f"{where} has no column for {role} (it has: {', '.join(map(str, frame.columns[:12]))}); name one "
            f"'{role}', in decimal degrees"
        )
    first_error: InputError | None = None
    for name in present:
        try:
            return name, tables.numbers(frame[name], where)
        except InputError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _names(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Return the names of the objects; a missing name is the title and the row number."""
    lower = {str(name).lower(): str(name) for name in reversed(list(frame.columns))}
    numbered = np.array([f"{title} {k + 1}" for k in range(len(frame))], object)
    column = next((lower[name] for name in NAMES if name in lower), None)
    if column is None:
        return numbered
    text = frame[column].astype("string").fillna("").str.strip().str.replace(r"\s+", " ", regex=True)
    given: np.ndarray = text.to_numpy(object)
    return np.where(given == "", numbered, given)


def check_radius(radius: float) -> float:
    """Return a radius in arcseconds after checking that it is above 0 and at most `LARGEST`.

    Raises
    ------
    InputError
        If it is out of range.
    """
    if not 0 < radius <= LARGEST:  # also refuses NaN
        raise InputError(f"--radius {radius:g}: give more than 0 and at most {LARGEST:g} arcsec")
    return radius


def titles(lists: Sequence[Titled]) -> list[str]:
    """Return the titles of lists and services.

    Raises
    ------
    InputError
        If two are equal.
    """
    found = [known.title for known in lists]
    if repeated := next((t for t in found if found.count(t) > 1), None):
        raise InputError(
            f"two reference lists have the name '{repeated}'; rename one of the files, as matches refer to it"
        )
    return found
