"""``galscan evaluate`` and ``ablate``: how good synthetic galaxies are, and what is gained by them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galscan.cli.options import (
    Device,
    DryRun,
    Json,
    OutFolder,
    Overwrite,
    Seed,
    Stores,
    Surveys,
    Target,
    command,
    option,
)


@command("evaluate", "models/dustlane --target dustlane --survey ngc")
def evaluate(
    synthetic: Annotated[Path, typer.Argument(help="A store of synthetic galaxies, or a model folder.")],
    target: Target,
    survey: Surveys = None,
    store: Stores = None,
    out: Annotated[Path | None, option("Output folder; default: NAME-evaluation beside the store.")] = None,
    model: Annotated[Path | None, option("Model whose test set is used; default: the one they were made for.")] = None,
    steps: Annotated[int | None, option("Training steps of the reference; default: the recipe's.", min=1)] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare synthetic with real galaxies. Held-out real ones, by a classifier trained on real galaxies only."""


@command("ablate", "--target dustlane --survey ngc --seeds 5 --prevalence 0.005 --out ablation/")
def ablate(
    target: Target,
    survey: Surveys = None,
    store: Stores = None,
    out: OutFolder = None,
    seeds: Annotated[int, option("Number of random splits.", min=1)] = 3,
    folds: Annotated[int, option("1: random hold-out; more: cross-validation.", min=1)] = 1,
    positives: Annotated[int | None, option("Training positives; default: half.")] = None,
    negatives: Annotated[int | None, option("Training negatives; default: in proportion.")] = None,
    reserved: Annotated[int, option("Positives kept out of the test set, even if fewer train.", min=0)] = 0,
    max_test: Annotated[int | None, option("Maximum number of test negatives.")] = None,
    prevalence: Annotated[float | None, option("Fraction of targets in the survey; default: as labelled.")] = None,
    purity: Annotated[float, option("Purity at which completeness is reported.")] = 0.8,
    completeness: Annotated[float, option("Completeness at which purity is reported.")] = 0.5,
    arms: Annotated[list[str] | None, option("Only this arm; repeatable.")] = None,
    method: Annotated[str | None, option("The arm whose gain is reported.")] = None,
    survey_size: Annotated[int, option("Objects in that survey.", min=1)] = 100_000,
    members: Annotated[int, option("Networks per arm and repeat.", min=1)] = 1,
    workers: Annotated[
        int | None, option("Processes that train in parallel, one core each; default: all cores.", min=0)
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure the gain by synthetic galaxies. On held-out real galaxies. Run the same command to resume."""
