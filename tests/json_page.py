"""The keys of ``--json`` that docs/reference/json.md explains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
INHERITED = {"similar": ["scan"], "info": ["train-rare", "scan", "ingest"], "train-rare": ["several", "dry"]}
ALSO = {"several": {"models"}, "dry": {"dry_run"}, "scan": {"runs"}}  # in the text below a heading


def documented(command: str) -> set[str]:
    """Return the keys in the table of a command, and in those of the commands whose keys it has as well."""
    _, _, section = PAGE.partition(f"## galscan {command}\n")
    rows = [line.split("|")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    keys = {key for row in rows for key in re.findall(r"`([^`]+)`", row)} | ALSO.get(command, set())
    return keys.union(*(documented(name) for name in INHERITED.get(command, [])))


def undocumented(command: str, summary: Mapping[str, Any]) -> set[str]:
    """Return the keys of a summary that the page lacks; also those inside it, where the page names keys inside."""
    known = documented(command)
    found = set()
    for key, value in summary.items():
        if any(name.startswith(f"{key}[].") for name in known):
            found |= {f"{key}[].{name}" for row in value for name in row}
        elif any(name.startswith(f"{key}.") for name in known):
            found |= {f"{key}.{name}" for name in value or ()}
        else:
            found.add(key)
    return found - known - {"text"}
