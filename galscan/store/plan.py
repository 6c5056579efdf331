"""What an ingest was asked for, written beside its shards: only the same request goes on with work that was begun."""

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
    """Return what must be equal for work to be gone on with."""
    plan = {
        "format": layout.FORMAT, "name": survey.name, "count": len(survey), "size": survey.size,
        "id_dtype": layout.roomy(survey.id_dtype).str, "schemas": survey.schemas(), "truth": list(survey.truth()),
        "shard": layout.shard_size(len(survey)), "survey": survey.describe(),
    }  # fmt: skip
    return dict(json.loads(json.dumps(plan, allow_nan=False)))


def plan_in(path: Path) -> dict[str, Any]:
    """Return what the store at `path` was made by at first."""
    plan: dict[str, Any] = read_json(path / MARKERS / PLAN)
    return {key: value for key, value in plan.items() if key != "of"}  # left by a retry


def begun(place: Path, plan: dict[str, Any]) -> bool:
    """Return whether there is work of this very plan; refuse that of another."""
    written = place / MARKERS / PLAN
    if not written.is_file():
        return False
    if (old := read_json(written)) != plan:
        raise ConflictError(
            f"{place} was begun with other settings: {differences(old, plan)}; remove it or choose another --out"
        )
    return True


def set_up(place: Path, plan: dict[str, Any]) -> None:
    """Say what is worked on in `place`; comes last, as without it the next call starts afresh."""
    write_json(place / MARKERS / PLAN, plan)


def content(*parts: Path | Iterable[int]) -> str:
    """Return the content hash of a store: folder, shards whose markers are there, another folder, its shards ..."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    markers = [read_json(marker_path(Path(folder), k)) for folder, shards in pairs for k in shards]  # type: ignore
    return hashlib.sha256("".join(marker["sha256"] for marker in markers).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return in words what differs, the first four of it; empty where nothing does."""
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
