"""The command line: one verb is one function, which calls the public function of that name. No logic here.

Nothing heavy is imported before a verb runs, so that ``galscan --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import galscan
from galscan.cli_options import Device, DryRun, Json, Seed, Stores, Surveys, Workers, names, number, pairs, parse_cone
from galscan.cli_output import show
from galscan.errors import GalscanError

app = typer.Typer(
    name="galscan",
    help="Find rare galaxies in surveys of millions: ingest, train-rare, scan, export.",
    epilog="Exit codes: 0 done, 1 failed, 2 a mistake in what was given, 130 interrupted (run it again, it goes on).",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"galscan {galscan.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True, callback=_version)
    ] = False,
    tracebacks: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error comes from.")] = False,
) -> None:
    pass  # --traceback is taken out of the arguments in `run`, so that it may stand anywhere


def _verb(name: str, example: str) -> Any:
    return app.command(name, epilog=f"Example: {example}")


@_verb("demo", "galscan demo --out demo-run")
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder for all that comes out.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run the whole chain on a sky whose truth is known."""
    show(galscan.demo(out, seed=seed), as_json)


@_verb("ingest", "galscan ingest --survey local --path images/ --catalog table.csv --labels efigi --out ngc.zarr")
def ingest(
    survey: Annotated[
        str,
        typer.Option(
            "--survey",
            help="local (a folder of images), frames (to cut from), simulated; by service: sdss, legacy-dr10, "
            "legacy-dr10-jpeg, panstarrs, panstarrs-fits, hips; frames that are fetched: sdss-frames, legacy-bricks; "
            "or a survey.toml.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The store; default: in the data home, by name.")] = None,
    path: Annotated[
        Path | None,
        typer.Option("--path", help="Images: a folder, zip, Zarr, HDF5 or tar files; or a folder of frames."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="images, cutana, multimodal or webdataset; default: found out.")
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", help="Table of objects: CSV, FITS, VOTable or Parquet.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", help="Instead: gz2 (with votes), vizier:TABLE, or a SELECT for SkyServer."),
    ] = None,
    cone: Annotated[
        str | None, typer.Option("--cone", help="RA,DEC,RADIUS in degrees: only these objects; alone, SDSS galaxies.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", help="Label schema in the table, e.g. efigi, gz2; repeatable.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=1024, help="Pixels on a side of a cutout.")] = 64,
    frame: Annotated[
        float | None, typer.Option("--frame", help="Side of a cutout over the object's radius; services: 8.48.")
    ] = None,
    pixel_scale: Annotated[
        float | None, typer.Option("--pixel-scale", help="Arcsec per pixel, the same for all, instead.")
    ] = None,
    bands: Annotated[
        str | None, typer.Option("--bands", help="Bands of frames, from blue to red: gri, or f606w,f814w.")
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Layer, or HiPS, e.g. CDS/P/DSS2/color.")] = None,
    contact: Annotated[
        str | None, typer.Option("--contact", help="Your address, told to services; default: $GALSCAN_CONTACT.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep what services sent, for other stores.")
    ] = True,
    keep_frames: Annotated[
        Path | None,
        typer.Option(
            "--keep-frames", help="Folder to keep fetched frames in, and to find them again; default: dropped."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask once more for what failed, also of a complete store.")
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Add to a store that is there the objects that it does not have.")
    ] = False,
    count: Annotated[int, typer.Option("--count", min=0, help="Galaxies to simulate.")] = 10_000,
    seed: Seed = 0,
    rare_fraction: Annotated[
        float | None, typer.Option("--rare-fraction", min=0, max=1, help="Share of rare galaxies (simulated).")
    ] = None,
    labelled: Annotated[float, typer.Option("--labelled", min=0, max=1, help="Share with labels (simulated).")] = 1.0,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="WHAT=NAME: the table's column for id, file, ra, dec or radius; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the survey; default: the store's.")] = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring images and a table of objects into a store. Run it again to go on."""
    store = galscan.ingest(
        survey, out=out, path=path, format=format, catalog=catalog, query=query, cone=parse_cone(cone),
        labels=labels or (), size=size, frame=frame, pixel_scale=pixel_scale, bands=bands, layer=layer, contact=contact,
        cache=cache, keep_frames=keep_frames, retry_failed=retry_failed, append=append, count=count, seed=seed,
        rare_fraction=rare_fraction, labelled=labelled, columns=pairs("--column", column), name=name, workers=workers,
        dry_run=dry_run,
    )  # fmt: skip
    show(store, as_json)


@_verb("train-rare", "galscan train-rare --target dustlane --survey ngc --budget 60")
def train_rare(
    target: Annotated[
        str,
        typer.Option("--target", help="A target (galscan target list) or a recipe.toml; several: dustlane,ring."),
    ],
    survey: Surveys = None,
    store: Stores = None,
    grades: Annotated[
        list[Path] | None, typer.Option("--grades", help="Scan that people graded: its objects train, too; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The model's folder; default: in the data home.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, help="Minutes of training at most.")] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic/--no-synthetic", help="Train on dreamt galaxies as well.")
    ] = True,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Dream rare galaxies, and train a classifier with them."""
    model = galscan.train_rare(
        names(target) or "", survey=survey or (), store=store or (), grades=grades or (), out=out, budget=budget,
        synthetic=synthetic, device=device, seed=seed, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(model, as_json)


@_verb("train-generator", "galscan train-generator --out base.safetensors")
def train_generator(
    out: Annotated[Path, typer.Option("--out", help="The weights to write, .safetensors; Stable Diffusion: a folder.")],
    kind: Annotated[str, typer.Option("--kind", help="flow, or stable-diffusion.")] = "flow",
    survey: Surveys = None,
    store: Stores = None,
    schema: Annotated[str | None, typer.Option("--schema", help="Labels that become conditions, e.g. efigi.")] = None,
    size: Annotated[int, typer.Option("--size", min=16, max=512, help="Pixels on a side (simulated).")] = 64,
    count: Annotated[int, typer.Option("--count", min=16, help="Galaxies to simulate, without --store.")] = 40_000,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps of training; default: 4,500, Stable Diffusion 10,000.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Galaxies a step.")] = 16,
    lora: Annotated[
        int | None, typer.Option("--lora", min=0, help="Stable Diffusion: train adapters of this rank alone.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=16, help="Stable Diffusion: pixels it works at; default: 424.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Weights to go on from: none, base, or a file; Stable Diffusion: a folder, or a "
            "name on the Hugging Face hub.",
        ),
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, help="Minutes of training at most.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train the galaxy generator alone: the base weights, or one of your own. Run it again to go on."""
    result = galscan.train_generator(
        out, kind=kind, survey=survey or (), store=store or (), schema=schema, size=size, count=count, steps=steps,
        batch=batch, lora=lora, resolution=resolution, start=start, budget=budget, seed=seed, device=device,
        dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


@_verb("dream", "galscan dream --target dustlane --count 48 --out dreams/")
def dream(
    target: Annotated[str, typer.Option("--target", help="What to dream: a target, or a recipe.toml.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many.")],
    out: Annotated[Path, typer.Option("--out", help="A folder of PNG images, or a store if it ends in .zarr.")],
    model: Annotated[Path | None, typer.Option("--model", help="Model whose generator dreams.")] = None,
    generator: Annotated[
        str | None,
        typer.Option("--generator", help="Instead of a model: weights, a file, a folder or base (with --store)."),
    ] = None,
    store: Stores = None,
    base: Annotated[str | None, typer.Option("--from", help="Real galaxies to draw conditions from: a rule.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="ANSWER=LOW:HIGH, drawn anew in this range; repeatable.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weight", help="ANSWER=W: insist on it W times as strongly; repeatable.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="On the whole condition; 1 = none.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps from noise to picture.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Draw galaxies of a rare class, with conditions pushed as you like."""
    ranges = {}
    for answer, text in (pairs("--set", values) or {}).items():
        low, _, high = text.partition(":")
        ranges[answer] = (number("--set", low), number("--set", high or low))
    pushed = {a: number("--weight", w) for a, w in (pairs("--weight", weights) or {}).items()}
    result = galscan.dream(
        target, count=count, out=out, model=model, generator=generator, store=store or (), base=base, values=ranges,
        weights=pushed, guidance=guidance, steps=steps, seed=seed, device=device, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


@_verb("judge", "galscan judge models/dustlane --target dustlane --survey ngc")
def judge(
    dreams: Annotated[Path, typer.Argument(help="A store of dreams, or a model, which holds one.")],
    target: Annotated[str, typer.Option("--target", help="What was dreamt: a target, or a recipe.toml.")],
    survey: Surveys = None,
    store: Stores = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: NAME-judge beside the dreams.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Hold out what this model held out; default: the dreams' own.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of the critic; default: the recipe's.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a judgement that is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Judge dreams by a network that never saw one, beside real galaxies held out."""
    result = galscan.judge(
        dreams, target=target, survey=survey or (), store=store or (), out=out, model=model, steps=steps, seed=seed,
        device=device, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


@_verb("ablate", "galscan ablate --target dustlane --survey ngc --seeds 5 --prevalence 0.005 --out ablation/")
def ablate(
    target: Annotated[str, typer.Option("--target", help="What to look for: a target, or a recipe.toml.")],
    survey: Surveys = None,
    store: Stores = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results; default: in the data home.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Repeats with other divisions and networks.")] = 3,
    folds: Annotated[int, typer.Option("--folds", min=1, help="1: hold out at random; more: cross-validation.")] = 1,
    positives: Annotated[int | None, typer.Option("--positives", help="Positives that train; default: half.")] = None,
    negatives: Annotated[int | None, typer.Option("--negatives", help="Negatives that train, at most.")] = None,
    max_test: Annotated[int | None, typer.Option("--max-test", help="Negatives that are tested, at most.")] = None,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", help="Share of targets in the survey; default: as labelled.")
    ] = None,
    purity: Annotated[float, typer.Option("--purity", help="At which completeness and detections are told.")] = 0.8,
    completeness: Annotated[float, typer.Option("--completeness", help="At which purity is told.")] = 0.5,
    arms: Annotated[list[str] | None, typer.Option("--arms", help="Only this way to train; repeatable.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="The arm whose gain is told.")] = None,
    survey_size: Annotated[int, typer.Option("--survey-size", min=1, help="Objects of that survey.")] = 100_000,
    members: Annotated[int, typer.Option("--members", min=1, help="Networks an arm and repeat.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Repeats at a time.")] = 1,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare training with and without dreams on galaxies that nothing was taught. Run it again to go on."""
    result = galscan.ablate(
        target, store=store or (), survey=survey or (), out=out, seeds=seeds, folds=folds, positives=positives,
        negatives=negatives, max_test=max_test, prevalence=prevalence, purity=purity, completeness=completeness,
        arms=arms or (), method=method, survey_size=survey_size, members=members, workers=workers, device=device,
        seed=seed, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


@_verb("scan", "galscan scan --survey sdss --target dustlane --out run/")
def scan(
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Use the data home's model of this target; several: dustlane,ring.")
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
        str | None, typer.Option("--where", help="Only objects for which this holds, e.g. 'dec > 0 and redness > 0.5'.")
    ] = None,
    cone: Annotated[str | None, typer.Option("--cone", help="RA,DEC,RADIUS in degrees: only objects therein.")] = None,
    moc: Annotated[Path | None, typer.Option("--moc", help="Only objects in this coverage map.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many rows.")] = None,
    cascade: Annotated[
        bool | None,
        typer.Option("--cascade/--no-cascade", help="Discard first what surely is none; default: from 100,000 on."),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Keep what the network sees in each, for galscan similar.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="On CPUs: look in 8 bits first, where that is measured to pay.")
    ] = False,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Candidates to keep; default: the recipe's.")] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score every galaxy of a survey, and rank the best. Run it again to go on."""
    run = galscan.scan(
        survey=survey or (), store=store or (), target=names(target), model=model, out=out, cluster=cluster,
        workers=workers, top=top, where=where, cone=parse_cone(cone), moc=moc, limit=limit, cascade=cascade,
        embeddings=embeddings, int8=int8, device=device, dry_run=dry_run,
    )  # fmt: skip
    told = show(run, as_json)
    raise typer.Exit(1 if told.get("set_aside") else 0)


@_verb("similar", "galscan similar --run run/ --like 1237648720693690487,1237651191354261600 --out like/")
def similar(
    like: Annotated[
        list[str] | None, typer.Option("--like", help="Objects of the survey, by id: ID,ID; repeatable.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture (JPEG, PNG, FITS) of an object; repeatable.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Scan made with --embeddings.")] = None,
    survey: Surveys = None,
    store: Stores = None,
    target: Annotated[str | None, typer.Option("--target", help="Scan now, with this model of the data home.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Scan now, with this model.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Objects to rank.")] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="The list's folder; default: in the data home.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank a survey by likeness to examples, where nothing is labelled yet."""
    found = galscan.similar(
        like=[i for text in like or () for i in text.split(",")], image=image or (), run=run, survey=survey or (),
        store=store or (), target=target, model=model, top=top, out=out, device=device,
    )  # fmt: skip
    show(found, as_json)


@_verb("export", "galscan export run/ --min-purity 0.5 --known kaviraj2012.csv --out candidates.fits")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a scan.")],
    out: Annotated[
        Path, typer.Option("--out", help="What to write: .fits .vot .parquet .csv .reg .pdf .moc.fits .moc.json.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="fits, votable, parquet, csv, ds9, pdf, moc; zooniverse and hats, which are folders. Default: by the "
            "name of --out.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only the best K.")] = None,
    min_purity: Annotated[
        float | None, typer.Option("--min-purity", min=0, max=1, help="Only down to this purity.")
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option("--known", help="Table of known objects (name, ra, dec in degrees): what is new; repeatable."),
    ] = None,
    crossmatch: Annotated[
        str | None, typer.Option("--crossmatch", help="simbad,ned,vizier:TABLE: services to ask; sends them positions.")
    ] = None,
    radius: Annotated[
        float | None, typer.Option("--radius", help="Arcseconds within which it is the same object; default: 3.")
    ] = None,
    contact: Annotated[
        str | None, typer.Option("--contact", help="Your address, told to services; default: $GALSCAN_CONTACT.")
    ] = None,
    order: Annotated[
        int | None, typer.Option("--order", help="HEALPix order of a MOC; default: by the width of the stamps.")
    ] = None,
    morphology: Annotated[
        bool, typer.Option("--morphology", help="A table of the whole survey: what each galaxy looks like.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the candidates of a scan as a catalog, or the sky that was scanned as a MOC."""
    done = galscan.export(
        run, out, format=format, top=top, min_purity=min_purity, known=known or (), crossmatch=crossmatch or (),
        radius=radius, contact=contact, order=order, morphology=morphology,
    )  # fmt: skip
    show(done, as_json)


@_verb("vet", "galscan vet run/ --size 200")
def vet(
    run: Annotated[Path, typer.Argument(help="Folder of a scan.")],
    best: Annotated[
        int | None,
        typer.Option("--best", min=1, help="Grade so many of the best one and all; default: half of --size."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Objects to grade in all.")] = 200,
    width: Annotated[
        float | None, typer.Option("--width", help="Instead: as many as an interval of purity so wide needs, e.g. 0.1.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of that purity; default: 1000.")] = None,
    seed: Seed = 0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    design: Annotated[bool, typer.Option("--design", help="Only draw the sample, and say what is in it.")] = False,
    import_csv: Annotated[Path | None, typer.Option("--import", help="Take in grades from a CSV table.")] = None,
    export_csv: Annotated[Path | None, typer.Option("--export", help="Write all grades to a CSV table.")] = None,
    as_json: Json = False,
) -> None:
    """Grade a sample of a scan, on a page in the browser."""
    told = galscan.vet(
        run, best=best, size=size, width=width, rank=rank, seed=seed, port=port, browser=browser, serve=not design,
        import_csv=import_csv, export_csv=export_csv,
    )  # fmt: skip
    show(told, as_json)


@_verb("purity", "galscan purity run/")
def purity(
    run: Annotated[Path, typer.Argument(help="Folder of a scan that was graded.")],
    target: Annotated[
        list[str] | None, typer.Option("--target-grade", help="Grade that counts as a target; default: A and B.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option("--confidence", min=0, max=1, help="Of the intervals; default: as the scan's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate purity and completeness again, with the grades."""
    show(galscan.purity(run, target=target or None, confidence=confidence), as_json)


target = typer.Typer()
app.add_typer(
    target, name="target", help="Say what to look for: write a target, prove it on labels, list those there are.",
    epilog="Example: galscan target new arcs && galscan target check arcs.toml --store gz2.zarr",
)  # fmt: skip


@target.command("new", epilog="Example: galscan target new arcs --schema gz2 --answer t08_odd_feature_a20_lens_or_arc")
def target_new(
    name: Annotated[str, typer.Argument(help="Name of the target.")],
    schema: Annotated[
        list[str] | None, typer.Option("--schema", help="Labels to have rules for, e.g. gz2, efigi; repeatable.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option("--answer", help="Answer that the target is about; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The recipe to write; default: NAME.toml here.")] = None,
    as_json: Json = False,
) -> None:
    """Write a recipe to start from, with every key explained."""
    show(galscan.new_target(name, schema=schema or ["gz2"], answer=answer or (), out=out), as_json)


@target.command("check", epilog="Example: galscan target check arcs.toml --store gz2.zarr --sheet arcs.png")
def target_check(
    target: Annotated[str, typer.Argument(help="A recipe.toml, or a target by name.")],
    survey: Surveys = None,
    store: Stores = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) of what the rules call what.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Prove a recipe on labelled galaxies, before training."""
    told = show(galscan.check_target(target, survey=survey or (), store=store or (), sheet=sheet, seed=seed), as_json)
    raise typer.Exit(2 if told["error"] else 0)


@target.command("list", epilog="Example: galscan target list")
def target_list(as_json: Json = False) -> None:
    """List the targets that come with galscan."""
    show(galscan.list_targets(), as_json)


@_verb("info", "galscan info ngc.zarr --sheet ngc.png")
def info(
    path: Annotated[Path, typer.Argument(help="A store, a model or a run.")],
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) as well.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a store, a model or a run holds."""
    show(galscan.info(path, sheet=sheet), as_json)


@_verb("doctor", "galscan doctor")
def doctor(as_json: Json = False) -> None:
    """Check this installation, and say what would mend it."""
    result = galscan.doctor()
    show(result, as_json)
    raise typer.Exit(0 if result["ok"] else 1)


# --- what comes out --------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. Errors become one line on stderr."""
    as_json = "--json" in arguments
    debug = "--traceback" in arguments or os.environ.get("GALSCAN_TRACEBACK", "") not in ("", "0")

    def fail(message: str, code: int) -> int:
        message = " ".join(message.split())
        print(f"error: {message}", file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({"error": message, "exit_code": code}), flush=True)
        return code

    interrupted = "interrupted; run the same command again, it goes on where it stopped"
    try:
        try:
            given = [a for a in arguments if a != "--traceback"] or ["--help"]
            code = app(given, prog_name="galscan", standalone_mode=False)
            sys.stdout.flush()
            return fail(interrupted, 130) if code == 130 else int(code or 0)
        except (KeyboardInterrupt, typer.Abort):
            return fail(interrupted, 130)
        except BrokenPipeError:
            raise
        except GalscanError as error:
            if debug:
                traceback.print_exc()
            return fail(str(error), error.exit_code)
        except PermissionError as error:  # of reading; writing has its own words
            if debug:
                traceback.print_exc()
            return fail(f"no permission to read {error.filename or error}; change its mode or name another place", 2)
        except Exception as error:
            if message := getattr(error, "format_message", None):  # a wrong option; typer moved this class about
                context = getattr(error, "ctx", None)
                where = context.command_path if context else "galscan"
                return fail(f"{message().rstrip('.')} (see: {where} --help)", 2)
            if debug:
                traceback.print_exc()
            return fail(
                f"unexpected {type(error).__name__}: {error} (for the developers: run it again with --traceback)", 1
            )
    except BrokenPipeError:  # the reader of a pipe left, as `head` does: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def main() -> NoReturn:
    """Entry point of the command ``galscan``."""
    sys.exit(run(sys.argv[1:]))
