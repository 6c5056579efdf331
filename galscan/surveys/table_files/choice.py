"""Choice of one table of a file with several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from galscan.core.errors import InputError


class Listed(NamedTuple):
    """A table of a file: its name, its number (of the HDU, or of the table from 1), its columns and rows."""

    name: str
    number: int
    columns: list[str]
    rows: int


Choose = Callable[[Sequence[Listed]], int]


def choose_table(
    path: Path, wanted: str | None, suits: Callable[[Sequence[str]], int], listed: Sequence[Listed]
) -> int:
    """Return the index of the table to read.

    Parameters
    ----------
    path : path
        The file, for messages.
    wanted : str, optional
        Name or number of the table.
    suits : callable
        How well columns suit a table of objects: 0 if they do not.
    listed : sequence of Listed
        The tables of the file.

    Raises
    ------
    InputError
        If there is no table `wanted`, or several suit equally well.
    """
    if wanted is not None:
        found = [k for k, table in enumerate(listed) if wanted.strip().lower() == table.name.lower()]
        found = found or [k for k, table in enumerate(listed) if wanted.strip() == str(table.number)]
        if len(found) == 1:
            return found[0]
        many = "several tables" if found else "no table"
        raise InputError(
            f"catalog {path} has {many} '{wanted}'; give the name or the number of one: {_listing(listed)}"
        )
    filled = [k for k, table in enumerate(listed) if table.rows] or list(range(len(listed)))
    if len(filled) == 1:
        return filled[0]
    suited = {k: suits(listed[k].columns) for k in filled}
    best = [k for k, value in suited.items() if value == max(suited.values()) and value]
    if len(best) == 1:
        return best[0]
    raise InputError(f"catalog {path} has {len(filled)} tables; choose one with --table: {_listing(listed)}")


def _listing(listed: Sequence[Listed]) -> str:
    shown = [
        f"{table.number} {table.name or '(no name)'} ({table.rows:,} rows: {', '.join(table.columns[:4])}"
        + (", ...)" if len(table.columns) > 4 else ")")
        for table in listed[:8]
    ]
    return "; ".join(shown) + ("; ..." if len(listed) > 8 else "")
