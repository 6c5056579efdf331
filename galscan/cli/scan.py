"""``galscan scan``, ``similar`` and ``map``: a survey ranked by scores or by similarity, and a map of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import (
    Cone,
    Device,
    DryRun,
    Json,
    OutFolder,
    RunFolder,
    Seed,
    Stores,
    Surveys,
    Workers,
    command,
    names,
    option,
)


@command(
    "scan", "--survey sdss --target dustlane --out run/", exit_code=lambda summary: int(bool(summary.get("unscored")))
)
def scan(
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[str | None, option("The data home's model of it; several: ring,merger.", callback=names)] = None,
    model: Annotated[list[Path] | None, option("Use this model; repeatable.")] = None,
    out: Annotated[Path | None, option("The run's folder; default: in the data home.")] = None,
    cluster: Annotated[
        str, option("local, cuda, slurm, kubernetes:NAME, a Dask scheduler's address or file.")
    ] = "local",
    workers: Workers = None,
    where: Annotated[str | None, option("Only these objects, e.g. 'dec > 0 and redness > 0.5'.")] = None,
    cone: Cone = None,
    moc: Annotated[Path | None, option("Only objects in this multi-order coverage map.")] = None,
    limit: Annotated[int | None, option("Only this number of rows.", min=1)] = None,
    cascade: Annotated[bool | None, option("Reject objects with a prefilter; default: from 100,000 on.")] = None,
    embeddings: Annotated[
        bool, option("Write features of each object, for galscan similar and map.", "--embeddings")
    ] = False,
    top: Annotated[int | None, option("Candidates to rank; default: the recipe's.", min=1)] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score every galaxy of a survey and rank the candidates. Run the same command to resume."""


def _ids(texts: list[str] | None) -> list[str]:
    """Return ids separated by commas; the name of a file may have a comma."""
    return [part for text in texts or () for part in ([text] if Path(text).is_file() else text.split(","))]


@command("similar", "--run run/ --like 1237648720693690487,1237651191354261600 --out like/")
def similar(
    like: Annotated[
        list[str] | None, option("Ids of examples: ID,ID, or a table of ids; repeatable.", callback=_ids)
    ] = None,
    image: Annotated[list[Path] | None, option("Image of an example (JPEG, PNG, FITS); repeatable.")] = None,
    run: Annotated[Path | None, option("Scan made with --embeddings.")] = None,
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[str | None, option("Scan now, with this model of the data home.")] = None,
    model: Annotated[Path | None, option("Scan now, with this model.")] = None,
    top: Annotated[int, option("Number of objects to rank.", min=1)] = 1000,
    out: OutFolder = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank a survey by similarity to examples, without labels."""


@command("map", "run/ --out map.html")
def make_map(
    run: RunFolder,
    target: Annotated[str | None, option("Of a scan for several targets: the one to show.")] = None,
    method: Annotated[str, option("pca, or umap (pip install 'galscan[map]').", metavar="pca|umap")] = "pca",
    max_points: Annotated[int, option("Largest number of points.", min=3)] = 100_000,
    thumbnails: Annotated[int, option("Number of small images on the page.", min=0)] = 1500,
    out: Annotated[Path | None, option("File to write; default: map.html in the run.")] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a page with a map of a scan made with --embeddings. Objects with similar images are close together."""
