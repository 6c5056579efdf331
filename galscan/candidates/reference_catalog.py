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
from galscan.surveys.columns.names import ROLES, columns_of
from galscan.surveys.columns.positions import position_columns, read_positions

# Arcsec. Reference lists are often older and less accurate than stores: twice the radius between these.
RADIUS, LARGEST = 2 * identity.RADIUS, identity.LARGEST
NAMES = ("name", "designation", "object", "object_name", "main_id", "galaxy", *ROLES["id"])


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


def read_known(path: tables.Catalog | str | os.PathLike[str]) -> ReferenceCatalog:
    """Read a reference list: a table, or a folder of Parquet, with positions in ICRS or FK5.

    Positions are read from columns named ``ra`` and ``dec`` or another usual name (RAJ2000, ra_icrs, ...), and
    converted by their unit. Names are read from ``name`` (or designation, object, main_id, id, ...); without such a
    column a name is the title and the row number.

    Parameters
    ----------
    path : path or `galscan.surveys.tables.Catalog`

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it cannot be read, is empty, or has no positions on the sky.
    """
    source = tables.Catalog.of(path)
    where = Path(source.path or "")
    frame = tables.read_table(source, {})
    rows = np.array([f"row {k + 1}" for k in range(len(frame))])
    ra, dec = position_columns(frame, None, str(where))
    if ra is None or dec is None:
        present = ", ".join(map(str, frame.columns[:12]))
        raise InputError(f"{where} has no columns for ra and dec (it has: {present}); name them 'ra' and 'dec'")
    found = read_positions(frame, ra, dec, rows, str(where))
    has_position = np.isfinite(found.ra) & np.isfinite(found.dec)
    if not has_position.any():
        raise InputError(f"{where} has no row with a position in {ra} and {dec}; give decimal degrees")
    title = where.name.removesuffix(".gz").rsplit(".", 1)[0]
    names = _names(frame, title)[has_position]
    return ReferenceCatalog(
        title, names, found.ra[has_position], found.dec[has_position], int((~has_position).sum()), found.notes
    )


def _names(frame: pd.DataFrame, title: str) -> np.ndarray:
    """Return the names of the objects; a missing name is the title and the row number."""
    numbered = np.array([f"{title} {k + 1}" for k in range(len(frame))], object)
    if not (columns := columns_of(NAMES, [str(name) for name in frame.columns])):
        return numbered
    text = frame[columns[0]].astype("string").fillna("").str.strip().str.replace(r"\s+", " ", regex=True)
    given: np.ndarray = text.to_numpy(object)
    return np.where(given == "", numbered, given)


def check_radius(radius: float) -> float:
    """Return a radius in arcseconds, after checking that it is above 0 and at most `LARGEST`."""
    if not 0 < radius <= LARGEST:  # also refuses NaN
        raise InputError(f"--radius {radius:g}: give more than 0 and at most {LARGEST:g} arcsec")
    return radius
