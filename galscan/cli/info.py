"""``galscan info``, ``doctor`` and ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galscan.cli.options import Json, Seed, command, option


@command("info", "ngc.zarr --sheet ngc.png")
def info(
    path: Annotated[Path, typer.Argument(help="A store, a model or a run.")],
    sheet: Annotated[Path | None, option("Also write a contact sheet (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """Summarise a store, a model or a run."""


@command("doctor", exit_code=lambda summary: int(not summary["ok"]))
def doctor(as_json: Json = False) -> None:
    """Check the installation and suggest fixes."""


@command("demo", "--out demo-run")
def demo(out: Annotated[Path | None, option("Output folder.")] = None, seed: Seed = 0, as_json: Json = False) -> None:
    """Run the whole chain on a simulated survey. Its results are compared with the truth."""
