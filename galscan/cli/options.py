"""Options shared by several commands, and parsers of option values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from galscan.core.errors import InputError, nearest

Json = Annotated[bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan; write nothing.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of processes; default: the number of cores.")
]


def _known_device(name: str) -> str:
    if name not in (known := ("auto", "cpu", "cuda")):
        raise InputError(f"--device {name!r} is unknown{nearest(name, known)}")
    return name


Device = Annotated[
    str, typer.Option("--device", metavar="auto|cpu|cuda", callback=_known_device, help="Device of the networks.")
]
Surveys = Annotated[list[str] | None, typer.Option("--survey", help="Survey in the data home, by name; repeatable.")]
Stores = Annotated[list[str] | None, typer.Option("--store", help="Store, by path or URL; repeatable.")]


def names(text: str | None) -> str | list[str] | None:
    """Return one name, or a list of comma-separated names."""
    return text.split(",") if text and "," in text else text


def pairs(option: str, texts: Sequence[str] | None) -> dict[str, str] | None:
    for text in texts or ():
        if not all(text.partition("=")):
            raise InputError(f"{option} {text!r} is not of the form NAME=VALUE (see --help)")
    return dict(t.split("=", 1) for t in texts) if texts else None


def parse_cone(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3:
        raise InputError(f"--cone {text!r} is not of the form RA,DEC,RADIUS, in degrees")
    ra, dec, radius = (number("--cone", part) for part in parts)
    return ra, dec, radius


def number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a number") from None
