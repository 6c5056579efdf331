"""Manifest: outcome of each object (stored, without coverage, or failed) with the reason.

Ingest writes a marker per shard into the store, ``.ingest/shard-00012.json``, which lists all objects without a usable
image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.files import atomic_path, read_json
from galscan.store.layout import Store
from galscan.surveys.base import NOT_FOUND, reason

MARKERS = ".ingest"

Unusable = list[tuple[list[Any], bool]]  # (row, id, flag, reason) of an object without an image; whether that is final


def marker_path(path: Path, shard: int) -> Path:
    """Return the path of the marker of a shard."""
    return path / MARKERS / f"shard-{shard:05d}.json"


def markers(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the markers of all shards, without entries of rows that are not yet part of the store."""
    for k in range(store.n_shards):
        marker = read_json(marker_path(Path(store.path), k))
        yield marker | {"unusable": [entry for entry in marker["unusable"] if entry[0] < store.count]}


def unusable_of(marker: dict[str, Any]) -> Unusable:
    """Return the objects of a shard without a usable image."""
    final = set(marker.get("no_coverage", ()))
    return [(entry, entry[0] in final) for entry in marker["unusable"]]


def failed_rows(marker: dict[str, Any]) -> list[int]:
    """Return the rows of a shard without an image, except those without coverage."""
    return [entry[0] for entry, final in unusable_of(marker) if not final]


def retryable_rows(marker: dict[str, Any]) -> list[int]:
    """Return the rows of a shard that failed, or for which a service responded HTTP 404."""
    failed = set(failed_rows(marker))
    return [row for row, _, _, reason in marker["unusable"] if row in failed or reason == NOT_FOUND]


def outcomes(store: Store) -> dict[str, Any]:
    """Return a summary of the outcomes of all objects.

    Returns
    -------
    dict
        ``stored``, ``no_coverage`` and ``failed``, which add up to all; ``failures``, the most frequent first:
        ``objects``, ``reason`` and ``such_as``, the id of one; ``unusable`` (reason -> count) and ``details``, (row,
        id, flag, reason in the survey's words) of every object without a usable image.
    """
    all_markers = list(markers(store))
    details = [tuple(entry) for marker in all_markers for entry in marker["unusable"]]
    unusable = dict(Counter(reason(flag) for _, _, flag, _ in details))
    failed = {row for marker in all_markers for row in failed_rows(marker)}
    reasons: dict[str, list[str]] = {}
    for row, identifier, _, message in details:
        if row in failed:
            reasons.setdefault(_without_id(message, identifier), []).append(identifier)
    failures = [{"objects": len(ids), "reason": message, "such_as": ids[0]} for message, ids in reasons.items()]
    return {
        "stored": store.count - len(details), "no_coverage": len(details) - len(failed), "failed": len(failed),
        "failures": sorted(failures, key=lambda f: -int(f["objects"])), "unusable": unusable, "details": details,
    }  # fmt: skip


def _without_id(reason: str, identifier: str) -> str:
    """Return a reason with ID in place of the object's id, so that equal failures can be counted."""
    return re.sub(rf"(?<![\w.]){re.escape(identifier)}(?=\.\w|$)", "ID", reason)


def manifest(store: Store) -> pd.DataFrame:
    """Return one row per object: ``id, ra, dec, outcome`` (stored, no_coverage, failed) and ``reason``."""
    outcome, reason = np.full(store.count, "stored", dtype=object), np.full(store.count, "", dtype=object)
    for marker in markers(store):
        failed = set(failed_rows(marker))
        for row, _, _, message in marker["unusable"]:
            outcome[row], reason[row] = "failed" if row in failed else "no_coverage", message
    columns = {name: store.column(name) for name in ("id", "ra", "dec")}
    return pd.DataFrame(columns | {"outcome": outcome, "reason": reason})


def write_manifest(store: Store, path: str | os.PathLike[str]) -> None:
    """Write the manifest as Parquet. Raises `StorageError` if it cannot be written."""
    with atomic_path(path) as temporary:
        manifest(store).to_parquet(temporary)
