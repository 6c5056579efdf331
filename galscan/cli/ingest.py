"""``galscan ingest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import Cone, Contact, DryRun, Json, Seed, Workers, command, option, pair
from galscan.surveys.sizes import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE


@command("ingest", "--survey local --path images/ --catalog table.csv --labels efigi --out ngc.zarr")
def ingest(
    survey: Annotated[
        str,
        option(
            "local (a folder of images), frames (to cut from), simulated; by service: sdss, legacy-dr10, "
            "legacy-dr10-jpeg, panstarrs, panstarrs-fits, hips; frames by download: sdss-frames, legacy-bricks; "
            "or a survey.toml."
        ),
    ],
    out: Annotated[Path | None, option("The store; default: in the data home, by name.")] = None,
    path: Annotated[Path | None, option("Images: a folder, zip, Zarr, HDF5, tar, Parquet; frames: a folder.")] = None,
    format: Annotated[
        str | None, option("images, cutana, multimodal, webdataset, parquet; default: by content.")
    ] = None,
    catalog: Annotated[Path | None, option("Table (CSV, FITS, VOTable, Parquet ...); sdss: default --cone.")] = None,
    table: Annotated[str | None, option("Of a catalog file with several tables: the name or number of one.")] = None,
    position_unit: Annotated[str | None, option("Unit of its positions: hour,deg or rad; default: degrees.")] = None,
    query: Annotated[str | None, option("Instead: gz2 (with votes), vizier:TABLE, a SELECT for SkyServer.")] = None,
    cone: Cone = None,
    labels: Annotated[list[str] | None, option("Label schema in the table, e.g. efigi, gz2; repeatable.")] = None,
    size: Annotated[
        int | None,
        option(
            f"Size of a cutout in pixels; default: {DEFAULT_SIZE}, with --append that of the store.",
            min=MIN_SIZE,
            max=MAX_SIZE,
        ),
    ] = None,
    frame: Annotated[float | None, option("Width of a cutout in units of the object's radius; services: 8.48.")] = None,
    pixel_scale: Annotated[float | None, option("Instead of --frame: the same arcsec per pixel for all.")] = None,
    bands: Annotated[
        str | None, option("Bands of FITS images or frames, from blue to red: gri, or f606w,f814w.")
    ] = None,
    layer: Annotated[str | None, option("Layer, or HiPS, e.g. CDS/P/DSS2/color.")] = None,
    contact: Contact = None,
    cache: Annotated[bool, option("Cache responses of services.")] = True,
    keep_frames: Annotated[Path | None, option("Folder that keeps downloaded frames; default: deleted.")] = None,
    retry_failed: Annotated[bool, option("Retry objects that failed or got HTTP 404.", "--retry-failed")] = False,
    append: Annotated[bool, option("Add new objects to an existing store.", "--append")] = False,
    count: Annotated[int, option("Number of galaxies (simulated).", min=0)] = 10_000,
    seed: Seed = 0,
    rare_fraction: Annotated[float | None, option("Fraction of rare galaxies (simulated).", min=0, max=1)] = None,
    labelled: Annotated[float, option("Fraction with labels (simulated).", min=0, max=1)] = 1.0,
    columns: Annotated[
        list[str] | None,
        option("ROLE=NAME: the table's column for id, file, ra, dec or radius; repeatable.", "--column", parser=pair),
    ] = None,
    name: Annotated[str | None, option("Name of the survey; default: the store's.")] = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ingest images and a table of objects into a store. Run the same command to resume."""
