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

from galscan.classify.plan import Plan, make_plans
from galscan.files import digest, read_json, write_json
from galscan.progress import track
from galscan.unfinished import deliver, finished, work_on

if TYPE_CHECKING:
    import torch

    from galscan.classify.bundle import Bundle
    from galscan.classify.dataset import Galaxies
    from galscan.classify.model import Network
    from galscan.classify.train import Examples
    from galscan.classify.vetted import Vetted
    from galscan.generate.dreams import Dreams

# Shares of --budget: it is in the classifier that time pays most (tests/benchmarks/dream.py). The first look is a
# twentieth on top, where there is one.
GENERATOR_SHARE, DREAM_SHARE, CLASSIFIER_SHARE, FIRST_LOOK_SHARE = 0.25, 0.1, 0.65, 0.05
LEAST = 2_000  # pictures, below which a first look has nothing to learn from
SOME = 2_048  # of them are scored between two signs of life
# What only a resumed training needs.
LEFTOVERS = ("real_*.safetensors", "steps.json", "generator.json", "screened.json", "request.json")


def train_rare(
    target: str | Sequence[str],
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
) -> Bundle | list[Bundle] | None:
    """Train a generator and a classifier for `target`, and calibrate and judge it on real held-out galaxies.

    Several targets are learnt by the same networks, one score each: a scan for all of them then costs hardly more than
    one for one. Each has a model folder of its own in `out`.

    Parameters
    ----------
    target : str or sequence of str
        A shipped recipe's name, or the path of a recipe (``.toml``); or several.
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
    Bundle, or list of Bundle
        The model, as `galscan.open_bundle` gives it; of several targets, one for each.

    Raises
    ------
    InputError
        If recipe, labels, stores and options do not fit together, or there are too few examples.
    ConflictError
        If `out` holds another model.
    Interrupted
        On Ctrl-C; the same call goes on where it stopped.
    """
    names = [target] if isinstance(target, str) else list(target)
    plans = make_plans(names, survey, store, out, budget, synthetic, seed, _graded(grades))
    print("\n\n".join(plan.describe() for plan in plans), file=sys.stderr)
    if dry_run:
        return None
    from galscan import device as devices
    from galscan.classify.bundle import TOGETHER, open_bundles
    from galscan.classify.weights import SHARED

    where, several = devices.pick(device), len(plans) > 1
    place, marker = (plans[0].out.parent, TOGETHER) if several else (plans[0].out, "model.json")
    request = {plan.recipe.name: plan.request for plan in plans} if several else plans[0].request
    if synthetic and any(plan.recipe.dream.positives for plan in plans):
        _check_start(plans[0])
    if finished(place, marker, request, "model", overwrite=overwrite) is None:
        with work_on(place, request, "training", overwrite=overwrite) as work:
            _train(plans, work, where)
            if several:
                write_json(work / TOGETHER, {"targets": [plan.recipe.name for plan in plans], "request": request})
            deliver(work, place)
        # Only now: without these an interruption up to here could not be resumed.
        leftovers = [path for pattern in LEFTOVERS for path in (*place.glob(pattern), *place.glob(f"*/{pattern}"))]
        leftovers += place.glob(SHARED) if several else []  # each target's model has its own
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
    bundles = open_bundles(place)
    return bundles if several else bundles[0]


def _graded(runs: str | Path | Sequence[str | Path]) -> list[Vetted]:
    if not runs:
        return []
    from galscan.vetting.labels import read_all

    return read_all(runs)


def _train(plans: list[Plan], work: Path, device: torch.device) -> None:
    """Run the stages; the order is the story."""
    from galscan.classify import bundle, calibrate, metrics, morphology, scoring
    from galscan.classify.dataset import load_galaxies, targets_of
    from galscan.classify.train import Examples
    from galscan.report_model import write_model_report

    first, started = plans[0], time.monotonic()
    recipe, schema = first.recipe, first.schema
    folders = [work / plan.recipe.name for plan in plans] if first.together else [work]
    galaxies = load_galaxies(
        first.stores, first.table, schema.names, recipe.size, seed=first.seed, unlabelled=first.synthetic
    )
    train = np.flatnonzero(_in_train(galaxies))
    answers = list(dict.fromkeys(answer for plan in plans for answer in plan.answers))
    targets = galaxies.table[[plan.column for plan in plans]].to_numpy(np.float32)
    labels = galaxies.counted(schema).iloc[train]
    real = Examples.from_labels(galaxies.images[train], targets[train], labels, answers, schema)
    networks = {"real_only": _classifiers(first, "real_only", real, None, work, device)}
    generated: dict[str, Any] = {}
    if first.synthetic:
        generated = _generator(first, galaxies, work, device) if any(p.recipe.dream.positives for p in plans) else {}
        dreamt = None
        for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
            critic = networks["real_only"][0].only(k)
            dreams = _dreams(plan, galaxies.of(plan.column), folder, work, critic, answers, device)
            if dreams is not None:
                # What was dreamt for one target may be another as well, or certainly not be it.
                others = (dreams.target if p is plan else targets_of(dreams.labels, schema, p.rules) for p in plans)
                kinds = np.stack(list(others), 1)
                some = Examples.from_labels(dreams.images, kinds, dreams.labels, answers, schema)
                dreamt = some if dreamt is None else dreamt.joined(some)
        if dreamt is not None:
            networks["real_plus_dreamt"] = _classifiers(first, "real_plus_dreamt", real, dreamt, work, device)

    held = {split: galaxies.rows(split) for split in ("calibration", "test")}
    outputs = {
        (name, split): scoring.member_outputs(networks[name], galaxies.images[rows], device)
        for name in networks for split, rows in held.items()
    }  # fmt: skip
    labels = galaxies.counted(schema).iloc[held["test"]]
    known = {name: morphology.judge(outputs[name, "test"][1], labels, answers, schema) for name in networks}

    def of(name: str, split: str, k: int) -> np.ndarray:
        return outputs[name, split][0][:, np.isfinite(targets[held[split], k]), k]

    def truth(split: str, k: int) -> np.ndarray:
        found = targets[held[split], k]
        return found[np.isfinite(found)].astype(int)

    def gains(split: str) -> list[dict[str, Any]]:
        return [
            metrics.gain(of("real_plus_dreamt", split, k), of("real_only", split, k), truth(split, k), first.seed)
            for k in range(len(plans))
        ]

    # Dreams are delivered where they certainly help on the calibration set, and certainly harm no target: with few
    # targets in it the higher of two figures is a lottery. The test set only reports.
    both = "real_plus_dreamt" in networks
    on_calibration = gains("calibration") if both else []
    on_test = gains("test") if both else []
    helps = any(gain["lo"] > 0 for gain in on_calibration) and not any(gain["hi"] < 0 for gain in on_calibration)
    chosen = "real_plus_dreamt" if helps else "real_only"
    _first_looks(first, networks[chosen], folders, device)
    table = galaxies.table.loc[_in_train(galaxies) | galaxies.table["split"].isin(list(held))]
    for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        report: dict[str, Any] = {
            name: metrics.summarise(of(name, "test", k), truth("test", k), first.seed) if name in networks else None
            for name in ("real_only", "real_plus_dreamt")
        }
        n_positive, n = int(truth("test", k).sum()), len(truth("test", k))
        report |= {
            "gain": on_test[k] if both else None,
            "chosen": chosen,
            "test": {"positives": n_positive, "negatives": n - n_positive, "prevalence": n_positive / n},
            "calibration_gain": on_calibration[k] if both else None,
            "morphology": known if answers else None,
            "classifier_steps": read_json(work / "steps.json")["steps"],
            "generator": generated or None,
            "dreams": read_json(folder / "screened.json") if first.synthetic else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        splits = table[["store", "id", "split"]].assign(target=table[plan.column])
        splits.loc[splits["split"] == "", "split"] = "train"
        written = bundle.write_bundle(
            folder, recipe=plan.recipe, target=plan.recipe.name, schema=schema.name, size=recipe.size, seed=first.seed,
            answers=answers, networks=[network.only(k) for network in networks[chosen]],
            calibration=calibrate.fit(of(chosen, "calibration", k).mean(0), truth("calibration", k)), splits=splits,
            metrics=report, extra={
                "request": plan.request, "request_hash": digest(plan.request),
                **({"grades": plan.provenance} if plan.vetted else {}),
            },
        )  # fmt: skip
        write_model_report(written.path)


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


def _dreams(
    plan: Plan,
    galaxies: Galaxies,
    work: Path,
    common: Path,
    critic: Network,
    answers: list[str],
    device: torch.device,
) -> Dreams | None:
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
                kinds.load(common), conditions, table["target"].to_numpy(),
                table["survey"].to_numpy(), plan.rules, plan.recipe.dream, seed=plan.seed, device=device,
                seconds=plan.seconds(DREAM_SHARE),
            )  # fmt: skip
            dreams = Dreams.joined([dreams, drawn])
        counts: dict[str, Any] = {"positive": int(dreams.target.sum()), "laid": int(dreams.laid.sum())}
        counts["all"], dropped = len(dreams), {}
        if len(dreams):
            judged = screen(dreams, images, Critic(critic, answers, schema, device), plan.rules, schema)
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
) -> list[Network]:
    """Train an ensemble; each finished network is kept on disk, and every variant does as many steps."""
    from galscan.classify.train import affordable_steps, train_classifier
    from galscan.classify.weights import load_network, save_network

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


def _first_looks(plan: Plan, networks: list[Network], folders: list[Path], device: torch.device) -> None:
    """Teach a tiny network what the delivered ones say of each target; too few pictures, and there is none.

    Calibration and test objects may be among them: not their labels are learnt, nor is it of them that anything is
    reported.
    """
    from galscan.classify.bundle import FIRST_LOOK
    from galscan.classify.cascade import FirstLook, save_first_look, teach, teaching_sample
    from galscan.classify.scoring import member_scores

    settings, paths = plan.recipe.first_look, [folder / FIRST_LOOK for folder in folders]
    if all(path.is_file() for path in paths) or not settings.steps:
        return
    images = teaching_sample(plan.stores, settings.sample, plan.seed)
    if len(images) < LEAST:
        return
    scores = np.empty((len(images), len(folders)), np.float32)
    with track("first look: pictures", len(images), "galaxies") as advance:
        for start in range(0, len(images), SOME):
            some = slice(start, start + SOME)
            scores[some] = member_scores(networks, images[some], device).mean(0)
            advance(len(images[some]))
    network = teach(
        images, scores, steps=settings.steps, seed=plan.seed, device=device, seconds=plan.seconds(FIRST_LOOK_SHARE)
    )
    for k, path in enumerate(paths):
        save_first_look(FirstLook(network.only(k)), path)
