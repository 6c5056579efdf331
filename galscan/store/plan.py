"""Ingest plan, written beside the shards: interrupted work is resumed only with an equal plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from galscan.core.errors import ConflictError
from galscan.core.files import read_json, write_json
from galscan.store import layout
from galscan.store.manifest import MARKERS, marker_path
from galscan.surveys.base import Survey

PLAN = "plan.json"


def plan_of(survey: Survey) -> dict[str, Any]:
    """Return the parameters of an ingest that must be equal to resume it."""
    plan = {
        "format": layout.FORMAT, "name": survey.name, "count": len(survey), "size": survey.size,
        "id_dtype": layout.padded_id_dtype(survey.id_dtype).str, "schemas": survey.schemas(),
        "truth": list(survey.truth()), "shard": layout.shard_size(len(survey)), "survey": survey.describe(),
    }  # fmt: skip
    return dict(json.loads(json.dumps(plan, allow_nan=False)))


def read_plan(path: Path) -> dict[str, Any]:
    """Return the plan with which the store at `path` was first built."""
    plan: dict[str, Any] = read_json(path / MARKERS / PLAN)
    return {key: value for key, value in plan.items() if key != "of"}  # written by a retry


def can_resume(folder: Path, plan: dict[str, Any]) -> bool:
    """Return whether unfinished work with this plan exists; refuse that of another plan."""
    path = folder / MARKERS / PLAN
    if not path.is_file():
        return False
    if (old := read_json(path)) != plan:
        raise ConflictError(
            f"{folder} was begun with other settings: {differences(old, plan)}; remove it or choose another --out"
        )
    return True


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan, after everything else is set up: without it, the next call starts from the beginning."""
    write_json(folder / MARKERS / PLAN, plan)


def content_hash(*folders_and_shards: Path | Iterable[int]) -> str:
    """Return the content hash of a store from its markers; arguments are a folder, its shards, another folder ..."""
    pairs = zip(folders_and_shards[::2], folders_and_shards[1::2], strict=True)
    markers = [read_json(marker_path(Path(folder), k)) for folder, shards in pairs for k in shards]  # type: ignore
    return hashlib.sha256("".join(marker["sha256"] for marker in markers).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the differences of two plans as text, at most four; empty where there are none."""
    a, b = _flat(old), _flat(new)
    changed = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    # A survey repeats count and size in its own description: duplicates are removed.
    words = [f"{k.removeprefix('survey.')} was {_short(a.get(k))}, is {_short(b.get(k))}" for k in changed]
    words = list(dict.fromkeys(words))
    return "; ".join(words[:4]) + ("; ..." if len(words) > 4 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    nested = [_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()]
    return {key: item for flat in nested for key, item in flat.items()}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."  # abbreviated hash
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
