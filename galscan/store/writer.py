"""Parallel writer of shards: all arrays of a shard, then the marker that it is complete."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from galscan.core import concurrency, progress
from galscan.core.errors import GalscanError, Interrupted
from galscan.core.files import read_json, storage_errors, sync, write_json
from galscan.store.manifest import Unusable, marker_path, unusable_of
from galscan.surveys.base import Cutout, Flag, NoCoverage, Survey


@dataclass(frozen=True)
class Work:
    """Objects to be written into the store in `folder`, `shard` of them per shard.

    The first `first` rows are in the store `base`, which is extended: its last shard, if not full, is written again.
    """

    folder: Path
    survey: Survey
    shard: int
    first: int = 0
    base: Path | None = None

    @property
    def count(self) -> int:
        return self.first + len(self.survey)

    @property
    def shards(self) -> range:
        """Numbers of the shards to write."""
        return range(self.first // self.shard, -(-self.count // self.shard))

    def rows(self, shard: int) -> slice:
        return slice(shard * self.shard, min(self.count, (shard + 1) * self.shard))


def run(work: Work, workers: int, out: Path) -> None:
    """Write the shards that have no marker yet. Raises `Interrupted` on Ctrl-C."""
    todo = [k for k in work.shards if not marker_path(work.folder, k).is_file()]
    n_left = sum(work.rows(k).stop - max(work.rows(k).start, work.first) for k in todo)
    total = len(work.survey)
    try:
        with progress.track("ingest", total, "objects", done=total - n_left) as advance:
            if min(workers, len(todo)) <= 1:
                for k in todo:
                    _write(work, k, advance)
            else:
                _run_pool(work, todo, min(workers, len(todo)), advance)
    except KeyboardInterrupt:
        done = sum(marker_path(work.folder, k).is_file() for k in work.shards)
        shards_text = f"{len(work.shards)} {'new ' if work.first else ''}shards of {out}"
        unchanged_text = ", which is unchanged until they are complete" if work.first else ""
        raise Interrupted(
            f"stopped after {done} of {shards_text}{unchanged_text}; run the same command to resume"
        ) from None


def _run_pool(work: Work, todo: list[int], workers: int, advance: progress.Advance) -> None:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), concurrency.start_process, (work,))
    try:
        with concurrency.child_environment():
            futures = [pool.submit(_write_in_worker, k) for k in todo]
        for future in as_completed(futures):
            advance(future.result())
    except BrokenProcessPool as error:
        raise GalscanError(
            f"a worker process died while writing {work.folder} (out of memory?); "
            "run the same command with fewer --workers to resume"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # running shards are finished


def _write_in_worker(shard: int) -> int:
    work: Work = concurrency.shared
    return _write(work, shard)


def no_progress(n: int = 1, note: str = "") -> None: ...


def _write(work: Work, shard: int, advance: progress.Advance = no_progress) -> int:
    """Write one shard of every array, then its marker. Return the number of objects."""
    rows = work.rows(shard)
    start = max(rows.start, work.first)
    columns, unusable = read_objects(work.survey, start - work.first, rows.stop - start, start, advance)
    if work.base is not None and start > rows.start:
        group = zarr.open_group(work.base, mode="r")
        old_columns = {name: np.asarray(group[name][rows.start : start]) for name in columns}  # type: ignore[index]
        columns = {
            name: np.concatenate([old_columns[name], columns[name].astype(old_columns[name].dtype)]) for name in columns
        }
        unusable = unusable_of(read_json(marker_path(work.base, shard))) + unusable
    write_shard(work.folder, shard, rows, columns, unusable)
    return rows.stop - start


def write_shard(folder: Path, shard: int, rows: slice, columns: dict[str, np.ndarray], unusable: Unusable) -> None:
    """Write the columns of one shard, then its marker."""
    digest = hashlib.sha256()
    with storage_errors(folder):
        group = zarr.open_group(folder, mode="r+")
        for name in sorted(columns):
            array: Any = group[name]
            values = np.ascontiguousarray(columns[name].astype(array.dtype, copy=False))
            array[rows] = values
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(values.data if values.dtype.kind != "U" else values.tobytes())
            # Data must be on disk before the marker. Shards of fill values only have no file.
            file = folder.joinpath(name, "c", str(shard), *"0" * (values.ndim - 1))
            if file.is_file():
                sync(file)
    marker = {
        "shard": shard, "rows": [rows.start, rows.stop], "sha256": digest.hexdigest(),
        "unusable": [entry for entry, _ in unusable], "no_coverage": [entry[0] for entry, final in unusable if final],
    }  # fmt: skip
    write_json(marker_path(folder, shard), marker)


def read_objects(
    survey: Survey, start: int, n: int, row: int, advance: progress.Advance = no_progress
) -> tuple[dict[str, np.ndarray], Unusable]:
    """Return the columns of `n` objects from `start` on, and those without an image, numbered from `row` on."""
    table = survey.objects(start, start + n)
    images = np.zeros((n, survey.size, survey.size, 3), dtype=np.uint8)
    flags = np.zeros(n, dtype=np.uint8)
    scale = np.full(n, np.nan)
    unusable: Unusable = []
    n_read = n_reported = 0
    last_report = time.monotonic()
    for k, outcome in zip(range(n), survey.cutouts(start, start + n), strict=False):
        n_read += 1
        if (now := time.monotonic()) - last_report > 0.5:  # reporting every object would slow down a fast survey
            advance(n_read - n_reported)
            n_reported, last_report = n_read, now
        if isinstance(outcome, Cutout):
            if outcome.image.shape != images.shape[1:] or outcome.image.dtype != np.uint8:
                received = f"{outcome.image.shape} {outcome.image.dtype}"
                raise GalscanError(
                    f"survey '{survey.name}' returned an image of {received}, not {images.shape[1:]} uint8"
                )
            images[k], scale[k], flags[k] = outcome.image, outcome.pixel_scale, int(outcome.flags)
            continue
        flag = Flag.MISSING if isinstance(outcome, NoCoverage) else outcome.flag
        flags[k] = int(flag)
        entry = [row + k, str(table["id"].iloc[k]), int(flag), outcome.reason]
        unusable.append((entry, isinstance(outcome, NoCoverage)))
    if n_read > n_reported:
        advance(n_read - n_reported)
    if n_read != n or len(table) != n:
        row_range = f"for rows {start} to {start + n}"
        raise GalscanError(f"survey '{survey.name}' returned {len(table)} rows and {n_read} cutouts {row_range}")
    columns = {
        "images": images, "id": table["id"].to_numpy().astype(survey.id_dtype), "ra": table["ra"].to_numpy(np.float64),
        "dec": table["dec"].to_numpy(np.float64), "pixel_scale": scale, "flags": flags,
    }  # fmt: skip
    for schema, answers in survey.schemas().items():
        columns |= {f"labels/{schema}/{a}": table[f"{schema}/{a}"].to_numpy(np.float32) for a in answers}
    columns |= {f"truth/{t}": table[f"truth/{t}"].to_numpy(np.float32) for t in survey.truth()}
    return columns, unusable
