"""``galscan target``: recipes of targets; ``galscan feature``: features that they inject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galscan.cli.options import Json, Seed, Stores, Surveys, Target, command, option


@command("target new", "arcs --schema gz2 --answer t08_odd_feature_a20_lens_or_arc")
def new_target(
    name: Annotated[str, typer.Argument(help="Name of the target.")],
    schema: Annotated[list[str] | None, option("Label schema of the rules, e.g. gz2, efigi; repeatable.")] = None,
    answer: Annotated[list[str] | None, option("Answer that defines the target; repeatable.")] = None,
    out: Annotated[Path | None, option("Recipe to write; default: NAME.toml.")] = None,
    as_json: Json = False,
) -> None:
    """Write a template of a recipe, with every key explained."""


@command(
    "target check", "arcs.toml --store gz2.zarr --sheet arcs.png", exit_code=lambda summary: 2 * bool(summary["error"])
)
def check_target(
    target: Annotated[str, typer.Argument(help="A recipe.toml, or a target by name.")],
    survey: Surveys = None,
    store: Stores = None,
    sheet: Annotated[Path | None, option("Write a contact sheet (PNG) of each class.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Check a recipe on labelled galaxies, before training."""


@command("target list")
def list_targets(as_json: Json = False) -> None:
    """List the shipped targets."""


@command(
    "feature measure", "--target mine.toml --store ngc.zarr --sheet feature.png",
    exit_code=lambda summary: 2 * bool(summary["error"]),
)  # fmt: skip
def measure_feature(
    target: Target,
    survey: Surveys = None,
    store: Stores = None,
    sheet: Annotated[Path | None, option("Write a contact sheet (PNG): galaxies, maps, and maps injected.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a recipe's feature on labelled galaxies, before training."""
