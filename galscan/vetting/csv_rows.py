"""Tables of grades as CSV: what a spreadsheet would run is quoted, and what is cut off is refused."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from galscan.core.errors import InputError, NotFoundError


def harmless(text: str) -> str:
    """Quote what a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table of grades; each of `columns` is there, as text, empty where the table has none.

    Raises
    ------
    NotFoundError, InputError
        If there is none, or it is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
            names = reader.fieldnames or []
            handle.seek(0)
            ended = handle.read().endswith("\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV table ({error})") from error
    if missing := [name for name in ("id", "grader", "grade") if name not in names]:
        raise InputError(f"{path} has no column '{missing[0]}'; it has {', '.join(map(str, names)) or 'none'}")
    if "key" in names and not ended:  # as `write_csv` always does
        raise InputError(f"{path} ends in the middle of a line; is it cut off?")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: another number of columns than in the first line; is it cut off?")
    plain = [{k: v[1:] if v.startswith("'") else v for k, v in row.items()} for row in rows]
    return [{name: row.get(name, "").strip() for name in columns} for row in plain]
