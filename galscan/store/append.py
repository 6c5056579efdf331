"""A store grows: objects of a survey that it does not have yet come after those that it has.

New shards are written beside the store, in ``OUT.partial``, and so is its last shard if it is not full, old rows
first. When all are there they are moved in, the root's ``zarr.json`` last: it holds number of objects, content hash
and consolidated metadata, so that a reader sees the old store or the new one, whenever the power fails. Until then a
shard that came in has nothing in it that is not true of the old store as well, but rows beyond its end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import staging
from galscan.core.errors import ConflictError
from galscan.core.files import read_json, storage_errors, sync_directory
from galscan.store import identity, layout, writer
from galscan.store.layout import Store
from galscan.store.manifest import MARKERS
from galscan.store.plan import PLAN, begun, content, differences, plan_in, set_up
from galscan.surveys import growth
from galscan.surveys.base import Survey

MOVED = 10  # matching radii: the same id so near is the same object with a new position


def holds(store: Store, plan: dict[str, Any]) -> bool:
    """Return whether the objects that `plan` asks for are in the store: it was made or grown by this very plan."""
    first = plan_in(Path(store.path))
    plan = plan | {"id_dtype": first["id_dtype"]}  # what has no room was refused
    later = [first | {key: came[key] for key in ("count", "survey")} for came in appended(store)]
    return plan == first or plan | {"shard": first["shard"]} in later


def appended(store: Store) -> list[dict[str, Any]]:
    """Return, of each time that the store grew, ``rows`` that came, and ``count`` and ``survey`` of what was given."""
    return list(store.attrs.get("appended", ()))


def refusal(store: Store, plan: dict[str, Any], free: frozenset[str] = growth.OBJECTS) -> str:
    """Return why the objects of `plan` cannot be added to the store, but for what is `free`; empty if they can."""

    def fixed(given: dict[str, Any]) -> dict[str, Any]:
        survey = {k: v for k, v in given["survey"].items() if k not in free}
        return {k: given[k] for k in ("format", "name", "size", "schemas", "truth")} | {"survey": survey}

    return differences(fixed(plan_in(Path(store.path))), fixed(plan))


def new_rows(store: Store, survey: Survey, plan: dict[str, Any]) -> np.ndarray:
    """Return the rows of `survey` whose ids the store does not have.

    Raises
    ------
    ConflictError
        If size, survey, bands, stretch or label schemas are not those of the store, ids are of another kind, or one of
        them is an object at another place of the sky.
    """
    if why := refusal(store, plan):
        raise ConflictError(f"{store.path} cannot take these objects: {why}; give them a store of their own: --out")
    present, wanted = store.column("id"), growth.ids(survey)
    if present.dtype.kind != "U" and wanted.dtype.kind == "U":
        raise ConflictError(
            f"ids in {store.path} are whole numbers, and '{wanted[0]}' is text; give these a store of their own: --out"
        )
    if present.dtype.kind == "U":
        wanted = wanted.astype(str)
        width, longest = present.dtype.itemsize // 4, max(wanted.tolist(), key=len)
        if len(longest) > width:
            raise ConflictError(
                f"id '{longest}' has {len(longest)} characters, and {store.path} has room for {width}; give these "
                "objects a store of their own: --out"
            )
    new = ~np.isin(wanted, present)
    _check_places(store, survey, present, wanted, np.flatnonzero(~new))
    return np.flatnonzero(new)


def _check_places(store: Store, survey: Survey, present: np.ndarray, wanted: np.ndarray, rows: np.ndarray) -> None:
    """Refuse objects whose ids the store has at another place of the sky: they would be taken for those.

    Two ids at one place are two entries of a catalogue, which may be right: they are not refused.
    """
    places = growth.positions(survey)
    if places is None or not len(rows):
        return
    order = np.argsort(present)
    at = order[np.searchsorted(present, wanted[rows], sorter=order)]
    old = np.stack([store.column(name)[at] for name in ("ra", "dec")])
    new = np.stack([values[rows] for values in places])
    apart = identity.separation(*old, *new)  # NaN where one of them has no position
    limit = MOVED * identity.radius_of([store])
    if not len(moved := np.flatnonzero(apart > limit)):
        return
    k = moved[np.argmax(apart[moved])]
    (ra, dec), (to_ra, to_dec) = old[:, k], new[:, k]
    raise ConflictError(
        f"{len(moved):,} of these objects have an id that {store.path} has at another place: '{wanted[rows[k]]}' is at "
        f"{ra:.5f} {dec:+.5f} there and at {to_ra:.5f} {to_dec:+.5f} here, more than {limit:g} arcsec away; give these "
        "a store of their own: --out"
    )


def append(store: Store, survey: Survey, plan: dict[str, Any], workers: int) -> None:
    """Add the objects of `survey` that the store does not have; whoever calls holds the lock of its unfinished work.

    Raises
    ------
    ConflictError
        If they do not fit, or other work on the store is unfinished.
    """
    out = Path(store.path)
    place, rows = staging.partial(out), new_rows(store, survey, plan)
    if not len(rows):
        return
    came = {"rows": [store.count, store.count + len(rows)], "count": plan["count"], "survey": plan["survey"]}
    request = {k: v for k, v in plan.items() if k != "shard"} | {"onto": store.content_hash}
    work = writer.Work(place, growth.take(survey, rows), store.shard, store.count, out)
    if not begun(place, request):
        layout.overlay(store, place, work.count, appended=[*appended(store), came])
        set_up(place, request)
    writer.run(work, workers, out)
    whole = store.count // store.shard  # these stay as they are
    layout.finish(place, content(out, range(whole), place, work.shards))
    settle(out)


def settle(out: Path) -> None:
    """Move in what was to be added to the store at `out`, and forget that it was to be."""
    place = staging.partial(out)
    if (place / "zarr.json").is_file():
        with storage_errors(out):
            _move_in(place, out)
    layout.empty(place)
    place.rmdir()


def all_there(out: Path) -> bool:
    """Return whether all that was to be added to the store at `out` is there, so that only moving it in is left."""
    place = staging.partial(out)
    root, plan = place / "zarr.json", place / MARKERS / PLAN
    if not plan.is_file() or not (onto := read_json(plan).get("onto")):
        return False
    if not root.is_file():  # it was the last to be moved
        return True
    return bool(read_json(root)["attributes"]["complete"]) and layout.open_store(out).content_hash == onto


def _move_in(place: Path, out: Path) -> None:
    root, plan = place / "zarr.json", place / MARKERS / PLAN
    files = [f for f in place.rglob("*") if f.is_file() and f not in (root, plan)]
    folders = {out}
    for file in sorted(files, key=lambda f: f.name == "zarr.json"):  # metadata of arrays after their data
        target = out / file.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        writer.sync_file(file)
        os.replace(file, target)
        folders |= {folder for folder in target.parents if out in folder.parents}
    for folder in folders:
        sync_directory(folder)
    writer.sync_file(root)
    os.replace(root, out / "zarr.json")
    sync_directory(out)
