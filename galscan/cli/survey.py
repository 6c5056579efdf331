"""Commands for surveys: ingest, scan, similar, export, vet, purity, info, doctor and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import galscan
from galscan.cli.options import Device, DryRun, Json, Seed, Stores, Surveys, Workers, names, pairs, parse_cone
from galscan.cli.output import show
from galscan.surveys.sizes import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE


def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Output folder.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run the whole chain on a simulated survey. Its results are compared with the truth."""
    show(galscan.demo(out, seed=seed), as_json)


def ingest(
    survey: Annotated[
        str,
        typer.Option(
            "--survey",
            help="local (a folder of images), frames (to cut from), simulated; by service: sdss, legacy-dr10, "
            "legacy-dr10-jpeg, panstarrs, panstarrs-fits, hips; frames by download: sdss-frames, legacy-bricks; "
            "or a survey.toml.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The store; default: in the data home, by name.")] = None,
    path: Annotated[
        Path | None,
        typer.Option("--path", help="Images: a folder, zip, Zarr, HDF5 or tar files; or a folder of frames."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="images, cutana, multimodal or webdataset; default: detected.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", help="Table of objects: CSV, FITS, VOTable or Parquet.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query", help="Instead of --catalog: gz2 (with votes), vizier:TABLE, or a SELECT for SkyServer."
        ),
    ] = None,
    cone: Annotated[
        str | None,
        typer.Option("--cone", help="RA,DEC,RADIUS in degrees: only these objects; without a table, SDSS galaxies."),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", help="Label schema in the table, e.g. efigi, gz2; repeatable.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=MIN_SIZE,
            max=MAX_SIZE,
            help=f"Size of a cutout in pixels; default: {DEFAULT_SIZE}, with --append that of the store.",
        ),
    ] = None,
    frame: Annotated[
        float | None, typer.Option("--frame", help="Width of a cutout in units of the object's radius; services: 8.48.")
    ] = None,
    pixel_scale: Annotated[
        float | None, typer.Option("--pixel-scale", help="Instead of --frame: the same arcsec per pixel for all.")
    ] = None,
    bands: Annotated[
        str | None, typer.Option("--bands", help="Bands of frames, from blue to red: gri, or f606w,f814w.")
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Layer, or HiPS, e.g. CDS/P/DSS2/color.")] = None,
    contact: Annotated[
        str | None,
        typer.Option(
            "--contact", help="E-mail address, sent to services in the User-Agent; default: $GALSCAN_CONTACT."
        ),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Cache responses of services.")] = True,
    keep_frames: Annotated[
        Path | None,
        typer.Option(
            "--keep-frames", help="Folder in which downloaded frames are kept and reused; default: deleted after use."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Retry objects that failed or got HTTP 404, also in a complete store."),
    ] = False,
    append: Annotated[bool, typer.Option("--append", help="Add new objects to an existing store.")] = False,
    count: Annotated[int, typer.Option("--count", min=0, help="Number of galaxies (simulated).")] = 10_000,
    seed: Seed = 0,
    rare_fraction: Annotated[
        float | None, typer.Option("--rare-fraction", min=0, max=1, help="Fraction of rare galaxies (simulated).")
    ] = None,
    labelled: Annotated[
        float, typer.Option("--labelled", min=0, max=1, help="Fraction with labels (simulated).")
    ] = 1.0,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="ROLE=NAME: the table's column for id, file, ra, dec or radius; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the survey; default: the store's.")] = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Ingest images and a table of objects into a store. Run the same command to resume."""
    store = galscan.ingest(
        survey, out=out, path=path, format=format, catalog=catalog, query=query, cone=parse_cone(cone),
        labels=labels or (), size=size, frame=frame, pixel_scale=pixel_scale, bands=bands, layer=layer, contact=contact,
        cache=cache, keep_frames=keep_frames, retry_failed=retry_failed, append=append, count=count, seed=seed,
        rare_fraction=rare_fraction, labelled=labelled, columns=pairs("--column", column), name=name, workers=workers,
        dry_run=dry_run,
    )  # fmt: skip
    show(store, as_json)


def scan(
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Use the data home's model of this target; several: ring,merger.")
    ] = None,
    model: Annotated[list[Path] | None, typer.Option("--model", help="Use this model; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; default: in the data home.")] = None,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", help="local, cuda, slurm, kubernetes:NAME, the address of a Dask scheduler, or its file."
        ),
    ] = "local",
    workers: Workers = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only objects that satisfy this rule, e.g. 'dec > 0 and redness > 0.5'."),
    ] = None,
    cone: Annotated[str | None, typer.Option("--cone", help="RA,DEC,RADIUS in degrees: only objects within.")] = None,
    moc: Annotated[Path | None, typer.Option("--moc", help="Only objects in this multi-order coverage map.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only this number of rows.")] = None,
    cascade: Annotated[
        bool | None,
        typer.Option(
            "--cascade/--no-cascade", help="Reject objects with a prefilter first; default: from 100,000 objects on."
        ),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write the network's features of each object, for galscan similar.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="On CPUs: run 8-bit networks first, where a sample shows that this saves time."),
    ] = False,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Candidates to rank; default: the recipe's.")] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score every galaxy of a survey and rank the candidates. Run the same command to resume."""
    run = galscan.scan(
        survey=survey or (), store=store or (), target=names(target), model=model, out=out, cluster=cluster,
        workers=workers, top=top, where=where, cone=parse_cone(cone), moc=moc, limit=limit, cascade=cascade,
        embeddings=embeddings, int8=int8, device=device, dry_run=dry_run,
    )  # fmt: skip
    summary = show(run, as_json)
    raise typer.Exit(1 if summary.get("set_aside") else 0)


def similar(
    like: Annotated[
        list[str] | None, typer.Option("--like", help="Examples from the survey, by id: ID,ID; repeatable.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Image of an example (JPEG, PNG, FITS); repeatable.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Scan made with --embeddings.")] = None,
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[str | None, typer.Option("--target", help="Scan now, with this model of the data home.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Scan now, with this model.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of objects to rank.")] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder; default: in the data home.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank a survey by similarity to examples, without labels."""
    result = galscan.similar(
        like=[i for text in like or () for i in text.split(",")], image=image or (), run=run, survey=survey or (),
        store=store or (), target=target, model=model, top=top, out=out, device=device,
    )  # fmt: skip
    show(result, as_json)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a scan.")],
    out: Annotated[
        Path, typer.Option("--out", help="File to write: .fits .vot .parquet .csv .reg .pdf .moc.fits .moc.json.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="fits, votable, parquet, csv, ds9, pdf, moc; zooniverse and hats write folders. Default: by the name "
            "of --out.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only the top K.")] = None,
    min_purity: Annotated[
        float | None, typer.Option("--min-purity", min=0, max=1, help="Only down to this purity.")
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            "--known", help="Table of known objects (name, ra, dec in degrees), to mark new ones; repeatable."
        ),
    ] = None,
    crossmatch: Annotated[
        str | None, typer.Option("--crossmatch", help="simbad,ned,vizier:TABLE: services to query with the positions.")
    ] = None,
    radius: Annotated[float | None, typer.Option("--radius", help="Match radius in arcseconds; default: 3.")] = None,
    contact: Annotated[
        str | None,
        typer.Option(
            "--contact", help="E-mail address, sent to services in the User-Agent; default: $GALSCAN_CONTACT."
        ),
    ] = None,
    order: Annotated[
        int | None, typer.Option("--order", help="HEALPix order of a MOC; default: by the width of the cutouts.")
    ] = None,
    morphology: Annotated[
        bool, typer.Option("--morphology", help="Write the predicted morphology of every scanned galaxy instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export candidates or the sky coverage. Tables, catalogs, regions, cutouts or a MOC."""
    result = galscan.export(
        run, out, format=format, top=top, min_purity=min_purity, known=known or (), crossmatch=crossmatch or (),
        radius=radius, contact=contact, order=order, morphology=morphology,
    )  # fmt: skip
    show(result, as_json)


def vet(
    run: Annotated[Path, typer.Argument(help="Folder of a scan.")],
    best: Annotated[
        int | None,
        typer.Option("--best", min=1, help="Number of top candidates that are all graded; default: none."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Total number of objects to grade.")] = 200,
    width: Annotated[
        float | None, typer.Option("--width", help="Instead of --size: width of the purity interval to reach.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Optimise the sample for the purity down to this rank; default: 1000."),
    ] = None,
    seed: Seed = 0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the server; 0: any free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    design: Annotated[bool, typer.Option("--design", help="Only draw the sample and summarise it.")] = False,
    import_csv: Annotated[Path | None, typer.Option("--import", help="Import grades from a CSV table.")] = None,
    export_csv: Annotated[Path | None, typer.Option("--export", help="Export all grades to a CSV table.")] = None,
    as_json: Json = False,
) -> None:
    """Grade a sample of a scan on a page in the browser."""
    result = galscan.vet(
        run, best=best, size=size, width=width, rank=rank, seed=seed, port=port, browser=browser, serve=not design,
        import_csv=import_csv, export_csv=export_csv,
    )  # fmt: skip
    show(result, as_json)


def purity(
    run: Annotated[Path, typer.Argument(help="Folder of a graded scan.")],
    target: Annotated[
        list[str] | None, typer.Option("--target-grade", help="Grade that counts as a target; default: A and B.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence", min=0, max=1, help="Confidence level of the intervals; default: that of the scan."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate purity and completeness with the grades."""
    show(galscan.purity(run, target=target or None, confidence=confidence), as_json)


def info(
    path: Annotated[Path, typer.Argument(help="A store, a model or a run.")],
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Also write a contact sheet (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """Summarise a store, a model or a run."""
    show(galscan.info(path, sheet=sheet), as_json)


def doctor(as_json: Json = False) -> None:
    """Check the installation and suggest fixes."""
    result = galscan.doctor()
    show(result, as_json)
    raise typer.Exit(0 if result["ok"] else 1)
