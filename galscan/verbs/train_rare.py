"""``galscan train-rare``: from labelled galaxies to a calibrated classifier of a rare class.

Every stage leaves its result in ``MODEL.partial`` and is skipped when it is there, so the same command
goes on where it stopped; the folder is renamed to ``MODEL`` when all is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.classify.plan import Plan, make_plan
from galscan.files import digest, read_json, write_json
from galscan.progress import track
from galscan.unfinished import deliver, finished, work_on

if TYPE_CHECKING:
    import torch

    from galscan.classify.bundle import Bundle
    from galscan.classify.dataset import Galaxies
    from galscan.classify.model import GalaxyNet
    from galscan.classify.train import Examples
    from galscan.classify.vetted import Vetted
    from galscan.generate.dreams import Dreams

# Shares of --budget: it is in the classifier that time pays most (tests/benchmarks/dream.py). The first look is a
# twentieth on top, where there is one.
GENERATOR_SHARE, DREAM_SHARE, CLASSIFIER_SHARE, FIRST_LOOK_SHARE = 0.25, 0.1, 0.65, 0.05
LEAST = 2_000  # pictures, below which a first look has nothing to learn from
SOME = 2_048  # of them are scored between two signs of life
LEFTOVERS = ("steps.json", "generator.json", "screened.json", "request.json")  # what only a resumed training needs


def train_rare(
    target: str,
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    grades: str | Path | Sequence[str | Path] = (),
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
    grades : path or sequence of paths
        Finished scans for this target whose objects people graded (`galscan.vet`): they train, beside the labels, and
        never calibrate or test (`galscan.classify.vetted`).
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
    plan = make_plan(target, survey, store, out, budget, synthetic, seed, _graded(grades))
    print(plan.describe(), file=sys.stderr)
    if dry_run:
        return None
    from galscan import device as devices
    from galscan.classify.bundle import open_bundle
    from galscan.report_model import write_model_report

    where = devices.pick(device)
    if plan.synthetic and plan.recipe.dream.positives:
        _check_start(plan)
    if finished(plan.out, "model.json", plan.request, "model", overwrite=overwrite) is not None:
        return open_bundle(plan.out)
    with work_on(plan.out, plan.request, "training", overwrite=overwrite) as work:
        bundle = _train(plan, work, where)
        write_model_report(bundle.path)
        deliver(work, plan.out)
    # Only now: without these an interruption up to here could not be resumed.
    for leftover in (*plan.out.glob("real_*.safetensors"), *(plan.out / name for name in LEFTOVERS)):
        leftover.unlink(missing_ok=True)
    return open_bundle(plan.out)


def _graded(runs: str | Path | Sequence[str | Path]) -> list[Vetted]:
    if not runs:
        return []
    from galscan.vetting.labels import read_all

    return read_all(runs)


def _train(plan: Plan, work: Path, device: torch.device) -> Bundle:
    """Run the stages; the order is the story."""
    from galscan.classify import bundle, calibrate, metrics
    from galscan.classify.dataset import load_galaxies
    from galscan.classify.train import Examples

    recipe, started = plan.recipe, time.monotonic()
    galaxies = load_galaxies(
        plan.stores, plan.table, plan.schema.names, recipe.size, seed=plan.seed, unlabelled=plan.synthetic
    )
    train = np.flatnonzero(_in_train(galaxies))
    answers = plan.rules.morphology
    real = Examples.from_labels(
        galaxies.images[train], galaxies.table["target"].to_numpy()[train], galaxies.labels.iloc[train], answers,
        plan.schema,
    )  # fmt: skip
    networks = {"real_only": _classifiers(plan, "real_only", real, None, work, device)}
    generated: dict[str, Any] = {}
    if plan.synthetic:
        generated = _generator(plan, galaxies, work, device) if recipe.dream.positives else {}
        dreams = _dreams(plan, galaxies, work, networks["real_only"][0], device)
        if dreams is not None:
            dreamt = Examples.from_labels(dreams.images, dreams.target, dreams.labels, answers, plan.schema)
            networks["real_plus_dreamt"] = _classifiers(plan, "real_plus_dreamt", real, dreamt, work, device)

    held = {split: galaxies.rows(split) for split in ("calibration", "test")}
    targets = {split: galaxies.table["target"].to_numpy()[rows].astype(int) for split, rows in held.items()}
    scores = {
        (name, split): bundle.member_scores(networks[name], galaxies.images[rows], device)
        for name in networks for split, rows in held.items()
    }  # fmt: skip
    # Dreams are delivered where they certainly help on the calibration set: with few targets in it the higher of two
    # figures is a lottery. The test set only reports.
    on_calibration = None
    if "real_plus_dreamt" in networks:
        on_calibration = metrics.gain(
            scores["real_plus_dreamt", "calibration"], scores["real_only", "calibration"], targets["calibration"],
            plan.seed,
        )  # fmt: skip
    chosen = "real_plus_dreamt" if on_calibration and on_calibration["lo"] > 0 else "real_only"
    report: dict[str, Any] = {"real_only": None, "real_plus_dreamt": None, "gain": None, "chosen": chosen}
    for name in networks:
        report[name] = metrics.summarise(scores[name, "test"], targets["test"], plan.seed)
    if "real_plus_dreamt" in networks:
        report["gain"] = metrics.gain(
            scores["real_plus_dreamt", "test"], scores["real_only", "test"], targets["test"], plan.seed
        )
    n_positive, n = int(targets["test"].sum()), len(targets["test"])
    report |= {
        "test": {"positives": n_positive, "negatives": n - n_positive, "prevalence": n_positive / n},
        "calibration_gain": on_calibration,
        "classifier_steps": read_json(work / "steps.json")["steps"],
        "generator": generated or None,
        "dreams": read_json(work / "screened.json") if plan.synthetic else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    _first_look(plan, networks[chosen], work, device)
    calibration = calibrate.fit(scores[chosen, "calibration"].mean(0), targets["calibration"])
    splits = galaxies.table.loc[
        _in_train(galaxies) | galaxies.table["split"].isin(list(held)), ["store", "id", "split", "target"]
    ].copy()
    splits.loc[splits["split"] == "", "split"] = "train"
    return bundle.write_bundle(
        work, recipe=recipe, target=recipe.name, schema=plan.schema.name, size=recipe.size, seed=plan.seed,
        answers=list(answers), networks=networks[chosen], calibration=calibration, splits=splits,
        metrics=report, extra={
            "request": plan.request, "request_hash": digest(plan.request),
            **({"grades": plan.provenance} if plan.vetted else {}),
        },
    )  # fmt: skip


def _in_train(galaxies: Galaxies) -> np.ndarray:
    """Return which rows may teach a classifier: the training split, and labelled ambiguous ones (morphology only)."""
    held_out = set(galaxies.table.loc[galaxies.table["split"].isin(("calibration", "test")), "id"])
    labelled = galaxies.labels.notna().any(axis=1)
    return ((galaxies.table["split"] == "train") | (labelled & ~galaxies.table["id"].isin(held_out))).to_numpy()


def _check_start(plan: Plan) -> None:
    """Refuse weights that the recipe's generator cannot start from, before anything long begins."""
    from galscan.generate import kinds

    kinds.check_start(plan.recipe.generator)


def _generator(plan: Plan, galaxies: Galaxies, work: Path, device: torch.device) -> dict[str, Any]:
    from galscan.generate import kinds

    note, settings = work / "generator.json", plan.recipe.generator
    if note.is_file():
        return dict(read_json(note))
    teaching = galaxies.generator_set(settings)
    outcome = kinds.teach(
        teaching, plan.schema, [s.name for s in plan.stores], settings, work, seed=plan.seed, device=device,
        seconds=plan.seconds(GENERATOR_SHARE),
    )  # fmt: skip
    told = {**outcome, "galaxies": len(teaching.images), "kind": settings.kind, "start": settings.start}
    write_json(note, told)
    return told


def _dreams(plan: Plan, galaxies: Galaxies, work: Path, critic: GalaxyNet, device: torch.device) -> Dreams | None:
    """Lay and draw, and drop what a network trained on real galaxies alone finds failed; None if no target is left."""
    from galscan.generate import kinds
    from galscan.generate.dreams import (
        CONDITIONS,
        Dreams,
        dream_set,
        lay_set,
        read_dreams,
        sheet,
        write_conditions,
        write_dreams,
    )
    from galscan.generate.judge import Critic, screen

    schema, train = plan.schema, np.flatnonzero(_in_train(galaxies))
    if not (work / "screened.json").is_file():
        images, table = galaxies.images[train], galaxies.table.iloc[train]
        dreams = lay_set(images, galaxies.labels.iloc[train], plan.rules, plan.recipe.dream.laid, seed=plan.seed)
        if plan.recipe.dream.positives:
            conditions = galaxies.conditions(train)
            write_conditions(conditions, table["target"].to_numpy(), table["store"].to_numpy(), work / CONDITIONS)
            drawn = dream_set(
                kinds.load(work), conditions, table["target"].to_numpy(),
                table["survey"].to_numpy(), plan.rules, plan.recipe.dream, seed=plan.seed, device=device,
                seconds=plan.seconds(DREAM_SHARE),
            )  # fmt: skip
            dreams = Dreams.joined([dreams, drawn])
        counts: dict[str, Any] = {"positive": int(dreams.target.sum()), "laid": int(dreams.laid.sum())}
        counts["all"], dropped = len(dreams), {}
        if len(dreams):
            judged = screen(dreams, images, Critic(critic, plan.rules.morphology, schema, device), plan.rules, schema)
            dropped = {str(k): int(n) for k, n in judged.loc[~judged["kept"], "reason"].value_counts().items()}
            dreams = dreams.select(judged["kept"].to_numpy())
        counts["dropped"] = dropped
        if dreams.target.any():
            title = f"dreamt {plan.recipe.name} (lanes laid, then drawn) and negatives (last), with their conditions"
            sheet(dreams, work / "dreams.png", [*plan.rules.dream.set][:2], title)
            provenance = {"seed": plan.seed, "recipe": plan.recipe.hash}
            write_dreams(dreams, work / "dreams.zarr", f"dreams-{plan.recipe.name}", schema, provenance)
        write_json(work / "screened.json", counts | {"kept": len(dreams), "kept_positive": int(dreams.target.sum())})
    return read_dreams(work / "dreams.zarr", schema.name) if (work / "dreams.zarr").is_dir() else None


def _classifiers(
    plan: Plan, name: str, real: Examples, dreamt: Examples | None, work: Path, device: torch.device
) -> list[GalaxyNet]:
    """Train an ensemble; each finished network is kept on disk, and every variant does as many steps."""
    from galscan.classify.bundle import load_network, save_network
    from galscan.classify.train import affordable_steps, train_classifier

    settings = plan.recipe.classifier
    if not (work / "steps.json").is_file():
        # Two variants share the budget also when only one is trained, so that --no-synthetic compares.
        each = plan.seconds(CLASSIFIER_SHARE / (2 * settings.members))
        write_json(work / "steps.json", {"steps": affordable_steps(real, settings, device=device, seconds=each)})
    steps = read_json(work / "steps.json")["steps"]
    networks = []
    for member in range(settings.members):
        path = work / f"{name}-{member}.safetensors"
        if not path.is_file():
            network = train_classifier(
                real, dreamt, settings, steps=steps, seed=plan.seed * 1000 + member, device=device,
                label=f"{name.replace('_', ' ')}, seed {member}",
            )  # fmt: skip
            save_network(network, path)
        networks.append(load_network(path))
    return networks


def _first_look(plan: Plan, networks: list[GalaxyNet], work: Path, device: torch.device) -> None:
    """Teach a tiny network what the delivered ones say; too few pictures, and there is none.

    Calibration and test objects may be among them: not their labels are learnt, nor is it of them that anything is
    reported.
    """
    from galscan.classify.bundle import FIRST_LOOK, member_scores
    from galscan.classify.cascade import FirstLook, save_first_look, teach, teaching_sample

    settings, path = plan.recipe.first_look, work / FIRST_LOOK
    if path.is_file() or not settings.steps:
        return
    images = teaching_sample(plan.stores, settings.sample, plan.seed)
    if len(images) < LEAST:
        return
    scores = np.empty(len(images), np.float32)
    with track("first look: pictures", len(images), "galaxies") as advance:
        for start in range(0, len(images), SOME):
            some = slice(start, start + SOME)
            scores[some] = member_scores(networks, images[some], device).mean(0)
            advance(len(images[some]))
    network = teach(
        images, scores, steps=settings.steps, seed=plan.seed, device=device, seconds=plan.seconds(FIRST_LOOK_SHARE)
    )
    save_first_look(FirstLook(network), path)
