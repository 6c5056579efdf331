"""``galscan scan`` and ``similar``: a survey ranked by scores, or by similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import Cone, Device, DryRun, Json, OutFolder, Stores, Surveys, Workers, command, names, option


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
    embeddings: Annotated[bool, option("Write features of each object, for galscan similar.", "--embeddings")] = False,
    top: Annotated[int | None, option("Candidates to rank; default: the recipe's.", min=1)] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score every galaxy of a survey and rank the candidates. Run the same command to resume."""


def _ids(texts: list[str] | None) -> list[str]:
    return [identifier for text in texts or () for identifier in text.split(",")]


@command("similar", "--run run/ --like 1237648720693690487,1237651191354261600 --out like/")
def similar(
    like: Annotated[list[str] | None, option("Ids of examples: ID,ID; repeatable.", callback=_ids)] = None,
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
