"""Survey -> store: shard by shard in parallel, resumable, and never visible before it is whole.

The work happens in ``OUT.partial``. A shard is done when its marker ``.ingest/shard-00012.json`` is
there; at the end the folder is renamed to ``OUT``. Markers stay in the store (Zarr readers pass them
by): they hold the reason of every object without a usable image.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from galscan import progress, unfinished
from galscan.errors import ConflictError, GalscanError, InputError, Interrupted
from galscan.files import read_json, storage_errors, sync_directory, write_json
from galscan.store import layout
from galscan.store.layout import Flag, Store
from galscan.store.manifest import MARKERS, failed_rows, marker_path
from galscan.surveys.base import Cutout, NoCoverage, Survey

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def ingest_survey(
    survey: Survey, out: str | os.PathLike[str], *, workers: int | None = None, retry_failed: bool = False
) -> Store:
    """Write every object of `survey` into the store `out`, or go on where an earlier call stopped.

    Parameters
    ----------
    survey : Survey
        Where the cutouts come from; picklable when `workers` is not 1.
    out : path
        The store to be. A complete store of the same survey is returned as it is.
    workers : int, optional
        Processes, default one a processor. 1 runs in this process.
    retry_failed : bool
        Ask once more for what failed. A complete store is replaced when that is done, and readable until then.

    Raises
    ------
    ConflictError
        If `out`, or the unfinished work beside it, is of another survey or other settings.
    StorageError
        If the disk is full or not writable. What was done is kept, and nothing shows at `out`.
    Interrupted
        On Ctrl-C. The same call goes on.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; use 1 or more")
    if len(survey) == 0:
        raise InputError(f"survey '{survey.name}' has no objects; give a catalog with at least one row")
    plan = _plan(survey)
    partial = unfinished.partial(out)
    if _taken(out):
        store = _existing(out, plan)
        if not retry_failed or not _to_retry(out, plan):
            return store
        with unfinished.held(partial):
            _copy(out, partial, plan)
            trouble = _retry(partial, survey, plan, out)
            _finish(partial, plan)
            with storage_errors(out):
                unfinished.deliver(partial, out)
        if trouble:  # what came before it is in the store
            raise trouble
        return layout.open_store(out)

    with unfinished.held(partial):
        if not _taken(out):  # else another process finished it meanwhile
            _prepare(partial, survey, plan)
            _run(partial, survey, plan, workers or os.cpu_count() or 1, out)
            trouble = _retry(partial, survey, plan, out) if retry_failed else None
            if trouble:
                raise trouble
            _finish(partial, plan)
            with storage_errors(out):
                os.rename(partial, out)
                sync_directory(out.parent)
    return layout.open_store(out)


def _taken(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _finish(partial: Path, plan: dict[str, Any]) -> None:
    shards = [read_json(marker_path(partial, k)) for k in range(_n_shards(plan))]
    layout.finish(partial, hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest())


# --------------------------------------------------------------------------------------- plan and resume


def _plan(survey: Survey) -> dict[str, Any]:
    """Return what must be equal for work to be gone on with."""
    plan = {
        "format": layout.FORMAT, "name": survey.name, "count": len(survey), "size": survey.size,
        "id_dtype": np.dtype(survey.id_dtype).str, "schemas": survey.schemas(), "truth": list(survey.truth()),
        "shard": layout.shard_size(len(survey)), "survey": survey.describe(),
    }  # fmt: skip
    return json.loads(json.dumps(plan, allow_nan=False))


def _n_shards(plan: dict[str, Any]) -> int:
    return -(-plan["count"] // plan["shard"])


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    a, b = _flat(old), _flat(new)
    changed = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    # A survey repeats its count and size in its own description: say it once.
    words = [f"{k.removeprefix('survey.')} was {_short(a.get(k))}, is {_short(b.get(k))}" for k in changed]
    words = list(dict.fromkeys(words))
    return "; ".join(words[:4]) + ("; ..." if len(words) > 4 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    nested = [_flat(part, f"{prefix}.{key}" if prefix else key) for key, part in value.items()]
    return {key: part for flat in nested for key, part in flat.items()}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."  # a hash is told by its beginning
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _existing(out: Path, plan: dict[str, Any]) -> Store:
    try:
        store = layout.open_store(out)
        old = read_json(out / MARKERS / "plan.json")
    except InputError as error:
        raise ConflictError(
            f"{out} exists and is not a finished galscan ingest; remove it or choose another --out"
        ) from error
    if old != plan:
        raise ConflictError(f"{out} holds another survey: {_differences(old, plan)}; remove it or choose another --out")
    return store


def _begun(partial: Path, plan: dict[str, Any]) -> bool:
    """Return whether there is work of this very plan; refuse that of another."""
    written = partial / MARKERS / "plan.json"
    if not written.is_file():
        return False
    if (old := read_json(written)) != plan:
        raise ConflictError(
            f"{partial} was begun with other settings: {_differences(old, plan)}; remove it or choose another --out"
        )
    return True


def _prepare(partial: Path, survey: Survey, plan: dict[str, Any]) -> None:
    if _begun(partial, plan):
        return
    layout.create(
        partial, survey=survey.name, count=plan["count"], size=plan["size"], id_dtype=np.dtype(plan["id_dtype"]),
        schemas=plan["schemas"], truth=plan["truth"], provenance=plan["survey"],
    )  # fmt: skip
    write_json(partial / MARKERS / "plan.json", plan)  # last: without it the next call starts afresh


# ------------------------------------------------------------------------------------------------ shards


def _run(partial: Path, survey: Survey, plan: dict[str, Any], workers: int, out: Path) -> None:
    count, shard = plan["count"], plan["shard"]
    todo = [k for k in range(_n_shards(plan)) if not marker_path(partial, k).is_file()]
    left = sum(min(count, (k + 1) * shard) - k * shard for k in todo)
    try:
        with progress.track("ingest", count, "objects", done=count - left) as advance:
            if min(workers, len(todo)) <= 1:
                for k in todo:
                    _write_shard(partial, survey, k, advance)
            else:
                _run_pool(partial, survey, todo, min(workers, len(todo)), advance)
    except KeyboardInterrupt:
        done = sum(marker_path(partial, k).is_file() for k in range(_n_shards(plan)))
        raise Interrupted(
            f"stopped after {done} of {_n_shards(plan)} shards of {out}; the same command goes on from there"
        ) from None


def _run_pool(partial: Path, survey: Survey, todo: list[int], workers: int, advance: progress.Advance) -> None:
    with _one_thread():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (partial, survey))
        try:
            for future in as_completed([pool.submit(_work, k) for k in todo]):
                advance(future.result())
        except BrokenProcessPool as error:
            raise GalscanError(
                f"a worker process died while writing {partial} (out of memory?); "
                "run the same command again with fewer --workers, it goes on where it stopped"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # shards in hand are finished, not thrown away


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let child processes start with one numerical thread each: there is one process a core already."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_worker: tuple[Path, Survey] | None = None


def _start_worker(partial: Path, survey: Survey) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _worker = partial, survey
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent must not leave writers behind

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _work(shard: int) -> int:
    if _worker is None:
        raise GalscanError("an ingest worker was asked for a shard before it was started")
    return _write_shard(*_worker, shard)


def _write_shard(partial: Path, survey: Survey, shard: int, advance: progress.Advance | None = None) -> int:
    """Write one shard of every array, then its marker. Return the number of objects."""
    size = layout.shard_size(len(survey))
    rows = slice(shard * size, min(len(survey), (shard + 1) * size))
    columns, unusable = _collect(survey, rows, advance or _silent)
    _put(partial, shard, rows, columns, unusable)
    return rows.stop - rows.start


def _put(
    partial: Path, shard: int, rows: slice, columns: dict[str, np.ndarray], unusable: list[tuple[list[Any], bool]]
) -> None:
    digest = hashlib.sha256()
    with storage_errors(partial):
        group = zarr.open_group(partial, mode="r+")
        for name in sorted(columns):
            values = np.ascontiguousarray(columns[name])
            group[name][rows] = values  # type: ignore[index]
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
            digest.update(values.data if values.dtype.kind != "U" else values.tobytes())
            # The data must be on disk before the marker says so. Shards of nothing but fill values have no file.
            file = partial.joinpath(name, "c", str(shard), *"0" * (values.ndim - 1))
            if file.is_file():
                _sync_file(file)
    marker = {
        "shard": shard, "rows": [rows.start, rows.stop], "sha256": digest.hexdigest(),
        "unusable": [entry for entry, _ in unusable], "no_coverage": [entry[0] for entry, final in unusable if final],
    }  # fmt: skip
    write_json(marker_path(partial, shard), marker)


def _silent(n: int = 1, note: str = "") -> None: ...


def _collect(
    survey: Survey, rows: slice, advance: progress.Advance
) -> tuple[dict[str, np.ndarray], list[tuple[list[Any], bool]]]:
    """Return the columns of one shard; and of each object without a usable image (row, id, flag, reason), and whether
    that is final."""
    table = survey.objects(rows.start, rows.stop)
    n = rows.stop - rows.start
    images = np.zeros((n, survey.size, survey.size, 3), dtype=np.uint8)
    flags = np.zeros(n, dtype=np.uint8)
    scale = np.full(n, np.nan)
    unusable: list[tuple[list[Any], bool]] = []
    seen = told = 0
    shown = time.monotonic()
    for k, outcome in zip(range(n), survey.cutouts(rows.start, rows.stop), strict=False):
        seen += 1
        if (now := time.monotonic()) - shown > 0.5:  # telling each one would slow down a quick survey
            advance(seen - told)
            told, shown = seen, now
        if isinstance(outcome, Cutout):
            if outcome.image.shape != images.shape[1:] or outcome.image.dtype != np.uint8:
                got = f"{outcome.image.shape} {outcome.image.dtype}"
                raise GalscanError(f"survey '{survey.name}' gave {got}, not {images.shape[1:]} uint8")
            images[k], scale[k], flags[k] = outcome.image, outcome.pixel_scale, int(outcome.flags)
            continue
        flag = Flag.MISSING if isinstance(outcome, NoCoverage) else outcome.flag
        flags[k] = int(flag)
        identifier = table["id"].iloc[k]
        entry = [rows.start + k, str(identifier), int(flag), outcome.reason]
        unusable.append((entry, isinstance(outcome, NoCoverage)))
    if seen > told:
        advance(seen - told)
    if seen != n or len(table) != n:
        where = f"for rows {rows.start} to {rows.stop}"
        raise GalscanError(f"survey '{survey.name}' gave {len(table)} rows and {seen} cutouts {where}")
    columns = {
        "images": images, "id": table["id"].to_numpy().astype(survey.id_dtype), "ra": table["ra"].to_numpy(np.float64),
        "dec": table["dec"].to_numpy(np.float64), "pixel_scale": scale, "flags": flags,
    }  # fmt: skip
    for schema, answers in survey.schemas().items():
        columns |= {f"labels/{schema}/{a}": table[f"{schema}/{a}"].to_numpy(np.float32) for a in answers}
    columns |= {f"truth/{t}": table[f"truth/{t}"].to_numpy(np.float32) for t in survey.truth()}
    return columns, unusable


# ------------------------------------------------------------------------------------------------- retry


def _to_retry(path: Path, plan: dict[str, Any]) -> dict[int, list[int]]:
    """Return the rows that failed, by shard."""
    failed = {k: failed_rows(read_json(marker_path(path, k))) for k in range(_n_shards(plan))}
    return {k: rows for k, rows in failed.items() if rows}


def _copy(out: Path, partial: Path, plan: dict[str, Any]) -> None:
    """Make `partial` a copy of the store `out`, of links as far as they go: what is written anew replaces its link."""
    if _begun(partial, plan):
        return  # a retry that was stopped goes on
    layout.empty(partial)

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with storage_errors(partial):
        leave = shutil.ignore_patterns("plan.json")
        shutil.copytree(out, partial, copy_function=link, ignore=leave, dirs_exist_ok=True)
    write_json(partial / MARKERS / "plan.json", plan)


def _retry(partial: Path, survey: Survey, plan: dict[str, Any], out: Path) -> GalscanError | None:
    """Ask once more for what failed, and write the shards that hold it anew. Return what put an end to it, if anything.

    From a random one on, lest a few that always fail stand in the way of the others each time; rows of a shard stay
    together, as they share their frames.
    """
    todo = _to_retry(partial, plan)
    trouble = None
    try:
        with progress.track("retry", sum(map(len, todo.values())), "objects") as advance:
            for shard in random.sample(sorted(todo), len(todo)):
                start = random.randrange(len(todo[shard]))
                rows = todo[shard][start:] + todo[shard][:start]
                if trouble := _retry_shard(partial, survey, shard, rows):
                    break
                advance(len(rows))
    except KeyboardInterrupt:
        left = sum(map(len, _to_retry(partial, plan).values()))
        raise Interrupted(f"stopped with {left} of {out} still failed; the same command goes on from there") from None
    return trouble


def _retry_shard(partial: Path, survey: Survey, shard: int, failed: list[int]) -> GalscanError | None:
    old = read_json(marker_path(partial, shard))
    rows = slice(*old["rows"])
    final = set(old.get("no_coverage", ()))
    unusable = {entry[0]: (entry, entry[0] in final) for entry in old["unusable"]}
    group = zarr.open_group(partial, mode="r")
    columns: dict[str, np.ndarray] = {}
    trouble = None
    for row in failed:
        try:
            fresh, bad = _collect(survey, slice(row, row + 1), _silent)
        except GalscanError as error:  # of the survey: a host that is to be left alone
            trouble = error
            break
        columns = columns or {name: np.array(group[name][rows]) for name in fresh}  # type: ignore[index]
        for name in ("images", "pixel_scale", "flags"):
            columns[name][row - rows.start] = fresh[name][0]
        unusable.pop(row)
        if bad:
            unusable[row] = bad[0]
    if columns:
        _put(partial, shard, rows, columns, [unusable[row] for row in sorted(unusable)])
    return trouble


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
