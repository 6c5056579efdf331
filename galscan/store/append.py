"""Append objects of a survey to a complete store, after those it has.

New shards are written beside the store, in ``OUT.partial``; if the last shard of the store is not full, it is written
again there, old rows first. When all are complete they are moved into the store, the root's ``zarr.json`` last: it
holds number of objects, content hash and consolidated metadata, so that a reader sees the old store or the new one,
also after a power failure. A shard moved in before that is valid for the old store, too: it only has additional rows
beyond the old end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import staging
from galscan.core.errors import ConflictError
from galscan.core.files import read_json, storage_errors, sync
from galscan.store import identity, layout, writer
from galscan.store.layout import Store
from galscan.store.manifest import MARKERS
from galscan.store.plan import PLAN, can_resume, content_hash, differences, read_plan, write_plan
from galscan.surveys import subsets
from galscan.surveys.base import Survey

MOVED = 10  # matching radii within which an id may have a new position


def holds(store: Store, plan: dict[str, Any]) -> bool:
    """Return whether the store was built from, or extended by, exactly this plan."""
    first = read_plan(Path(store.path))
    plan = plan | {"id_dtype": first["id_dtype"]}  # longer ids were refused
    extensions = [first | {key: entry[key] for key in ("count", "survey")} for entry in appended(store)]
    return plan == first or plan | {"shard": first["shard"]} in extensions


def appended(store: Store) -> list[dict[str, Any]]:
    """Return one entry per append: the ``rows`` it added, and ``count`` and ``survey`` of its plan."""
    return list(store.attrs.get("appended", ()))


def refusal(store: Store, plan: dict[str, Any], free: frozenset[str] = subsets.OBJECT_KEYS) -> str:
    """Return why the objects of `plan` cannot be appended, ignoring the survey keys `free`; empty if they can."""

    def fixed(given: dict[str, Any]) -> dict[str, Any]:
        survey = {k: v for k, v in given["survey"].items() if k not in free}
        return {k: given[k] for k in ("format", "name", "size", "schemas", "truth")} | {"survey": survey}

    return differences(fixed(read_plan(Path(store.path))), fixed(plan))


def new_rows(store: Store, survey: Survey, plan: dict[str, Any]) -> np.ndarray:
    """Return the rows of `survey` whose ids are not in the store.

    Raises `ConflictError` if size, survey, bands, stretch or label schemas differ from those of the store, ids are of
    another type, or an id of the store has another position.
    """
    if reason := refusal(store, plan):
        raise ConflictError(
            f"{store.path} cannot be extended by these objects: {reason}; write them to another store: --out"
        )
    present, ids = store.column("id"), subsets.ids(survey)
    if present.dtype.kind != "U" and ids.dtype.kind == "U":
        raise ConflictError(
            f"ids in {store.path} are integers, and '{ids[0]}' is text; write these objects to another store: --out"
        )
    if present.dtype.kind == "U":
        ids = ids.astype(str)
        width, longest = present.dtype.itemsize // 4, max(ids.tolist(), key=len)
        if len(longest) > width:
            raise ConflictError(
                f"id '{longest}' has {len(longest)} characters, and {store.path} allows {width}; write these "
                "objects to another store: --out"
            )
    new = ~np.isin(ids, present)
    _check_positions(store, survey, present, ids, np.flatnonzero(~new))
    return np.flatnonzero(new)


def _check_positions(store: Store, survey: Survey, present: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
    """Refuse objects whose ids are in the store at another position: they would be taken for those objects.

    Two ids at one position are allowed: they may be two entries of a catalogue.
    """
    positions = subsets.positions(survey)
    if positions is None or not len(rows):
        return
    order = np.argsort(present)
    store_rows = order[np.searchsorted(present, ids[rows], sorter=order)]
    old = np.stack([store.column(name)[store_rows] for name in ("ra", "dec")])
    new = np.stack([values[rows] for values in positions])
    distance = identity.separation(*old, *new)  # NaN where one of them has no position
    limit = MOVED * identity.radius_of([store])
    if not len(moved := np.flatnonzero(distance > limit)):
        return
    k = moved[np.argmax(distance[moved])]
    (ra, dec), (to_ra, to_dec) = old[:, k], new[:, k]
    raise ConflictError(
        f"{len(moved):,} of these objects have an id of {store.path} but another position: '{ids[rows[k]]}' is at "
        f"{ra:.5f} {dec:+.5f} in the store and at {to_ra:.5f} {to_dec:+.5f} in the survey, more than {limit:g} arcsec "
        "apart; write these objects to another store: --out"
    )


def append(store: Store, survey: Survey, plan: dict[str, Any], workers: int) -> None:
    """Add the objects of `survey` that are not in the store; the caller holds the lock of the staging folder.

    Raises `ConflictError` if they do not fit, or other unfinished work on the store exists.
    """
    out = Path(store.path)
    folder, rows = staging.partial(out), new_rows(store, survey, plan)
    if not len(rows):
        return
    entry = {"rows": [store.count, store.count + len(rows)], "count": plan["count"], "survey": plan["survey"]}
    request = {k: v for k, v in plan.items() if k != "shard"} | {"onto": store.content_hash}
    work = writer.Work(folder, subsets.take(survey, rows), store.shard, store.count, out)
    if not can_resume(folder, request):
        layout.create_extension(store, folder, work.count, appended=[*appended(store), entry])
        write_plan(folder, request)
    writer.run(work, workers, out)
    n_full = store.count // store.shard  # full shards are not written again
    layout.finish(folder, content_hash(out, range(n_full), folder, work.shards))
    publish_append(out)


def publish_append(out: Path) -> None:
    """Move the shards in the staging folder into the store at `out`, and remove the folder."""
    folder = staging.partial(out)
    if (folder / "zarr.json").is_file():
        with storage_errors(out):
            _move_into(folder, out)
    layout.clear_folder(folder)
    folder.rmdir()


def ready_to_publish(out: Path) -> bool:
    """Return whether all shards to append to the store at `out` are complete, and only need to be moved into it."""
    folder = staging.partial(out)
    root, plan = folder / "zarr.json", folder / MARKERS / PLAN
    if not plan.is_file() or not (onto := read_json(plan).get("onto")):
        return False
    if not root.is_file():  # it was the last to be moved
        return True
    return bool(read_json(root)["attributes"]["complete"]) and layout.open_store(out).content_hash == onto


def _move_into(staged: Path, out: Path) -> None:
    root, plan = staged / "zarr.json", staged / MARKERS / PLAN
    files = [f for f in staged.rglob("*") if f.is_file() and f not in (root, plan)]
    changed_folders = {out}
    for file in sorted(files, key=lambda f: f.name == "zarr.json"):  # metadata of arrays after their data
        target = out / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        os.replace(file, target)
        changed_folders |= {folder for folder in target.parents if out in folder.parents}
    for folder in changed_folders:
        sync(folder)
    sync(root)
    os.replace(root, out / "zarr.json")
    sync(out)
