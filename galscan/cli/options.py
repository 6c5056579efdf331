"""What commands share: options, parsers of option values, and the call of the public function."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

import galscan
from galscan.cli.output import show
from galscan.core.errors import nearest


class Command(NamedTuple):
    name: str
    example: str
    run: Callable[..., None]


def command(
    name: str, example: str = "", *, exit_code: Callable[[dict[str, Any]], int] = lambda summary: 0
) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function that declares the options of the public function of the same name.

    Options that are not given keep the defaults of the public function. `exit_code` is computed from the summary.
    """

    def make(declared: Callable[..., None]) -> Command:
        @functools.wraps(declared)
        def run(as_json: bool, **options: Any) -> None:
            given = {key: value for key, value in options.items() if value is not None and value != []}
            for key, value in given.items():
                if isinstance(value, list) and isinstance(value[0], tuple):  # NAME=VALUE, repeated
                    given[key] = dict(value)
            with contextlib.redirect_stdout(sys.stderr):  # of libraries: astropy, for one, logs to stdout
                result = getattr(galscan, declared.__name__)(**given)
            raise typer.Exit(exit_code(show(result, as_json)))

        return Command(name, example, run)

    return make


def names(text: str | None) -> str | list[str] | None:
    """Return one name, or a list of names."""
    return text.split(",") if text and "," in text else text


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def cone(text: str) -> tuple[float, ...]:
    if text.count(",") != 2:
        raise typer.BadParameter(f"{text!r} is not of the form RA,DEC,RADIUS, in degrees")
    return tuple(map(number, text.split(",")))


def known_device(name: str) -> str:
    if name not in (known := ("auto", "cpu", "cuda")):
        raise typer.BadParameter(f"{name!r} is unknown{nearest(name, known)}")
    return name


def option(help: str, *flags: str, **settings: Any) -> Any:
    """Return an option of typer, its help first; without `flags` it has the name of the parameter."""
    return typer.Option(*flags, help=help, **settings)


Json = Annotated[bool, option("Make the last line of stdout one JSON object.", "--json")]
DryRun = Annotated[bool, option("Check everything and print the plan; write nothing.", "--dry-run")]
Overwrite = Annotated[bool, option("Replace existing results.", "--overwrite")]
Seed = Annotated[int, option("Random seed.", min=0)]
Workers = Annotated[int | None, option("Number of processes; default: the number of cores.", min=1)]
Budget = Annotated[float | None, option("Maximum minutes of training.", min=0)]
Device = Annotated[str, option("Device of the networks.", metavar="auto|cpu|cuda", parser=known_device)]
Surveys = Annotated[list[str] | None, option("Survey in the data home, by name; repeatable.", "--survey")]
Stores = Annotated[list[str] | None, option("Store, by path or URL; repeatable.", "--store")]
Target = Annotated[str, option("Target by name, or a recipe.toml.")]
OutFolder = Annotated[Path | None, option("Output folder; default: in the data home.", "--out")]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a scan.")]
Cone = Annotated[str | None, option("RA,DEC,RADIUS in degrees: only objects within.", parser=cone)]
Contact = Annotated[
    str | None, option("E-mail address, sent to services in the User-Agent; default: $GALSCAN_CONTACT.")
]
