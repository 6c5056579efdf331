"""``galscan vet`` and ``purity``: grades, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import Json, RunFolder, Seed, command, option


@command("vet", "run/ --size 200")
def vet(
    run: RunFolder,
    best: Annotated[int | None, option("Top candidates that are all graded; default: none.", min=1)] = None,
    size: Annotated[int, option("Total number of objects to grade.", min=1)] = 200,
    width: Annotated[float | None, option("Instead of --size: width of the purity interval to reach.")] = None,
    rank: Annotated[int | None, option("Optimise for the purity down to this rank; default: 1000.", min=1)] = None,
    seed: Seed = 0,
    port: Annotated[int, option("Port of the server; 0: any free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, option("Open the page in the browser.")] = True,
    serve: Annotated[bool, option("Only draw the sample and summarise it.", " /--design", show_default=False)] = True,
    objects: Annotated[
        Path | None, option("Grade the objects of this table of ids instead of a sample, as a list of its own.")
    ] = None,
    import_csv: Annotated[Path | None, option("Import grades from a CSV table.", "--import")] = None,
    export_csv: Annotated[Path | None, option("Export all grades to a CSV table.", "--export")] = None,
    as_json: Json = False,
) -> None:
    """Grade a sample of a scan on a page in the browser."""


@command("purity", "run/")
def purity(
    run: RunFolder,
    target: Annotated[list[str] | None, option("Target's grade; default: A and B.", "--target-grade")] = None,
    confidence: Annotated[float | None, option("Confidence of intervals; default: the scan's.", min=0, max=1)] = None,
    as_json: Json = False,
) -> None:
    """Estimate purity and completeness with the grades."""
