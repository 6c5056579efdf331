"""Subsets of a survey, and the rendering of an existing store, for appending and retrying objects."""

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

# Keys of `Survey.describe` that identify the objects. The others determine the pixels, and must not change in a store.
OBJECT_KEYS = frozenset({
    "path", "catalog", "catalog_sha256", "catalog_table", "position_unit", "files_sha256", "images_without_row",
    "cone", "objects", "count",
    "frames", "frames_sha256", "on_no_frame", "native_scale", "rotation_left", "astrometry", "ignored_sip",
})  # fmt: skip
MAX_NOISE_RATIO = 4.0  # of new frames to old ones, or the inverse: beyond it, their units differ
BLOCK = 65_536


def ids(survey: Survey) -> np.ndarray:
    """Return the id of every object."""
    if hasattr(survey, "ids"):
        return np.asarray(survey.ids)
    blocks = (survey.objects(at, min(at + BLOCK, len(survey)))["id"] for at in range(0, len(survey), BLOCK))
    return np.concatenate([block.to_numpy().astype(survey.id_dtype) for block in blocks])


def positions(survey: Survey) -> tuple[np.ndarray, np.ndarray] | None:
    """Return right ascension and declination (deg) of every object; None if the survey has no such arrays."""
    if not hasattr(survey, "ra") or not hasattr(survey, "dec"):
        return None
    return np.asarray(survey.ra, np.float64), np.asarray(survey.dec, np.float64)


def take(survey: Survey, rows: np.ndarray) -> Survey:
    """Return the survey of `rows` only, which must be increasing; the pixels do not change."""
    if len(rows) == len(survey):
        return survey
    return survey.take(rows) if hasattr(survey, "take") else _Subset(survey, rows)


def select_rows(survey: Any, rows: np.ndarray, *names: str) -> Any:
    """Return a copy of a survey with its attributes `names` (arrays or tables) reduced to `rows`."""
    selected = copy.copy(survey)
    for name in names:
        values = getattr(survey, name)
        selected.__dict__[name] = (
            values.iloc[rows].reset_index(drop=True) if isinstance(values, pd.DataFrame) else values[rows]
        )
    return selected


class _Subset:
    """Rows of a survey that can only be read in ranges."""

    def __init__(self, survey: Survey, rows: np.ndarray):
        self._survey, self._rows = survey, rows
        self.name, self.size, self.id_dtype = survey.name, survey.size, survey.id_dtype

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self) -> dict[str, Any]:
        return self._survey.describe()

    def schemas(self) -> dict[str, list[str]]:
        return self._survey.schemas()

    def truth(self) -> list[str]:
        return self._survey.truth()

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        rows = self._rows[start:stop]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                yield int(run[0]), int(run[-1]) + 1

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        tables = [self._survey.objects(first, last) for first, last in self._ranges(start, stop)]
        return pd.concat(tables, ignore_index=True) if tables else self._survey.objects(0, 0)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for first, last in self._ranges(start, stop):
            yield from self._survey.cutouts(first, last)


def stored_rendering(measured: Rendering | None, stored: Mapping[str, Any] | None, where: str) -> Rendering | None:
    """Return the rendering of an existing store, to be used for new images of the same bands.

    `measured` is that of the new images, `stored` that of the store (`Rendering.describe`), named `where` in messages.
    `ConflictError` is raised if sky or noise of the new images show that their units differ from those of the store.
    """
    if measured is None or stored is None:
        return measured
    names = {field.name for field in dataclasses.fields(Rendering)}
    kept = Rendering(**{name: value for name, value in stored.items() if name in names})
    if (kept.red, kept.green, kept.blue) != (measured.red, measured.green, measured.blue):
        return measured  # the caller refuses it, with the difference
    for band, unit in measured.unit.items():
        if not 1 / MAX_NOISE_RATIO <= (ratio := unit / kept.unit[band]) <= MAX_NOISE_RATIO:
            raise ConflictError(
                f"the noise of these images is {ratio:.2g} times that of {where} in band {band}, at most "
                f"{MAX_NOISE_RATIO:g} is allowed for one stretch; convert them to its units, or ingest them into "
                "another store: --out"
            )
        if measured.subtract[band] and not kept.subtract[band]:
            raise ConflictError(
                f"the sky is not subtracted from these images in band {band}, but from those of {where}; subtract it, "
                "or ingest them into another store: --out"
            )
    return kept
