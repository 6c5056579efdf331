"""``galscan train-rare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import Budget, Device, DryRun, Json, Overwrite, Seed, Stores, Surveys, command, names, option


@command("train-rare", "--target dustlane --survey ngc --budget 60")
def train_rare(
    target: Annotated[str, option("A target, or a recipe.toml; several: ring,merger.", callback=names)],
    survey: Surveys = None,
    store: Stores = None,
    grades: Annotated[list[Path] | None, option("Graded scan, to train on as well; repeatable.")] = None,
    out: Annotated[Path | None, option("The model's folder; default: in the data home.")] = None,
    budget: Budget = None,
    synthetic: Annotated[bool, option("Train on synthetic galaxies as well.")] = True,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a classifier for a rare class. It is trained on real and synthetic galaxies."""
