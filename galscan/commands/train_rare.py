"""``galscan train-rare``: from labelled galaxies to a calibrated classifier of a rare class.

Every stage leaves its result in ``MODEL.partial`` and is skipped when it is there, so the same command
goes on where it stopped; the folder is renamed to ``MODEL`` when all is done.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.core.errors import InputError
from galscan.core.files import digest, read_json, write_json
from galscan.core.progress import track
from galscan.core.staging import deliver, finished, work_on
from galscan.labels.rules import parse_rule
from galscan.labels.settings import MapSettings
from galscan.models import roles
from galscan.models.ensemble import out_of_fold
from galscan.stats import crossfit
from galscan.store import identity
from galscan.training.plan import Plan, make_plans
from galscan.training.split import reserved

if TYPE_CHECKING:
    import pandas as pd

    from galscan.core.device import Device
    from galscan.models.model import Model
    from galscan.models.network import Network
    from galscan.synthesis.synthetic_set import SyntheticSet
    from galscan.training.dataset import Galaxies
    from galscan.training.graded_labels import GradedLabels
    from galscan.training.train import Examples

# Fractions of --budget: it is in the classifier that time pays most (tests/benchmarks/dream.py). A generator of whole
# images takes longer than one of maps.
GENERATOR_SHARE, DREAM_SHARE, MAPS_SHARE, FIRST_LOOK_SHARE = 0.25, 0.1, 0.12, 0.05  # the classifiers have the rest
# Features whose gain tests/benchmarks/dream.py proves, on real galaxies and on the simulated sky: synthetic galaxies of
# theirs are delivered unless they do harm. Average precision with 20 labels: lower bounds of the ratio 1.13 and 1.00.
PROVEN = ("dust_lane",)
LEAST = 2_000  # pictures, below which a first look has nothing to learn from
SOME = 2_048  # of them are scored between two signs of life
# What only a resumed training needs.
SYNTHETIC = "synthetic.json"  # in a model's folder while it is made: what its synthetic training set holds
CALIBRATION = "the calibration set shows"
WAYS = ("real_only", "real_plus_dreamt")  # to train; a model's folder keeps the networks of the one not delivered, too
FOLDERS = "fold-*"  # the synthetic training sets of all networks but the first, where they are cross-fitted
LEFTOVERS = ("steps.json", "generator.json", "feature_maps.json", SYNTHETIC, "request.json")


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
) -> Model | list[Model] | None:
    """Train a classifier for `target` on real and synthetic galaxies; calibrate and evaluate it on real ones.

    By default by cross-fitting: every labelled galaxy trains all networks but one, and the score of that one calibrates
    and tests (`galscan.stats.crossfit`); or on a part that is held out.
    The same networks are trained on several targets, one score each: a scan for all of them then costs hardly more than
    one for one. Each has a model folder of its own in `out`.

    Parameters
    ----------
    target : str or sequence of str
        A shipped recipe's name, or the path of a recipe (``.toml``); or several.
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path; by default all surveys of the data home.
    grades : path or sequence of paths
        Finished scans for this target whose objects people graded (`galscan.vet`): they train, beside the labels, and
        never calibrate or test (`galscan.training.graded_labels`).
    out : path, optional
        The model's folder; default ``models/TARGET`` in the data home.
    budget : float, optional
        Minutes that training may take; steps are cut to fit. Without it the recipe's steps are done.
    synthetic : bool
        False trains on real galaxies only.
    device : {"auto", "cpu", "cuda"}
    seed : int
        Of the split, the networks and the synthetic galaxies.
    overwrite : bool
        Replace another model in `out`.
    dry_run : bool
        Print the plan, train nothing and return None.

    Returns
    -------
    Bundle, or list of Bundle
        The model, as `galscan.open_model` gives it; of several targets, one for each.

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
    for plan in plans if synthetic else ():
        if not dry_run or plan.recipe.generator.kind != "stable-diffusion":  # whose weights may have to be fetched
            _check_synthetic(plan)
    if dry_run:
        return None
    from galscan.core import device as devices
    from galscan.models.model import TOGETHER, open_models
    from galscan.models.weights import SHARED

    where, several = devices.pick(device), len(plans) > 1
    place, marker = (plans[0].out.parent, TOGETHER) if several else (plans[0].out, "model.json")
    request = {plan.recipe.name: plan.request for plan in plans} if several else plans[0].request
    if finished(place, marker, request, "model", overwrite=overwrite) is None:
        with work_on(place, request, "training", overwrite=overwrite) as work:
            _train(plans, work, where)
            if several:
                write_json(work / TOGETHER, {"targets": [plan.recipe.name for plan in plans], "request": request})
            deliver(work, place)
        # Only now: without these an interruption up to here could not be resumed.
        leftovers = [path for pattern in LEFTOVERS for path in (*place.glob(pattern), *place.glob(f"*/{pattern}"))]
        ways = WAYS if several else (open_models(place)[0].metrics["chosen"],)
        leftovers += [path for way in ways for path in place.glob(f"{way}-*.safetensors")]
        leftovers += place.glob(SHARED) if several else []  # each target's model has its own
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        for folder in (*place.glob(FOLDERS), *place.glob(f"*/{FOLDERS}")):
            shutil.rmtree(folder)
    bundles = open_models(place)
    return bundles if several else bundles[0]


def _graded(runs: str | Path | Sequence[str | Path]) -> list[GradedLabels]:
    if not runs:
        return []
    from galscan.vetting.labels import read_all

    return read_all(runs)


def _train(plans: list[Plan], work: Path, device: Device) -> None:
    """Run the stages; the order is the story."""
    from galscan.models import ensemble, model
    from galscan.models.roles import once
    from galscan.reports.model import write_model_report
    from galscan.stats import calibration, metrics
    from galscan.training import morphology, synthetic
    from galscan.training.dataset import load_galaxies, targets_of
    from galscan.training.train import Examples

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
    split, members = galaxies.table["split"], recipe.classifier.members
    fresh = _Fresh(first, device)
    jobs = _Jobs(first, work, device)
    rows = [np.flatnonzero(roles.trains(split, k)[train]) if first.folds else None for k in range(members)]
    networks = {"real_only": jobs.train("real_only", real, rows, [None] * members)}
    generated: dict[str, Any] = {}
    if first.synthetic:
        if drawing := [plan for plan in plans if plan.recipe.synthetic.positives]:
            generated = _generator(drawing[0], galaxies, work, device)  # the first need not draw whole images
        sets: list[Examples | None] = []
        for member in range(max(first.folds, 1)):
            parts = None
            for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
                reference, theirs = networks["real_only"][member].only(k), folder / f"fold-{member}"
                made = _synthetic(
                    plan, galaxies.of(plan.column), theirs if member else folder, work, reference, answers, device,
                    member, fresh.objects,
                )  # fmt: skip
                if made is not None:
                    # What was made for one target may be another as well, or certainly not be it.
                    kinds = [made.target if p is plan else targets_of(made.labels, schema, p.rules) for p in plans]
                    some = synthetic.examples_of(made, np.stack(kinds, 1), answers, schema)
                    parts = some if parts is None else parts.joined(some)
            sets.append(parts)
        if all(parts is not None for parts in sets):
            networks["real_plus_dreamt"] = jobs.train(
                "real_plus_dreamt", real, rows, sets if first.folds else sets * members
            )

    # Cross-fitted, the objects that calibrate are those that test.
    held = {
        name: np.flatnonzero(use(split) & once(galaxies.table))
        for name, use in (("calibration", roles.calibrates), ("test", roles.tests))
    }
    outputs: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name in networks:
        for which, rows_of in held.items():
            if first.folds and which == "test":
                outputs[name, which] = outputs[name, "calibration"]
            elif first.folds:
                folds = roles.fold_numbers(split)[rows_of]
                outputs[name, which] = out_of_fold(networks[name], galaxies.images[rows_of], folds, device)
            else:
                outputs[name, which] = ensemble.member_outputs(networks[name], galaxies.images[rows_of], device)
    labels = galaxies.counted(schema).iloc[held["test"]]
    known = {name: morphology.evaluate(outputs[name, "test"][1], labels, answers, schema) for name in networks}

    def of(name: str, split: str, k: int) -> np.ndarray:
        return outputs[name, split][0][:, :, k]

    unlabelled = {name: fresh.scores(networks[name]) for name in networks} if first.folds else {}

    def committee(name: str, split: str, k: int) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Return scores as a survey's objects are given them, by all networks, and how they were corrected."""
        if not first.folds:
            return of(name, split, k).mean(0), None
        scores, told = crossfit.committee_scores(
            of(name, split, k)[0], targets[held[split], k], unlabelled[name][..., k]
        )
        return scores, {"folds": first.folds, **told}

    def truth(split: str, k: int) -> np.ndarray:
        # What is ambiguous is no target: a survey holds such galaxies, too (`galscan.stats.calibration`).
        return (targets[held[split], k] == 1).astype(int)

    def ambiguous(split: str, k: int) -> np.ndarray:
        return np.isnan(targets[held[split], k])

    def gains(split: str) -> list[dict[str, Any]]:
        return [
            metrics.gain(of("real_plus_dreamt", split, k), of("real_only", split, k), truth(split, k), first.seed)
            for k in range(len(plans))
        ]

    both = "real_plus_dreamt" in networks
    on_calibration = gains("calibration") if both else []
    on_test = gains("test") if both else []
    # Cross-fitted, what decides is also what is reported: of two ways one is chosen, and only where it is clear.
    chosen, rule = _delivered(plans, on_calibration, "the out-of-fold scores show" if first.folds else CALIBRATION)
    _prefilters(first, networks[chosen], folders, device)
    table = galaxies.table[split != ""]
    for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        report: dict[str, Any] = {
            name: None
            if name not in networks
            else metrics.summarise(of(name, "test", k), truth("test", k), first.seed, committee(name, "test", k)[0])
            for name in ("real_only", "real_plus_dreamt")
        }
        scores, crossfitted = committee(chosen, "calibration", k)
        n_positive, n, unclear = int(truth("test", k).sum()), len(truth("test", k)), int(ambiguous("test", k).sum())
        report |= {
            "gain": on_test[k] if both else None,
            "chosen": chosen,
            "delivery_rule": rule,
            "test": {
                "positives": n_positive,
                "negatives": n - n_positive - unclear,
                "ambiguous": unclear,
                "prevalence": n_positive / n,
            },
            "crossfit": crossfitted,
            "calibration_gain": on_calibration[k] if both else None,
            "morphology": known if answers else None,
            "classifier_steps": read_json(work / "steps.json")["steps"],
            "generator": generated or None,
            "dreams": read_json(folder / SYNTHETIC) if first.synthetic else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        splits = table[[name for name in model.SPLITS if name != "target"]].assign(target=table[plan.column])
        written = model.write_model(
            folder, recipe=plan.recipe, target=plan.recipe.name, schema=schema.name, size=recipe.size, seed=first.seed,
            answers=answers, networks=[network.only(k) for network in networks[chosen]],
            calibration=calibration.fit(*crossfit.calibration_set(
                scores, targets[held["calibration"], k], crossfitted["factors"] if crossfitted else None
            )),
            splits=splits, metrics=report, extra={
                "request": plan.request, "request_hash": digest(plan.request),
                "radius": identity.radius_of(plan.stores), "imaging": _imaging(plan, splits),
                **({"grades": plan.provenance} if plan.vetted else {}),
            },
        )  # fmt: skip
        write_model_report(written.path)


def _imaging(plan: Plan, splits: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the imaging of the stores that calibrate; each once."""
    names = set(splits.loc[roles.calibrates(splits["split"]), "store"])
    every = [identity.imaging_of(store) for store in plan.stores if store.name in names]
    return [one for k, one in enumerate(every) if one not in every[:k]]


def _in_train(galaxies: Galaxies) -> np.ndarray:
    """Return which rows may train some classifier; ambiguous ones train its morphology alone."""
    return roles.trains(galaxies.table["split"])


def _delivered(plans: list[Plan], gains: list[dict[str, Any]], shown: str = CALIBRATION) -> tuple[str, str]:
    """Return which networks are delivered, and the rule that decided, in words.

    With a dozen calibration positives hardly any gain is certain. So a feature whose gain the shipped benchmark proves
    is delivered unless the calibration set shows harm, another way to make galaxies only where it certainly helps
    there. The test set of a fixed split reports, and decides nothing.
    """
    if not gains:
        return "real_only", "no synthetic galaxies"
    if any(gain["hi"] < 0 for gain in gains):
        return "real_only", f"{shown} harm: the upper bound of the gain is below zero"
    if any(gain["lo"] > 0 for gain in gains):
        return "real_plus_dreamt", f"{shown} a gain: its lower bound is above zero"
    rules = [plan.rules.inject for plan in plans if not plan.recipe.synthetic.positives]
    if len(rules) == len(plans) and all(rule is not None and rule.feature in PROVEN for rule in rules):
        return "real_plus_dreamt", f"a feature proven by the benchmark, and {shown} no harm"
    return "real_only", f"no feature proven by the benchmark, and {shown} no certain gain"


def _check_synthetic(plan: Plan) -> None:
    """Refuse weights, stretches and rules that nothing synthetic can be made with, before anything long begins."""
    from galscan.synthesis import backends
    from galscan.synthesis.diffusion import maps as feature_maps
    from galscan.synthesis.flux import stretch_of
    from galscan.training.split import held_out

    settings, rule = plan.recipe.generator, plan.rules.inject
    if isinstance(settings, MapSettings):
        if rule is not None and settings.maps != "prior":
            feature_maps.load_start(rule, settings)
        if plan.recipe.synthetic.positives:
            raise InputError(
                "generator.kind = 'maps' draws no whole images: set synthetic.positives = 0, or another kind"
            )
    elif plan.recipe.synthetic.positives:
        backends.check_start(settings)
    if rule is not None:
        for store in plan.stores:
            stretch_of(store.attrs.get("provenance", {}), str(store.path))
        labels = {name: plan.table[name].to_numpy() for name in plan.schema.names}
        hosts = parse_rule(rule.hosts, plan.schema.names).evaluate(labels)[0]
        # Of unlabelled galaxies only a trained network can tell.
        hosts |= plan.table[plan.schema.names].isna().all(axis=1).to_numpy()
        if not all(hosts[~held_out(plan.table, k)].any() for k in range(max(plan.folds, 1))):
            raise InputError(
                f"no training galaxy satisfies 'inject.hosts' ({' '.join(rule.hosts.split())}): loosen the rule, "
                "add a store with --store, or pass --no-synthetic"
            )


def _generator(plan: Plan, galaxies: Galaxies, work: Path, device: Device) -> dict[str, Any]:
    from galscan.synthesis import backends

    note, settings = work / "generator.json", plan.recipe.generator
    if note.is_file():
        return dict(read_json(note))
    assert not isinstance(settings, MapSettings)  # see `_check_synthetic`
    teaching = galaxies.generator_set(settings)
    outcome = backends.teach(
        teaching, plan.schema, [s.name for s in plan.stores], settings, work, seed=plan.seed, device=device,
        seconds=plan.seconds(GENERATOR_SHARE),
    )  # fmt: skip
    told = {**outcome, "galaxies": len(teaching.images), "kind": settings.kind, "start": settings.start}
    write_json(note, told)
    return told


def _synthetic(
    plan: Plan,
    galaxies: Galaxies,
    work: Path,
    common: Path,
    reference: Network,
    answers: list[str],
    device: Device,
    member: int,
    unused: frozenset[str],
) -> SyntheticSet | None:
    """Inject features and draw whole images for the network `member`, or for all; None if no target is left.

    `reference` was not trained on that network's fold, and nothing is made of galaxies of it, or of `unused` objects.
    So the network depends on its fold in no way, not even through the choice of hosts and mined negatives.
    Of whole images those go that a network trained on real galaxies alone finds failed.
    """
    from galscan.synthesis import backends
    from galscan.synthesis.evaluation import ReferenceClassifier, screen
    from galscan.synthesis.synthetic_set import (
        CONDITIONS,
        SyntheticSet,
        generate_set,
        read_synthetic_set,
        sheet,
        write_conditions,
        write_synthetic_set,
    )
    from galscan.training import synthetic

    schema, recipe, rules = plan.schema, plan.recipe, plan.rules
    store = work / "dreams.zarr"
    if not (work / SYNTHETIC).is_file():
        parts: list[SyntheticSet] = []
        counts: dict[str, Any] = {"dropped": {}}
        if rules.inject is not None and recipe.synthetic.injected:
            # Where whole images are drawn as well, the recipe's generator is theirs.
            generator = recipe.generator if isinstance(recipe.generator, MapSettings) else MapSettings(kind="maps")
            candidates = synthetic.candidates_of(
                galaxies, galaxies.free(member, unused), plan.stores, reference, answers, schema, device
            )
            injected, told = synthetic.inject(
                candidates, schema, rules, recipe.synthetic, generator, work, seed=plan.seed + 1009 * member,
                device=device, seconds=plan.seconds(MAPS_SHARE / max(plan.folds, 1)),
            )  # fmt: skip
            parts.append(injected)
            counts |= told
        if recipe.synthetic.positives:
            train = np.flatnonzero(_in_train(galaxies))
            images, table = galaxies.images[train], galaxies.table.iloc[train]
            conditions = galaxies.conditions(train)
            write_conditions(conditions, table["target"].to_numpy(), table["store"].to_numpy(), work / CONDITIONS)
            drawn = generate_set(
                backends.load(common), conditions, table["target"].to_numpy(),
                table["survey"].to_numpy(), rules, recipe.synthetic, seed=plan.seed, device=device,
                seconds=plan.seconds(DREAM_SHARE),
            )  # fmt: skip
            judged = screen(drawn, images, ReferenceClassifier(reference, answers, schema, device), rules, schema)
            counts["dropped"] = {
                str(k): int(n) for k, n in judged.loc[~judged["kept"], "reason"].value_counts().items()
            }
            parts.append(drawn.select(judged["kept"].to_numpy()))
        made = SyntheticSet.joined(parts) if parts else None
        kept = 0 if made is None else int(made.synthetic.sum())
        counts |= {"all": kept + sum(counts["dropped"].values()), "kept": kept}
        counts["kept_positive"] = 0 if made is None else int((made.target == 1).sum())
        if made is not None and counts["kept_positive"]:
            answer = [*rules.inject.values][:1] if rules.inject is not None else [*rules.synthetic.set][:2]
            sheet(made, work / "dreams.png", answer, f"synthetic {recipe.name}; last: synthetic negatives")
            provenance = {"seed": plan.seed, "recipe": recipe.hash}
            provenance |= {"without": roles.fold_name(member)} if plan.folds else {}
            write_synthetic_set(made, store, f"synthetic-{recipe.name}", schema, provenance)
        write_json(work / SYNTHETIC, counts)
    return read_synthetic_set(store, schema.name) if store.is_dir() else None


class _Fresh:
    """Unlabelled objects that train nothing, on which the scatter of cross-fitted networks is measured."""

    def __init__(self, plan: Plan, device: Device):
        self.plan, self.device = plan, device
        self.table = plan.table.iloc[:0]
        if plan.folds:
            self.table = reserved(plan.table, synthetic=plan.synthetic, seed=plan.seed)
        self.objects = frozenset(self.table["object"])

    def scores(self, networks: list[Network]) -> np.ndarray:
        """Return what each network scores, shape (members, n, targets)."""
        from galscan.models.ensemble import member_scores
        from galscan.training.dataset import load_galaxies

        plan = self.plan
        galaxies = load_galaxies(
            plan.stores, self.table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=True
        )
        return member_scores(networks, galaxies.images, self.device)


class _Jobs:
    """The networks of a plan, trained side by side; every committee does as many steps."""

    def __init__(self, plan: Plan, work: Path, device: Device):
        self.plan, self.work, self.device = plan, work, device

    def train(
        self, name: str, real: Examples, rows: Sequence[np.ndarray | None], made: Sequence[Examples | None]
    ) -> list[Network]:
        """Train a committee, each network on its rows and on its synthetic galaxies, or load what is there of it."""
        from galscan.training.committee import Job, train_networks

        settings = self.plan.recipe.classifier
        steps = self._steps(real)
        jobs = [
            Job(
                self.work / f"{name}-{member}.safetensors", real, made[member], settings, steps,
                self.plan.seed * 1000 + member, f"{name.replace('_dreamt', '_synthetic').replace('_', ' ')} networks",
                rows[member],
            )
            for member in range(settings.members)
        ]  # fmt: skip
        return train_networks(jobs, self.device)

    def _steps(self, real: Examples) -> int:
        from galscan.core.concurrency import default_workers
        from galscan.training.train import affordable_steps

        note, settings = self.work / "steps.json", self.plan.recipe.classifier
        if not note.is_file():
            at_once = min(default_workers(), settings.members) if self.device.type == "cpu" else 1
            rounds = -(-settings.members // at_once)
            # Two ensembles share the budget also when only one is trained, so that --no-synthetic compares.
            share = 1 - FIRST_LOOK_SHARE
            if self.plan.rules.inject is not None and self.plan.recipe.synthetic.injected:
                share -= MAPS_SHARE
            if self.plan.recipe.synthetic.positives:
                share -= GENERATOR_SHARE + DREAM_SHARE
            each = self.plan.seconds(share / (2 * rounds))
            write_json(note, {"steps": affordable_steps(real, settings, device=self.device, seconds=each)})
        return int(read_json(note)["steps"])


def _prefilters(plan: Plan, networks: list[Network], folders: list[Path], device: Device) -> None:
    """Teach a tiny network what the delivered ones say of each target; too few pictures, and there is none.

    Calibration and test objects may be among them: not their labels are learnt, nor is it of them that anything is
    reported.
    """
    from galscan.models.ensemble import member_scores
    from galscan.models.model import FIRST_LOOK
    from galscan.models.prefilter import Prefilter, save_prefilter, teach, teaching_sample

    settings, paths = plan.recipe.prefilter, [folder / FIRST_LOOK for folder in folders]
    if all(path.is_file() for path in paths) or not settings.steps:
        return
    images = teaching_sample(plan.stores, settings.sample, plan.seed, plan.recipe.size)
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
        save_prefilter(Prefilter(network.only(k)), path)
