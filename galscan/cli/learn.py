"""Commands for recipes, training, synthetic galaxies and their evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import galscan
from galscan.cli.options import Device, DryRun, Json, Seed, Stores, Surveys, names, number, pairs
from galscan.cli.output import show


def train_rare(
    target: Annotated[
        str,
        typer.Option("--target", help="A target (galscan target list) or a recipe.toml; several: ring,merger."),
    ],
    survey: Surveys = None,
    store: Stores = None,
    grades: Annotated[
        list[Path] | None,
        typer.Option("--grades", help="Graded scan; its graded objects are added to the training set; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The model's folder; default: in the data home.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, help="Maximum minutes of training.")] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic/--no-synthetic", help="Train on synthetic galaxies as well.")
    ] = True,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a classifier for a rare class. It is trained on real and synthetic galaxies."""
    model = galscan.train_rare(
        names(target) or "", survey=survey or (), store=store or (), grades=grades or (), out=out, budget=budget,
        synthetic=synthetic, device=device, seed=seed, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(model, as_json)


def train_generator(
    out: Annotated[Path, typer.Option("--out", help="Weights to write, .safetensors; Stable Diffusion: a folder.")],
    kind: Annotated[
        str, typer.Option("--kind", help="flow, stable-diffusion, or maps (of a feature, trained on its prior).")
    ] = "flow",
    feature: Annotated[str | None, typer.Option("--feature", help="Feature of the maps; default: dust_lane.")] = None,
    survey: Surveys = None,
    store: Stores = None,
    schema: Annotated[str | None, typer.Option("--schema", help="Labels used as conditions, e.g. efigi.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=16, max=512, help="Image size in pixels (simulated); default: 64.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", min=16, help="Galaxies to simulate without --store (40,000), or maps (24,000)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps; default: 4,500, maps 4,000, Stable Diffusion 10,000."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Galaxies or maps per step; default: 16, maps 32.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", min=0, help="Stable Diffusion: train only LoRA adapters of this rank.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=16, help="Stable Diffusion: image size in pixels; default: 424.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Weights to start from: none, base, or a file; Stable Diffusion: a folder, or a "
            "name on the Hugging Face hub.",
        ),
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, help="Maximum minutes of training.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train only a generator: the base weights, or your own. Run the same command to resume."""
    result = galscan.train_generator(
        out, kind=kind, feature=feature, survey=survey or (), store=store or (), schema=schema, size=size, count=count,
        steps=steps, batch=batch, lora=lora, resolution=resolution, start=start, budget=budget, seed=seed,
        device=device, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


def generate(
    target: Annotated[str, typer.Option("--target", help="Target by name, or a recipe.toml.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Number of synthetic galaxies.")],
    out: Annotated[Path, typer.Option("--out", help="A folder of PNG images, or a store if it ends in .zarr.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="Trained model: its generator, and its predictions of hosts.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option("--generator", help="Other weights (with --store): a file, a folder, base; of maps also prior."),
    ] = None,
    store: Stores = None,
    base: Annotated[
        str | None, typer.Option("--from", help="Rule that the real galaxies (hosts or conditions) must satisfy.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="ANSWER=LOW:HIGH, range of a condition (whole images); repeatable."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", help="ANSWER=W, guidance weight of an answer (whole images); repeatable."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="Guidance scale (whole images); 1 = none.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps (whole images).")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make synthetic galaxies of a rare class. Injects a feature into real galaxies, or samples whole images."""
    ranges = {}
    for answer, text in (pairs("--set", values) or {}).items():
        low, _, high = text.partition(":")
        ranges[answer] = (number("--set", low), number("--set", high or low))
    guidance_weights = {a: number("--weight", w) for a, w in (pairs("--weight", weights) or {}).items()}
    result = galscan.generate(
        target, count=count, out=out, model=model, generator=generator, store=store or (), base=base, values=ranges,
        weights=guidance_weights, guidance=guidance, steps=steps, seed=seed, device=device, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


def evaluate(
    synthetic: Annotated[Path, typer.Argument(help="A store of synthetic galaxies, or a model folder.")],
    target: Annotated[str, typer.Option("--target", help="Their target by name, or a recipe.toml.")],
    survey: Surveys = None,
    store: Stores = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output folder; default: NAME-evaluation beside the store.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Use the test set of this model; default: the model they were made for."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps of the reference classifier; default: the recipe's."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing evaluation.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare synthetic with real galaxies. Held-out real ones, by a classifier trained on real galaxies only."""
    result = galscan.evaluate(
        synthetic, target=target, survey=survey or (), store=store or (), out=out, model=model, steps=steps, seed=seed,
        device=device, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


def ablate(
    target: Annotated[str, typer.Option("--target", help="Target by name, or a recipe.toml.")],
    survey: Surveys = None,
    store: Stores = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder; default: in the data home.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of random splits.")] = 3,
    folds: Annotated[int, typer.Option("--folds", min=1, help="1: random hold-out; more: cross-validation.")] = 1,
    positives: Annotated[int | None, typer.Option("--positives", help="Training positives; default: half.")] = None,
    negatives: Annotated[
        int | None, typer.Option("--negatives", help="Training negatives; default: in proportion.")
    ] = None,
    reserved: Annotated[
        int, typer.Option("--reserved", min=0, help="Positives kept out of the test set, even if fewer train.")
    ] = 0,
    max_test: Annotated[int | None, typer.Option("--max-test", help="Maximum number of test negatives.")] = None,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", help="Fraction of targets in the survey; default: as labelled.")
    ] = None,
    purity: Annotated[float, typer.Option("--purity", help="Purity at which completeness is reported.")] = 0.8,
    completeness: Annotated[
        float, typer.Option("--completeness", help="Completeness at which purity is reported.")
    ] = 0.5,
    arms: Annotated[list[str] | None, typer.Option("--arms", help="Only this arm; repeatable.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="The arm whose gain is reported.")] = None,
    survey_size: Annotated[int, typer.Option("--survey-size", min=1, help="Objects in that survey.")] = 100_000,
    members: Annotated[int, typer.Option("--members", min=1, help="Networks per arm and repeat.")] = 1,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Repeats run in parallel, one core each; 0: all cores.")
    ] = 0,
    device: Device = "auto",
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure the gain by synthetic galaxies. On held-out real galaxies. Run the same command to resume."""
    result = galscan.ablate(
        target, store=store or (), survey=survey or (), out=out, seeds=seeds, folds=folds, positives=positives,
        negatives=negatives, reserved=reserved, max_test=max_test, prevalence=prevalence, purity=purity,
        completeness=completeness, arms=arms or (), method=method, survey_size=survey_size, members=members,
        workers=workers, device=device, seed=seed, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip
    show(result, as_json)


def target_new(
    name: Annotated[str, typer.Argument(help="Name of the target.")],
    schema: Annotated[
        list[str] | None, typer.Option("--schema", help="Label schema of the rules, e.g. gz2, efigi; repeatable.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option("--answer", help="Answer that defines the target; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Recipe to write; default: NAME.toml.")] = None,
    as_json: Json = False,
) -> None:
    """Write a template of a recipe, with every key explained."""
    show(galscan.new_target(name, schema=schema or ["gz2"], answer=answer or (), out=out), as_json)


def target_check(
    target: Annotated[str, typer.Argument(help="A recipe.toml, or a target by name.")],
    survey: Surveys = None,
    store: Stores = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Write a contact sheet (PNG) of positives, negatives and ambiguous galaxies."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Check a recipe on labelled galaxies, before training."""
    summary = show(
        galscan.check_target(target, survey=survey or (), store=store or (), sheet=sheet, seed=seed), as_json
    )
    raise typer.Exit(2 if summary["error"] else 0)


def target_list(as_json: Json = False) -> None:
    """List the shipped targets."""
    show(galscan.list_targets(), as_json)
