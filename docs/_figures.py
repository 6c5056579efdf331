"""The page of figures: a table of each benchmark's results (tests/benchmarks/results/*.json), made at each build."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
PLACE = "% figures"  # line of docs/figures.md that the tables replace
OLD = datetime.timedelta(days=31)
MOST = 60  # figures in a table; the file has all
LOW, HIGH = "_lo", "_hi"


def described(readme: Path = BENCHMARKS / "README.md") -> dict[str, str]:
    """Return what each benchmark shows, from the table of their README."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(rows)


def number(value: Any) -> str:
    """Return a number with four digits at most, and integers as they are."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def figures(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield name, value and interval of each figure; those inside another have its name before theirs.

    The interval of ``x`` is from ``x_lo`` to ``x_hi``. Lists of objects are left out: they are details.
    """
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key.endswith((LOW, HIGH)) and key[:-3] in content:
            continue
        if isinstance(value, Mapping):
            yield from figures(value, f"{name}: ")
        elif isinstance(value, list):
            if value and not any(isinstance(item, list | Mapping) for item in value):
                yield name, ", ".join(map(number, value)), ""
        else:
            low, high = content.get(key + LOW), content.get(key + HIGH)
            known = [("at least " if high is None else "") + number(low)] if low is not None else []
            known += [("at most " if low is None else "") + number(high)] if high is not None else []
            yield name, number(value), " to ".join(known)


def marks(result: Mapping[str, Any], version: str, today: datetime.date) -> list[str]:
    """Return why a result may not be that of the present code."""
    found = []
    if (measured := result["versions"]["galscan"]) != version:
        found.append(f"measured with galscan {measured}, this is {version}")
    if today - datetime.date.fromisoformat(result["date"]) > OLD:
        found.append("older than a month")
    return found


def section(name: str, shows: str, result: Mapping[str, Any] | None, version: str, today: datetime.date) -> str:
    """Return the section of a benchmark; without a result it says so."""
    text = f"## {name}\n\n{shows[:1].upper()}{shows[1:]}.\n\n"
    if result is None:
        return text + f":::{{warning}}\nNot measured. `python -m tests.benchmarks.{name}` measures it.\n:::\n"
    machine = result["machine"]
    text += (
        f"`{result['command']}`, {result['date']}, {machine['processor']} with {machine['cores']} cores and "
        f"{machine['memory_gib']} GiB, seed {result['seed']}.\n\n"
    )
    if found := marks(result, version, today):
        text += f":::{{note}}\n{'; '.join(found).capitalize()}.\n:::\n\n"
    rows = list(figures(result["figures"]))
    cells = [f"| `{key}` | {value} | {interval} |".replace("\n", " ") for key, value, interval in rows[:MOST]]
    text += "\n".join(["| figure | value | interval |", "|---|---|---|", *cells]) + "\n"
    if len(rows) > MOST:
        text += f"\nThe file has {len(rows) - MOST} more.\n"
    return text


def tables(version: str, today: datetime.date, results: Path = BENCHMARKS / "results") -> str:
    """Return the sections of all benchmarks: those of the README, and those with a result."""
    shows = described()
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in results.glob("*.json")}
    found = {name: result for name, result in found.items() if not name.endswith("-quick")}
    return "\n".join(
        section(name, shows.get(name, "Figures of this benchmark"), found.get(name), version, today)
        for name in sorted({*shows, *found})
    )


def setup(app: Any) -> dict[str, bool]:
    """Insert the tables into the page, which is read again at each build."""

    def insert(app: Any, page: str, source: list[str]) -> None:
        if page == "figures":
            today = datetime.datetime.now(datetime.UTC).date()
            source[0] = source[0].replace(PLACE, tables(app.config.version, today))

    app.connect("source-read", insert)
    app.connect("env-get-outdated", lambda *_: ["figures"])
    return {"parallel_read_safe": True}
