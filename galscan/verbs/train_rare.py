"""``galscan train-rare``: from labelled galaxies to a calibrated classifier of a rare class.

Every stage leaves its result in ``MODEL.partial`` and is skipped when it is there, so the same command
goes on where it stopped; the folder is renamed to ``MODEL`` when all is done.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan.classify.plan import Plan, claim, make_plan
from galscan.errors import Interrupted
from galscan.files import digest, read_json, storage_errors, write_json
from galscan.store import layout

if TYPE_CHECKING:
    import torch

    from galscan.classify.bundle import Bundle
    from galscan.classify.dataset import Galaxies
    from galscan.classify.train import Examples

# Shares of --budget: drawing a lane is the hardest thing to learn.
GENERATOR_SHARE, DREAM_SHARE, CLASSIFIER_SHARE = 0.55, 0.12, 0.33
LEFTOVERS = ("steps.json", "generator.json", "request.json")  # what only a resumed training needs


def train_rare(
    target: str,
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    budget: float | None = None,
    synthetic: bool = True,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Bundle | None:
    """Train a generator and a classifier for `target`, and calibrate and judge it on real held-out galaxies.

    Parameters
    ----------
    target : str
        A shipped recipe's name, or the path of a recipe (``.toml``).
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path; by default all surveys of the data home.
    out : path, optional
        The model's folder; default ``models/TARGET`` in the data home.
    budget : float, optional
        Minutes that training may take; steps are cut to fit. Without it the recipe's steps are done.
    synthetic : bool
        False trains on real galaxies only.
    device : {"auto", "cpu", "cuda"}
    seed : int
        Of the split, the networks and the dreams.
    overwrite : bool
        Replace another model in `out`.
    dry_run : bool
        Print the plan, train nothing and return None.

    Returns
    -------
    Bundle
        The model, as `galscan.open_bundle` gives it.

    Raises
    ------
    InputError
        If recipe, labels, stores and options do not fit together, or there are too few examples.
    ConflictError
        If `out` holds another model.
    Interrupted
        On Ctrl-C; the same call goes on where it stopped.
    """
    plan = make_plan(target, survey, store, out, budget, synthetic, seed)
    print(plan.describe(), file=sys.stderr)
    if dry_run:
        return None
    from galscan import device as devices
    from galscan.classify.bundle import open_bundle

    where = devices.pick(device)
    if (done := claim(plan, overwrite)) is not None:
        return done
    work = plan.work
    try:
        bundle = _train(plan, work, where)
        _write_report(bundle.path)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; run the same command again to go on ({work})") from None
    if plan.out.exists():
        shutil.rmtree(plan.out)
    os.replace(work, plan.out)
    # Only now: without these an interruption up to here could not be resumed.
    for leftover in (*plan.out.glob("real_*.safetensors"), *(plan.out / name for name in LEFTOVERS)):
        leftover.unlink(missing_ok=True)
    return open_bundle(plan.out)


def _train(plan: Plan, work: Path, device: torch.device) -> Bundle:
    """Run the stages; the order is the story."""
    from galscan.classify import bundle, calibrate, metrics
    from galscan.classify.dataset import load_galaxies

    recipe, started = plan.recipe, time.monotonic()
    galaxies = load_galaxies(
        plan.stores, plan.table, plan.schema.names, recipe.size, seed=plan.seed, unlabelled=plan.synthetic
    )
    generated: dict[str, Any] = {}
    dreamt = None
    if plan.synthetic:
        generated = _generator(plan, galaxies, work, device)
        dreamt = _dreams(plan, galaxies, work, device)
    train = np.flatnonzero(_in_train(galaxies))
    real = _examples(
        plan, galaxies.images[train], galaxies.table["target"].to_numpy()[train], galaxies.labels.iloc[train]
    )
    variants = {"real_only": None} | ({"real_plus_dreamt": dreamt} if dreamt is not None else {})
    networks = _classifiers(plan, real, variants, work, device)

    held = {split: galaxies.rows(split) for split in ("calibration", "test")}
    targets = {split: galaxies.table["target"].to_numpy()[rows].astype(int) for split, rows in held.items()}
    scores = {
        (name, split): bundle.member_scores(networks[name], galaxies.images[rows], device)
        for name in networks for split, rows in held.items()
    }  # fmt: skip
    # Which of the two is delivered is chosen on the calibration set; the test set only reports.
    on_calibration = {
        name: metrics.average_precision(scores[name, "calibration"].mean(0), targets["calibration"])
        for name in networks
    }
    chosen = max(networks, key=lambda name: on_calibration[name])
    report: dict[str, Any] = {"real_only": None, "real_plus_dreamt": None, "gain": None, "chosen": chosen}
    for name in networks:
        report[name] = metrics.summarise(scores[name, "test"], targets["test"], plan.seed)
    if dreamt is not None:
        report["gain"] = metrics.gain(
            scores["real_plus_dreamt", "test"], scores["real_only", "test"], targets["test"], plan.seed
        )
    n_positive, n = int(targets["test"].sum()), len(targets["test"])
    report |= {
        "test": {"positives": n_positive, "negatives": n - n_positive, "prevalence": n_positive / n},
        "calibration_ap": on_calibration,
        "classifier_steps": read_json(work / "steps.json")["steps"],
        "generator": generated or None,
        "dreams": None if dreamt is None else {"positive": int(dreamt.target.sum()), "all": len(dreamt.target)},
        "seconds": round(time.monotonic() - started, 1),
    }
    calibration = calibrate.fit(scores[chosen, "calibration"].mean(0), targets["calibration"])
    splits = galaxies.table.loc[
        _in_train(galaxies) | galaxies.table["split"].isin(list(held)), ["store", "id", "split", "target"]
    ].copy()
    splits.loc[splits["split"] == "", "split"] = "train"
    return bundle.write_bundle(
        work, recipe=recipe, target=recipe.name, schema=plan.schema.name, size=recipe.size, seed=plan.seed,
        answers=list(plan.rules.morphology), networks=networks[chosen], calibration=calibration, splits=splits,
        metrics=report, extra={"request": plan.request, "request_hash": digest(plan.request)},
    )  # fmt: skip


def _in_train(galaxies: Galaxies) -> np.ndarray:
    """Return which rows may teach a classifier: the training split, and labelled ambiguous ones (morphology only)."""
    held_out = set(galaxies.table.loc[galaxies.table["split"].isin(("calibration", "test")), "id"])
    labelled = galaxies.labels.notna().any(axis=1)
    return ((galaxies.table["split"] == "train") | (labelled & ~galaxies.table["id"].isin(held_out))).to_numpy()


def _examples(plan: Plan, images: np.ndarray, target: np.ndarray, labels: pd.DataFrame) -> Examples:
    from galscan.classify.train import Examples

    answers = list(plan.rules.morphology)
    columns = [plan.schema.names.index(a) for a in answers]
    low, high = plan.schema.low[columns], plan.schema.high[columns]
    scaled = (labels[answers].to_numpy(np.float32) - low) / (high - low)
    return Examples(images, np.asarray(target, np.float32), np.clip(scaled, 0, 1).astype(np.float32))


def _generator(plan: Plan, galaxies: Galaxies, work: Path, device: torch.device) -> dict[str, Any]:
    from galscan.generate.galaxies import pixel_statistics
    from galscan.generate.model import GeneratorConfig
    from galscan.generate.train import train_generator

    note = work / "generator.json"
    if note.is_file():
        return dict(read_json(note))
    teaching = galaxies.generator_set(plan.recipe.generator)
    mean, std = pixel_statistics(teaching.images)
    config = GeneratorConfig(
        size=plan.recipe.size, schema=plan.schema.name, answers=tuple(plan.schema.names),
        low=tuple(map(float, plan.schema.low)), high=tuple(map(float, plan.schema.high)),
        surveys=tuple(s.name for s in plan.stores), widths=plan.recipe.generator.widths, mean=mean, std=std,
    )  # fmt: skip
    outcome = train_generator(
        teaching, config, plan.recipe.generator, work / "generator.safetensors", seed=plan.seed, device=device,
        seconds=plan.seconds(GENERATOR_SHARE),
    )  # fmt: skip
    outcome = outcome | {"galaxies": len(teaching.images)}
    write_json(note, outcome)
    return outcome


def _dreams(plan: Plan, galaxies: Galaxies, work: Path, device: torch.device) -> Examples:
    """Dream positives and, in the same way, negatives: else "dreamt" itself would tell the class."""
    from galscan.generate.model import load_generator
    from galscan.generate.sample import draw_conditions, dream

    settings, rules = plan.recipe.dream, plan.rules
    if not (work / "dreams.zarr").is_dir():
        generator = load_generator(work / "generator.safetensors")
        random = np.random.default_rng(plan.seed)
        train = np.flatnonzero(_in_train(galaxies))
        negative = galaxies.rows("train")[galaxies.table["target"].to_numpy()[galaxies.rows("train")] == 0]
        images: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for rows, count, rule, guidance, weights in (
            (train, settings.positives, rules.dream, settings.guidance, rules.dream.weights),
            (negative, settings.negatives, None, 1.0, {}),
        ):
            conditions, drawn = draw_conditions(galaxies.labels.iloc[rows], count, random, rule)
            survey = galaxies.table["survey"].to_numpy()[rows[drawn]]
            images.append(
                dream(
                    generator, conditions, survey, guidance=guidance, weights=weights, steps=settings.steps,
                    seed=plan.seed + len(images), device=device, seconds=plan.seconds(DREAM_SHARE / 2),
                    label=f"dream {'negatives' if rule is None else 'positives'}",
                )
            )  # fmt: skip
            values.append(conditions[: len(images[-1])])
        target = np.repeat([1.0, 0.0], [len(images[0]), len(images[1])])
        _write_dreams(plan, work, np.concatenate(images), np.concatenate(values), target)
    store = layout.open_store(work / "dreams.zarr")
    return _examples(plan, store.images(), store.column("truth/target"), store.labels(plan.schema.name))


def _write_dreams(plan: Plan, work: Path, images: np.ndarray, values: np.ndarray, target: np.ndarray) -> None:
    """Keep the dreams with their conditions as a store of their own, and draw the sheet."""
    from galscan import pictures

    partial, final = work / "dreams.zarr.partial", work / "dreams.zarr"
    group = layout.create(
        partial, survey=f"dreams-{plan.recipe.name}", count=len(images), size=plan.recipe.size,
        id_dtype=np.dtype("int64"), schemas={plan.schema.name: plan.schema.names}, truth=["target"],
        provenance={"dreamt": True, "seed": plan.seed, "recipe": plan.recipe.hash},
    )  # fmt: skip
    arrays = {"images": images, "id": np.arange(len(images)), "truth/target": target.astype(np.float32)}
    arrays |= {f"labels/{plan.schema.name}/{answer}": values[:, k] for k, answer in enumerate(plan.schema.names)}
    with storage_errors(partial):
        for name, column in arrays.items():
            group[name][:] = column  # type: ignore[index]
    layout.finish(partial, digest([plan.request, "dreams"]))
    os.replace(partial, final)

    shown = list(plan.rules.morphology)[:2]
    columns = [plan.schema.names.index(a) for a in shown]
    rows = np.concatenate([np.flatnonzero(target == 1)[:32], np.flatnonzero(target == 0)[:16]])
    pictures.contact_sheet(
        images[rows], work / "dreams.png",
        captions=["\n".join(f"{a} {values[i, c]:.2f}" for a, c in zip(shown, columns, strict=True)) for i in rows],
        title=f"dreamt {plan.recipe.name} (first rows) and negatives (last rows), with their conditions",
    )  # fmt: skip


def _classifiers(
    plan: Plan, real: Examples, variants: dict[str, Examples | None], work: Path, device: torch.device
) -> dict[str, list[Any]]:
    """Train an ensemble a variant, all for the same number of steps; each finished network is kept on disk."""
    from galscan.classify.bundle import load_network, save_network
    from galscan.classify.train import affordable_steps, train_classifier

    settings = plan.recipe.classifier
    if not (work / "steps.json").is_file():
        # Two variants share the budget also when only one is trained, so that --no-synthetic compares.
        each = plan.seconds(CLASSIFIER_SHARE / (2 * settings.members))
        write_json(work / "steps.json", {"steps": affordable_steps(real, settings, device=device, seconds=each)})
    steps = read_json(work / "steps.json")["steps"]
    networks: dict[str, list[Any]] = {name: [] for name in variants}
    for member in range(settings.members):
        for name, dreamt in variants.items():
            path = work / f"{name}-{member}.safetensors"
            if not path.is_file():
                network = train_classifier(
                    real, dreamt, settings, steps=steps, seed=plan.seed * 1000 + member, device=device,
                    label=f"{name.replace('_', ' ')}, seed {member}",
                )  # fmt: skip
                save_network(network, path)
            networks[name].append(load_network(path))
    return networks


def _write_report(path: Path) -> None:
    from galscan import report

    report.write_model_report(path)
