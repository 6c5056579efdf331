"""CSV tables of grades, with formulas escaped for spreadsheets and truncated files rejected."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from galscan.core.errors import InputError, NotFoundError


def escape_formula(text: str) -> str:
    """Prefix text that a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table of grades; each row has all `columns` as text, '' where the table has no such column.

    Raises
    ------
    NotFoundError, InputError
        If the file does not exist, or is not a complete table of grades.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
            names = reader.fieldnames or []
            handle.seek(0)
            complete = handle.read().endswith("\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV table ({error})") from error
    if missing := [name for name in ("id", "grader", "grade") if name not in names]:
        raise InputError(f"{path} has no column '{missing[0]}'; it has {', '.join(map(str, names)) or 'none'}")
    if "key" in names and not complete:  # tables from `write_csv` end with a newline
        raise InputError(f"{path} is truncated: its last line is incomplete; export it again")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: not as many columns as in the first line; export the table again")
    unescaped = [{k: v[1:] if v.startswith("'") else v for k, v in row.items()} for row in rows]
    return [{name: row.get(name, "").strip() for name in columns} for row in unescaped]
