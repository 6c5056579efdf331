"""Retry of failed objects: their shards are written again, in a copy that replaces the store."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from galscan.core import progress
from galscan.core.errors import GalscanError, Interrupted
from galscan.core.files import read_json, storage_errors
from galscan.store import layout
from galscan.store.manifest import failed_rows, marker_path, retryable_rows, unusable_of
from galscan.store.writer import read_objects, write_shard
from galscan.surveys import subsets
from galscan.surveys.base import Survey

Failures = dict[int, list[tuple[int, int]]]  # by shard: pairs of the row in the store and the row in the survey


def find_failures(path: Path, survey: Survey, shards: int, *, grown: bool) -> Failures:
    """Return the objects that can be retried; in an extended store they are found in `survey` by id."""
    failed = {k: retryable_rows(read_json(marker_path(path, k))) for k in range(shards)}
    rows = [row for shard_rows in failed.values() for row in shard_rows]
    survey_row = dict(zip(rows, rows, strict=True))
    if grown and rows:
        group: Any = zarr.open_group(path, mode="r")
        stored = np.asarray(group["id"][:])[rows]
        row_of_id = {identifier: n for n, identifier in enumerate(subsets.ids(survey).astype(stored.dtype).tolist())}
        survey_row = {row: row_of_id[i] for row, i in zip(rows, stored.tolist(), strict=True) if i in row_of_id}
    pairs = {k: [(row, survey_row[row]) for row in shard_rows if row in survey_row] for k, shard_rows in failed.items()}
    return {k: shard_rows for k, shard_rows in pairs.items() if shard_rows}


def copy(out: Path, folder: Path) -> None:
    """Make `folder` a copy of the store `out`, using hard links where possible; rewritten files replace their link."""
    layout.clear_folder(folder)

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with storage_errors(folder):
        ignore = shutil.ignore_patterns("plan.json")
        shutil.copytree(out, folder, copy_function=link, ignore=ignore, dirs_exist_ok=True)


def retry(folder: Path, survey: Survey, failures: Failures, out: Path) -> GalscanError | None:
    """Retry the failed objects, and write their shards again. Return the error that ended the retry, if any.

    It starts at random positions, so that a few objects that always fail do not block the others each time; rows of a
    shard stay together, as they share their frames.
    """
    error = None
    n_failed = sum(map(len, failures.values()))
    try:
        with progress.track("retry", n_failed, "objects") as advance:
            for shard in random.sample(sorted(failures), len(failures)):
                start = random.randrange(len(failures[shard]))
                if error := _retry_shard(folder, survey, shard, failures[shard][start:] + failures[shard][:start]):
                    break
                advance(len(failures[shard]))
    except KeyboardInterrupt:
        markers = (read_json(marker_path(folder, k)) for k in failures)
        n_failed = sum(len(failed_rows(marker)) for marker in markers)
        raise Interrupted(f"stopped with {n_failed} of {out} still failed; run the same command to resume") from None
    return error


def _retry_shard(folder: Path, survey: Survey, shard: int, failed: list[tuple[int, int]]) -> GalscanError | None:
    marker = read_json(marker_path(folder, shard))
    rows = slice(*marker["rows"])
    unusable = {entry[0]: (entry, final) for entry, final in unusable_of(marker)}
    group: Any = zarr.open_group(folder, mode="r")
    columns: dict[str, np.ndarray] = {}
    failure = None
    for row, n in failed:
        try:
            new_columns, new_unusable = read_objects(survey, n, 1, row)
        except GalscanError as error:  # raised by the survey: a service is unavailable
            failure = error
            break
        columns = columns or {name: np.array(group[name][rows]) for name in new_columns}
        for name in ("images", "pixel_scale", "flags"):
            columns[name][row - rows.start] = new_columns[name][0]
        unusable.pop(row)
        if new_unusable:
            unusable[row] = new_unusable[0]
    if columns:
        write_shard(folder, shard, rows, columns, [unusable[row] for row in sorted(unusable)])
    return failure
