"""What failed, asked for once more: shards that hold it are written anew, in a copy that takes the store's place."""

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
from galscan.store.manifest import failed_rows, marker_path
from galscan.store.writer import collect, put
from galscan.surveys import growth
from galscan.surveys.base import Survey

Failures = dict[int, list[tuple[int, int]]]  # of each shard with any: rows of the store, and of the survey


def to_retry(path: Path, survey: Survey, shards: int, *, grown: bool) -> Failures:
    """Return what failed and can be asked for again: rows of a store that has grown are found in `survey` by id."""
    failed = {k: failed_rows(read_json(marker_path(path, k))) for k in range(shards)}
    rows = [row for found in failed.values() for row in found]
    there = dict(zip(rows, rows, strict=True))
    if grown and rows:
        group: Any = zarr.open_group(path, mode="r")
        stored = np.asarray(group["id"][:])[rows]
        at = {identifier: n for n, identifier in enumerate(growth.ids(survey).astype(stored.dtype).tolist())}
        there = {row: at[i] for row, i in zip(rows, stored.tolist(), strict=True) if i in at}
    pairs = {k: [(row, there[row]) for row in found if row in there] for k, found in failed.items()}
    return {k: found for k, found in pairs.items() if found}


def copy(out: Path, place: Path) -> None:
    """Make `place` a copy of the store `out`, of links as far as they go: what is written anew replaces its link."""
    layout.empty(place)

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with storage_errors(place):
        leave = shutil.ignore_patterns("plan.json")
        shutil.copytree(out, place, copy_function=link, ignore=leave, dirs_exist_ok=True)


def retry(place: Path, survey: Survey, todo: Failures, out: Path) -> GalscanError | None:
    """Ask once more for what failed, and write the shards that hold it anew. Return what put an end to it, if anything.

    From a random one on, lest a few that always fail stand in the way of the others each time; rows of a shard stay
    together, as they share their frames.
    """
    trouble = None
    left = sum(map(len, todo.values()))
    try:
        with progress.track("retry", left, "objects") as advance:
            for shard in random.sample(sorted(todo), len(todo)):
                start = random.randrange(len(todo[shard]))
                if trouble := _shard(place, survey, shard, todo[shard][start:] + todo[shard][:start]):
                    break
                advance(len(todo[shard]))
    except KeyboardInterrupt:
        markers = (read_json(marker_path(place, k)) for k in todo)
        left = sum(len(failed_rows(marker)) for marker in markers)
        raise Interrupted(f"stopped with {left} of {out} still failed; the same command goes on from there") from None
    return trouble


def _shard(place: Path, survey: Survey, shard: int, failed: list[tuple[int, int]]) -> GalscanError | None:
    old = read_json(marker_path(place, shard))
    rows = slice(*old["rows"])
    final = set(old.get("no_coverage", ()))
    unusable = {entry[0]: (entry, entry[0] in final) for entry in old["unusable"]}
    group: Any = zarr.open_group(place, mode="r")
    columns: dict[str, np.ndarray] = {}
    trouble = None
    for row, n in failed:
        try:
            fresh, bad = collect(survey, n, 1, row)
        except GalscanError as error:  # of the survey: a host that is to be left alone
            trouble = error
            break
        columns = columns or {name: np.array(group[name][rows]) for name in fresh}
        for name in ("images", "pixel_scale", "flags"):
            columns[name][row - rows.start] = fresh[name][0]
        unusable.pop(row)
        if bad:
            unusable[row] = bad[0]
    if columns:
        put(place, shard, rows, columns, [unusable[row] for row in sorted(unusable)])
    return trouble
