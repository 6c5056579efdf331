"""Base class of surveys with a catalog: ids, positions and labels of the objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys import tables


class CatalogSurvey:
    """The catalog part of a `galscan.surveys.base.Survey`; subclasses add `describe` and `cutouts`."""

    catalog: Path | None
    ids: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    labels: pd.DataFrame
    _schemas: dict[str, list[str]]

    def _read_positions(self, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
        """Read ids and positions from the catalog."""
        where = str(self.catalog)
        role = {r: tables.find_column(table, r, columns, where) for r in ("id", "ra", "dec")}
        for wanted, column in role.items():
            if column is None:
                present = ", ".join(map(str, table.columns[:12]))
                raise InputError(f"{where} has no {wanted} column; it has {present}; name it: --column {wanted}=...")
        self.ids = tables.identifiers(table[role["id"]], where)
        self.ra, self.dec = tables.positions(table, role["ra"], role["dec"], self.ids, where)

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
