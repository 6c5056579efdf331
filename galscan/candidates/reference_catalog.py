"""Reference lists of known objects, read from a user's catalog file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
    without_position : int
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
    (ra_name, ra), (dec_name, dec) = (_position(frame, role, path) for role in ("ra", "dec"))
    off = np.isfinite(ra) & ((ra < -180) | (ra > 360)) | np.isfinite(dec) & (np.abs(dec) > 90)
    if off.any():
        row = int(off.argmax())
        raise InputError(
            f"{path}, row {row + 1}: {ra_name} {ra[row]:g}, {dec_name} {dec[row]:g} is not on the sky; "
            "give decimal degrees, right ascension 0 to 360 and declination -90 to 90"
        )
    has_position = np.isfinite(ra) & np.isfinite(dec)
    if not has_position.any():
        raise InputError(f"{path} has no row with a position in {ra_name} and {dec_name}; give decimal degrees")
    warnings = []
    if len(frame) > 2 and ra[has_position].max() <= 24 and "deg" not in ra_name.lower():
        warnings.append(
            f"all {ra_name} of {path} are at most {ra[has_position].max():g}: if they are in hours, multiply them by "
            "15 and run this again"
        )
    title = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    names = _names(frame, title)[has_position]
    return ReferenceCatalog(title, names, ra[has_position], dec[has_position], int((~has_position).sum()), warnings)


def present(usual: tuple[str, ...], columns: list[str]) -> list[str]:
    """Return the columns that have one of the usual names, in any case, in the order of these."""
    lower = {name.lower(): name for name in reversed(columns)}
    return [lower[name] for name in usual if name in lower]


def _position(frame: pd.DataFrame, role: str, path: Path) -> tuple[str, np.ndarray]:
    """Return the first usual column that holds numbers; VizieR has RAJ2000 as text in hours beside one in degrees."""
    columns = [str(name) for name in frame.columns]
    errors = []
    for name in present(tables.ROLES[role], columns):
        try:
            return name, tables.numbers(frame[name], str(path))
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    raise InputError(
        f"{path} has no column for {role} (it has: {', '.join(columns[:12])}); name one '{role}', in decimal degrees"
    )


def _names(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Return the names of the objects; a missing name is the title and the row number."""
    numbered = np.array([f"{title} {k + 1}" for k in range(len(frame))], object)
    if not (columns := present(NAMES, [str(name) for name in frame.columns])):
        return numbered
    text = frame[columns[0]].astype("string").fillna("").str.strip().str.replace(r"\s+", " ", regex=True)
    given: np.ndarray = text.to_numpy(object)
    return np.where(given == "", numbered, given)


def check_radius(radius: float) -> float:
    """Return a radius in arcseconds, after checking that it is above 0 and at most `LARGEST`."""
    if not 0 < radius <= LARGEST:  # also refuses NaN
        raise InputError(f"--radius {radius:g}: give more than 0 and at most {LARGEST:g} arcsec")
    return radius
