"""Survey -> store: shard by shard in parallel, resumable, and never visible before it is whole.

The work happens in ``OUT.partial``. A shard is done when its marker ``.ingest/shard-00012.json`` is
there; at the end the folder is renamed to ``OUT``. Markers stay in the store (Zarr readers pass them
by): they hold the reason of every object without a usable image.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import staging
from galscan.core.errors import ConflictError, InputError
from galscan.core.files import storage_errors, sync_directory
from galscan.store import append as growing
from galscan.store import layout, writer
from galscan.store.layout import Store
from galscan.store.plan import begun, content, differences, plan_in, plan_of, set_up
from galscan.store.retry import copy, retry, to_retry
from galscan.surveys import growth
from galscan.surveys.base import Survey


def ingest_survey(
    survey: Survey,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    append: bool = False,
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
    append : bool
        Add to a complete store what it does not have, told by id, after what it has.

    Raises
    ------
    ConflictError
        If `out`, or the unfinished work beside it, is of another survey or other settings.
    StorageError
        If the disk is full or not writable. What was done is kept, and `out` is as it was.
    Interrupted
        On Ctrl-C. The same call goes on.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; use 1 or more")
    if len(survey) == 0:
        raise InputError(f"survey '{survey.name}' has no objects; give a catalog with at least one row")
    workers = workers or os.cpu_count() or 1
    plan, place = plan_of(survey), staging.partial(out)
    staging.recover(out)
    if not _taken(out):
        _make(survey, out, plan, workers)
    store = _existing(out)
    if growing.all_there(out):
        with staging.held(place):
            if growing.all_there(out):
                growing.settle(out)
        staging.drop_empty(place)
        store = layout.open_store(out)
    if not growing.holds(store, plan):
        if not append:
            raise ConflictError(_another(store, plan))
        try:
            with staging.held(place):
                growing.append(layout.open_store(out), survey, plan, workers)
        finally:
            staging.drop_empty(place)
        store = layout.open_store(out)
    if retry_failed:
        _ask_again(survey, store)
    return layout.open_store(out)


def pending(survey: Survey, out: Path) -> np.ndarray:
    """Return the rows of `survey` that ``append=True`` would add to the store `out`.

    Raises
    ------
    ConflictError
        If it would be refused.
    """
    return growing.new_rows(_existing(out), survey, plan_of(survey))


def _taken(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _existing(out: Path) -> Store:
    try:
        store = layout.open_store(out)
        plan_in(out)
    except InputError as error:
        raise ConflictError(
            f"{out} exists and is not a finished galscan ingest; remove it or choose another --out"
        ) from error
    return store


def _another(store: Store, plan: dict[str, Any]) -> str:
    told = differences(plan_in(Path(store.path)), plan)
    fits = not growing.refusal(store, plan, growth.OBJECTS | {"rendering"})  # which --append may take from the store
    more = ", or add what it does not have with --append" if fits else ""
    return f"{store.path} holds another survey: {told}; remove it or choose another --out{more}"


def _make(survey: Survey, out: Path, plan: dict[str, Any], workers: int) -> None:
    place = staging.partial(out)
    with staging.held(place):
        if _taken(out):  # another process finished it meanwhile
            return
        work = writer.Work(place, survey, plan["shard"])
        if not begun(place, plan):
            layout.create(
                place, survey=survey.name, count=plan["count"], size=plan["size"], id_dtype=np.dtype(plan["id_dtype"]),
                schemas=plan["schemas"], truth=plan["truth"], provenance=plan["survey"],
            )  # fmt: skip
            set_up(place, plan)
        writer.run(work, workers, out)
        layout.finish(place, content(place, work.shards))
        with storage_errors(out):
            os.rename(place, out)
            sync_directory(out.parent)


def _ask_again(survey: Survey, store: Store) -> None:
    """Ask once more for what failed of a complete store."""
    out = Path(store.path)
    place, grown = staging.partial(out), bool(growing.appended(store))
    request = plan_in(out) | ({"of": store.content_hash} if grown else {})
    if not to_retry(out, survey, store.n_shards, grown=grown):
        return
    with staging.held(place):
        if not begun(place, request):
            copy(out, place)
            set_up(place, request)
        trouble = retry(place, survey, to_retry(place, survey, store.n_shards, grown=grown), out)
        layout.finish(place, content(place, range(store.n_shards)))
        with storage_errors(out):
            staging.deliver(place, out)
    if trouble:  # what came before it is in the store
        raise trouble
