"""Names that version 0.1 gave to files, and to keys in them: its models, stores and evaluations are still read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

OLD_FILES = {
    "synthetic.zarr": "dreams.zarr", "synthetic.png": "dreams.png", "real_plus_synthetic": "real_plus_dreamt",
    "prefilter.": "first-look.",  # .safetensors, .xml
}  # fmt: skip
NEW_KEYS = {
    "dreamt": "synthetic", "dreams": "synthetic", "real_plus_dreamt": "real_plus_synthetic", "drawn": "generated",
    "screen": "filter",
}  # fmt: skip


def existing(path: Path) -> Path:
    """Return `path` or, where only that exists, the path that version 0.1 wrote in its place."""
    old = path.name
    for new_part, old_part in OLD_FILES.items():
        old = old.replace(new_part, old_part)
    return path.with_name(old) if not path.exists() and path.with_name(old).exists() else path


def renamed(value: Any) -> Any:
    """Return metadata (JSON) with the present names, in keys and in values that are such a name."""
    if isinstance(value, dict):
        return {NEW_KEYS.get(key, key): renamed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry) for entry in value]
    return "real_plus_synthetic" if value == "real_plus_dreamt" else value
