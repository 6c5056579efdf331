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
import signal
import threading
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
from galscan.surveys.base import Cutout, NoCoverage, Survey

MARKERS = ".ingest"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def ingest_survey(survey: Survey, out: str | os.PathLike[str], *, workers: int | None = None) -> Store:
    """Write every object of `survey` into the store `out`, or go on where an earlier call stopped.

    Parameters
    ----------
    survey : Survey
        Where the cutouts come from; picklable when `workers` is not 1.
    out : path
        The store to be. A complete store of the same survey is returned as it is.
    workers : int, optional
        Processes, default one a processor. 1 runs in this process.

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
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        return _existing(out, plan)

    partial = unfinished.partial(out)
    with unfinished.held(partial):
        if not out.exists() or not any(out.iterdir()):  # else another process finished it meanwhile
            _prepare(partial, survey, plan)
            _run(partial, survey, plan, workers or os.cpu_count() or 1, out)
            shards = [read_json(_marker(partial, k)) for k in range(_n_shards(plan))]
            layout.finish(partial, hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest())
            with storage_errors(out):
                os.rename(partial, out)
                sync_directory(out.parent)
    return layout.open_store(out)


def outcomes(store: Store) -> dict[str, Any]:
    """Return what became of the objects: ``stored``, ``unusable`` (reason -> count) and ``details``.

    ``details`` lists (row, id, flag, reason in the survey's words) of every object without a usable image.
    """
    markers = [read_json(_marker(Path(store.path), k)) for k in range(store.n_shards)]
    details = [tuple(entry) for marker in markers for entry in marker["unusable"]]
    unusable: dict[str, int] = {}
    for _, _, flag, _ in details:
        unusable[layout.reason(flag)] = unusable.get(layout.reason(flag), 0) + 1
    return {"stored": store.count - len(details), "unusable": unusable, "details": details}


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


def _marker(path: Path, shard: int) -> Path:
    return path / MARKERS / f"shard-{shard:05d}.json"


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


def _prepare(partial: Path, survey: Survey, plan: dict[str, Any]) -> None:
    written = partial / MARKERS / "plan.json"
    if written.is_file():
        if (old := read_json(written)) != plan:
            raise ConflictError(
                f"{partial} was begun with other settings: {_differences(old, plan)}; remove it or choose another --out"
            )
        return
    layout.create(
        partial, survey=survey.name, count=plan["count"], size=plan["size"], id_dtype=np.dtype(plan["id_dtype"]),
        schemas=plan["schemas"], truth=plan["truth"], provenance=plan["survey"],
    )  # fmt: skip
    write_json(written, plan)  # last: without it the next call starts afresh


# ------------------------------------------------------------------------------------------------ shards


def _run(partial: Path, survey: Survey, plan: dict[str, Any], workers: int, out: Path) -> None:
    count, shard = plan["count"], plan["shard"]
    todo = [k for k in range(_n_shards(plan)) if not _marker(partial, k).is_file()]
    left = sum(min(count, (k + 1) * shard) - k * shard for k in todo)
    try:
        with progress.track("ingest", count, "objects", done=count - left) as advance:
            if min(workers, len(todo)) <= 1:
                for k in todo:
                    advance(_write_shard(partial, survey, k))
            else:
                _run_pool(partial, survey, todo, min(workers, len(todo)), advance)
    except KeyboardInterrupt:
        done = sum(_marker(partial, k).is_file() for k in range(_n_shards(plan)))
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


def _write_shard(partial: Path, survey: Survey, shard: int) -> int:
    """Write one shard of every array, then its marker. Return the number of objects."""
    size = layout.shard_size(len(survey))
    rows = slice(shard * size, min(len(survey), (shard + 1) * size))
    columns, unusable = _collect(survey, rows)
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
    marker = {"shard": shard, "rows": [rows.start, rows.stop], "sha256": digest.hexdigest(), "unusable": unusable}
    write_json(_marker(partial, shard), marker)
    return rows.stop - rows.start


def _collect(survey: Survey, rows: slice) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """Return the columns of one shard, and (row, id, flag, reason) of each object without a usable image."""
    table = survey.objects(rows.start, rows.stop)
    n = rows.stop - rows.start
    images = np.zeros((n, survey.size, survey.size, 3), dtype=np.uint8)
    flags = np.zeros(n, dtype=np.uint8)
    scale = np.full(n, np.nan)
    unusable: list[list[Any]] = []
    seen = 0
    for k, outcome in zip(range(n), survey.cutouts(rows.start, rows.stop), strict=False):
        seen += 1
        if isinstance(outcome, Cutout):
            if outcome.image.shape != images.shape[1:] or outcome.image.dtype != np.uint8:
                got = f"{outcome.image.shape} {outcome.image.dtype}"
                raise GalscanError(f"survey '{survey.name}' gave {got}, not {images.shape[1:]} uint8")
            images[k], scale[k], flags[k] = outcome.image, outcome.pixel_scale, int(outcome.flags)
            continue
        flag = Flag.MISSING if isinstance(outcome, NoCoverage) else outcome.flag
        flags[k] = int(flag)
        identifier = table["id"].iloc[k]
        unusable.append([rows.start + k, str(identifier), int(flag), outcome.reason])
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


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
