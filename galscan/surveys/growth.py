"""What lets a store grow: the objects of a survey that are new, alone, and made like those that are there."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import ConflictError
from galscan.surveys.base import Outcome, Survey
from galscan.surveys.files.images import Rendering

# Of what surveys say of themselves, that which tells the objects, not how their pixels are made.
OBJECTS = frozenset({
    "path", "catalog", "catalog_sha256", "files_sha256", "images_without_row", "cone", "objects", "count",
    "frames", "frames_sha256", "on_no_frame", "native_scale", "rotation_left", "astrometry",
})  # fmt: skip
ALIKE = 4.0  # the noise of new frames over that of the old ones, either way: beyond it, units differ
BLOCK = 65_536


def ids(survey: Survey) -> np.ndarray:
    """Return the id of every object."""
    known = getattr(survey, "ids", None)
    if known is not None:
        return np.asarray(known)
    blocks = (survey.objects(at, min(at + BLOCK, len(survey)))["id"] for at in range(0, len(survey), BLOCK))
    return np.concatenate([block.to_numpy().astype(survey.id_dtype) for block in blocks])


def positions(survey: Survey) -> tuple[np.ndarray, np.ndarray] | None:
    """Return right ascension and declination (deg) of every object; None where the survey has no list of them."""
    ra, dec = getattr(survey, "ra", None), getattr(survey, "dec", None)
    return None if ra is None or dec is None else (np.asarray(ra, np.float64), np.asarray(dec, np.float64))


def take(survey: Survey, rows: np.ndarray) -> Survey:
    """Return the survey of `rows` alone, which rise; pixels are those that they have in the whole."""
    if len(rows) == len(survey):
        return survey
    own = getattr(survey, "take", None)
    part: Survey = own(rows) if own is not None else _Part(survey, rows)
    return part


def narrowed(survey: Any, rows: np.ndarray, *names: str) -> Any:
    """Return a copy of a survey, of whose attributes `names` only `rows` are left."""
    part = copy.copy(survey)
    for name in names:
        values = getattr(survey, name)
        part.__dict__[name] = (
            values.iloc[rows].reset_index(drop=True) if isinstance(values, pd.DataFrame) else values[rows]
        )
    return part


class _Part:
    """Some rows of a survey that knows ranges only: asked for in ranges as long as they go."""

    def __init__(self, whole: Survey, rows: np.ndarray):
        self._whole, self._rows = whole, rows
        self.name, self.size, self.id_dtype = whole.name, whole.size, whole.id_dtype

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self) -> dict[str, Any]:
        return self._whole.describe()

    def schemas(self) -> dict[str, list[str]]:
        return self._whole.schemas()

    def truth(self) -> list[str]:
        return self._whole.truth()

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        rows = self._rows[start:stop]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                yield int(run[0]), int(run[-1]) + 1

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        parts = [self._whole.objects(first, last) for first, last in self._ranges(start, stop)]
        return pd.concat(parts, ignore_index=True) if parts else self._whole.objects(0, 0)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for first, last in self._ranges(start, stop):
            yield from self._whole.cutouts(first, last)


def like(measured: Rendering | None, stored: Mapping[str, Any] | None, where: str) -> Rendering | None:
    """Return the stretch that a store was made with, for new images of the same bands, in place of their own.

    Raises
    ------
    ConflictError
        If by their sky or noise they are in other units: they would look unlike the old ones.
    """
    if measured is None or stored is None:
        return measured
    names = {field.name for field in dataclasses.fields(Rendering)}
    kept = Rendering(**{name: value for name, value in stored.items() if name in names})
    if (kept.red, kept.green, kept.blue) != (measured.red, measured.green, measured.blue):
        return measured  # which is refused, by name
    for band, unit in measured.unit.items():
        if not 1 / ALIKE <= (ratio := unit / kept.unit[band]) <= ALIKE:
            raise ConflictError(
                f"the noise of these images is {ratio:.2g} times that of {where} in band {band}, at most {ALIKE:g} can "
                "be stretched alike; are they in its units? If so, give them a store of their own: --out"
            )
        if measured.subtract[band] and not kept.subtract[band]:
            raise ConflictError(
                f"these images still have their sky in band {band}, those of {where} do not; subtract it, or give them "
                "a store of their own: --out"
            )
    return kept
