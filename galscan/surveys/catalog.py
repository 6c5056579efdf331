"""Base class of surveys with a catalog: ids, positions and labels of the objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.core.sky import Cone, check_cone, in_cone
from galscan.surveys import tables
from galscan.surveys.columns.positions import Positions, read_positions
from galscan.surveys.columns.values import identifiers


def check_roles(columns: Iterable[str], roles: Sequence[str]) -> None:
    """Raise `InputError` if a column is named for a role that is not among `roles`."""
    for role in columns:
        if role not in roles:
            raise InputError(f"--column {role}=...: unknown role '{role}'{nearest(role, roles)}")


def find_columns(
    table: pd.DataFrame, roles: Sequence[str], columns: Mapping[str, str], where: str, required: Sequence[str] = ("id",)
) -> dict[str, str | None]:
    """Return the column of each role, None if there is none; raise `InputError` if one of `required` has none."""
    found = {role: tables.find_column(table, role, columns, where) for role in roles}
    for role in required:
        if found[role] is None:
            present = ", ".join(map(str, table.columns[:12]))
            raise InputError(f"{where} has no {role} column; it has {present}; name it: --column {role}=...")
    return found


class CatalogSurvey:
    """The catalog part of a `galscan.surveys.base.Survey`; subclasses add `describe` and `cutouts`."""

    catalog: Path | None
    ids: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    labels: pd.DataFrame
    position_notes: Sequence[str] = ()  # what the user should know about the positions
    _schemas: dict[str, list[str]]

    def _read_positions(self, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
        """Read ids and positions from the catalog."""
        where = str(self.catalog)
        role = find_columns(table, ("id", "ra", "dec"), columns, where, required=("id", "ra", "dec"))
        self.ids = identifiers(table[role["id"]], where)
        self._set_positions(read_positions(table, role["ra"], role["dec"], self.ids, where))

    def _set_positions(self, found: Positions) -> None:
        self.ra, self.dec, self.position_notes = found.ra, found.dec, found.notes

    def _within(self, table: pd.DataFrame, columns: Mapping[str, str], cone: Cone) -> pd.DataFrame:
        """Return the rows of a catalog in a cone, at least one."""
        check_cone(cone)
        self._read_positions(table, columns)
        inside = in_cone(self.ra, self.dec, cone)
        if not inside.any():
            raise InputError(f"no object of {self.catalog} lies in --cone {','.join(f'{c:g}' for c in cone)}")
        return table[inside].reset_index(drop=True)

    @property
    def id_dtype(self) -> np.dtype:
        """Data type of ids: int64, or text as wide as the longest id."""
        return self.ids.dtype

    def __len__(self) -> int:
        return len(self.ids)

    def schemas(self) -> dict[str, list[str]]:
        """Return the answers in the catalog, by schema."""
        return {k: list(v) for k, v in self._schemas.items()}

    def truth(self) -> list[str]:
        """Return an empty list: only simulations have truth columns."""
        return []

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows of the catalog, in the survey's order."""
        rows = slice(start, stop)
        frame = pd.DataFrame({"id": self.ids[rows], "ra": self.ra[rows], "dec": self.dec[rows]}, copy=True)
        return pd.concat([frame, self.labels.iloc[rows].reset_index(drop=True)], axis=1)
