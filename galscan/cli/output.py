"""Output of results: text for people, one JSON object for scripts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def show(result: Any, as_json: bool) -> dict[str, Any]:
    """Print a result as text and, with --json, as one JSON object on the last line; return the content of the JSON."""
    from galscan.commands.info import summarize

    summary = summarize(result)
    text = summary.pop("text", None) or "\n".join(_lines(summary))
    print(text, file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        import pydantic_core  # slow

        print(pydantic_core.to_json(summary, inf_nan_mode="null", fallback=_plain).decode(), flush=True)
    return dict(summary)


def _lines(value: Mapping[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    width = max(map(len, value), default=0)
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{indent}{key}", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and all(isinstance(row, Mapping) for row in item):
            lines += [f"{indent}{key}", *_table(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key:<{width}}  {_as_text(item)}")
    return lines


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    cells = [list(rows[0]), *([_as_text(row.get(key)) for key in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [indent + "  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in cells]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value)) or "none"
    return "none" if value is None or value == {} else str(value)


def _plain(value: Any) -> Any:
    """Return a NumPy number or array in types of Python, and any other object as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
