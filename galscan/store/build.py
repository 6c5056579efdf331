"""Build a store from a survey: shard by shard in parallel, resumable, and visible only when complete.

Work happens in the staging folder ``OUT.partial``. A shard is done when its marker ``.ingest/shard-00012.json`` exists;
at the end the folder is renamed to ``OUT``. Markers remain in the store (Zarr readers ignore them): they hold the
reason of every object without a usable image.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import staging
from galscan.core.errors import ConflictError, InputError
from galscan.core.files import storage_errors, sync
from galscan.store import append as appending
from galscan.store import layout, writer
from galscan.store.layout import Store
from galscan.store.plan import can_resume, content_hash, differences, plan_of, read_plan, write_plan
from galscan.store.retry import copy, find_failures, retry
from galscan.surveys import subsets
from galscan.surveys.base import Survey


def ingest_survey(
    survey: Survey,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    append: bool = False,
) -> Store:
    """Write every object of `survey` into the store `out`, or resume an interrupted ingest.

    Raises `ConflictError` if `out`, or unfinished work beside it, is of another survey or other settings;
    `StorageError` if the disk is full or not writable. Finished shards are kept, and `out` is unchanged; `Interrupted`
    on Ctrl-C. The same call resumes.

    Parameters
    ----------
    survey : Survey
        Source of the cutouts; picklable when `workers` is not 1.
    out : path
        Path of the store. A complete store of the same survey is returned unchanged.
    workers : int, optional
        Number of processes, default one per processor. 1 runs in this process.
    retry_failed : bool
        Retry objects that failed, or got HTTP 404. A complete store stays readable, and is replaced when that is done.
    append : bool
        Append to a complete store the objects that it does not have, identified by id.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; use 1 or more")
    if len(survey) == 0:
        raise InputError(f"survey '{survey.name}' has no objects; give a catalog with at least one row")
    workers = workers or os.cpu_count() or 1
    plan, folder = plan_of(survey), staging.partial(out)
    staging.recover(out)
    if not _is_occupied(out):
        _build(survey, out, plan, workers)
    store = _existing(out)
    if appending.ready_to_publish(out):
        with staging.locked(folder):
            if appending.ready_to_publish(out):
                appending.publish_append(out)
        staging.drop_empty(folder)
        store = layout.open_store(out)
    if not appending.holds(store, plan):
        if not append:
            raise ConflictError(_conflict(store, plan))
        try:
            with staging.locked(folder):
                appending.append(layout.open_store(out), survey, plan, workers)
        finally:
            staging.drop_empty(folder)
        store = layout.open_store(out)
    if retry_failed:
        _retry_failed(survey, store)
    return layout.open_store(out)


def pending(survey: Survey, out: Path) -> np.ndarray:
    """Return the rows of `survey` that ``append=True`` would add to the store `out`.

    Raises `ConflictError` if the append would be refused.
    """
    return appending.new_rows(_existing(out), survey, plan_of(survey))


def _is_occupied(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _existing(out: Path) -> Store:
    try:
        store = layout.open_store(out)
        read_plan(out)
    except InputError as error:
        raise ConflictError(
            f"{out} exists and is not a finished galscan ingest; remove it or choose another --out"
        ) from error
    return store


def _conflict(store: Store, plan: dict[str, Any]) -> str:
    changes = differences(read_plan(Path(store.path)), plan)
    # --append keeps the rendering of the store
    can_append = not appending.refusal(store, plan, subsets.OBJECT_KEYS | {"rendering"})
    hint = ", or add the new objects with --append" if can_append else ""
    return f"{store.path} holds another survey: {changes}; remove it or choose another --out{hint}"


def _build(survey: Survey, out: Path, plan: dict[str, Any], workers: int) -> None:
    folder = staging.partial(out)
    with staging.locked(folder):
        if _is_occupied(out):  # another process finished it in the meantime
            return
        work = writer.Work(folder, survey, plan["shard"])
        if not can_resume(folder, plan):
            layout.create(
                folder, survey=survey.name, count=plan["count"], size=plan["size"], id_dtype=np.dtype(plan["id_dtype"]),
                schemas=plan["schemas"], truth=plan["truth"], provenance=plan["survey"],
            )  # fmt: skip
            write_plan(folder, plan)
        writer.run(work, workers, out)
        layout.finish(folder, content_hash(folder, work.shards))
        with storage_errors(out):
            os.rename(folder, out)
            sync(out.parent)


def _retry_failed(survey: Survey, store: Store) -> None:
    """Retry the failed objects of a complete store, and those that got HTTP 404."""
    out = Path(store.path)
    folder, grown = staging.partial(out), bool(appending.appended(store))
    request = read_plan(out) | ({"of": store.content_hash} if grown else {})
    if not find_failures(out, survey, store.n_shards, grown=grown):
        return
    with staging.locked(folder):
        if not can_resume(folder, request):
            copy(out, folder)
            write_plan(folder, request)
        error = retry(folder, survey, find_failures(folder, survey, store.n_shards, grown=grown), out)
        layout.finish(folder, content_hash(folder, range(store.n_shards)))
        with storage_errors(out):
            staging.publish(folder, out)
    if error:  # objects fetched before it are in the store
        raise error
