"""``galscan train-rare``: train and calibrate a classifier of a rare class on labelled galaxies.

Every stage writes its result to ``MODEL.partial`` and is skipped when it is there, so the same command resumes an
interrupted training. The folder is renamed to ``MODEL`` at the end.
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
from galscan.core.staging import finished, publish, staging_folder
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

# Fractions of --budget; the classifiers get the rest, where time gains most (tests/benchmarks/synthetic.py).
# Training a generator of whole images takes longer than training one of maps.
GENERATOR_FRACTION, SAMPLING_FRACTION, MAPS_FRACTION, PREFILTER_FRACTION = 0.25, 0.1, 0.12, 0.05
# Features whose gain tests/benchmarks/synthetic.py proves, on real galaxies and on the simulated sky: networks trained
# with them are delivered unless they do harm. Average precision with 20 labels: the ratio is at least 1.13 and 1.00.
PROVEN = ("dust_lane",)
MIN_PREFILTER_IMAGES = 2_000  # with fewer no prefilter is trained
BATCH = 2_048  # images scored between two updates of the progress line
SYNTHETIC = "synthetic.json"  # summary of the synthetic training set, in the model folder during training
CALIBRATION = "the calibration set shows"
TRAINING_SETS = ("real_only", "real_plus_synthetic")  # a model folder also keeps the networks that are not delivered
FOLDERS = "fold-*"  # the synthetic training sets of all networks but the first, where they are cross-fitted
# Files that only a resumed training needs.
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
    and tests (`galscan.stats.crossfit`). A recipe may set a fixed split into training, calibration and test instead.
    With several targets the same networks are trained on all of them, with one score each: one scan for all targets
    takes hardly longer than a scan for one. Each target has its own model folder in `out`.

    Parameters
    ----------
    target : str or sequence of str
        Name of a shipped recipe, or path of a recipe (``.toml``); or several.
    survey, store : str or path, or sequence of them
        Surveys in the data home by name, stores by path; default all surveys in the data home.
    grades : path or sequence of paths
        Finished scans for this target with graded objects (`galscan.vet`). Graded objects are added to the training
        set, never to calibration or test (`galscan.training.graded_labels`).
    out : path, optional
        The model's folder; default ``models/TARGET`` in the data home.
    budget : float, optional
        Minutes that training may take; the number of steps is reduced to fit. Default: the recipe's number of steps.
    synthetic : bool
        False trains on real galaxies only.
    device : {"auto", "cpu", "cuda"}
    seed : int
        Seed of the split, the networks and the synthetic galaxies.
    overwrite : bool
        Replace a different model in `out`.
    dry_run : bool
        Print the plan, train nothing and return None.

    Returns
    -------
    Model, or list of Model
        The model, as returned by `galscan.open_model`; one per target where there are several.

    Raises
    ------
    InputError
        If recipe, labels, stores and options do not fit together, or there are too few examples.
    ConflictError
        If `out` holds a different model.
    Interrupted
        On Ctrl-C; the same call resumes.
    """
    names = [target] if isinstance(target, str) else list(target)
    plans = make_plans(names, survey, store, out, budget, synthetic, seed, _graded(grades))
    print("\n\n".join(plan.describe() for plan in plans), file=sys.stderr)
    for plan in plans if synthetic else ():
        if not dry_run or plan.recipe.generator.kind != "stable-diffusion":  # its weights may need a download
            _check_synthetic(plan)
    if dry_run:
        return None
    from galscan.core import device as devices
    from galscan.models.model import MODELS_INDEX, open_models
    from galscan.models.weights import SHARED

    torch_device, several = devices.pick(device), len(plans) > 1
    folder, marker = (plans[0].out.parent, MODELS_INDEX) if several else (plans[0].out, "model.json")
    request = {plan.recipe.name: plan.request for plan in plans} if several else plans[0].request
    if finished(folder, marker, request, "model", overwrite=overwrite) is None:
        with staging_folder(folder, request, "training", overwrite=overwrite) as work:
            _train(plans, work, torch_device)
            if several:
                write_json(work / MODELS_INDEX, {"targets": [plan.recipe.name for plan in plans], "request": request})
            publish(work, folder)
        # Removed last: an interruption before this point needs these files to resume.
        leftovers = [path for pattern in LEFTOVERS for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))]
        stored = TRAINING_SETS if several else (open_models(folder)[0].metrics["chosen"],)
        leftovers += [path for name in stored for path in folder.glob(f"{name}-*.safetensors")]
        leftovers += folder.glob(SHARED) if several else []  # the model of each target has a copy
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        for fold_folder in (*folder.glob(FOLDERS), *folder.glob(f"*/{FOLDERS}")):
            shutil.rmtree(fold_folder)
    models = open_models(folder)
    return models if several else models[0]


def _graded(runs: str | Path | Sequence[str | Path]) -> list[GradedLabels]:
    if not runs:
        return []
    from galscan.vetting.labels import read_all

    return read_all(runs)


def _train(plans: list[Plan], work: Path, device: Device) -> None:
    """Run the stages of training in order."""
    from galscan.models import ensemble, model
    from galscan.models.roles import one_row_per_object
    from galscan.reports.model import write_model_report
    from galscan.stats import calibration, metrics
    from galscan.training import morphology, synthetic
    from galscan.training.dataset import load_galaxies, targets_of
    from galscan.training.train import Examples

    first, started = plans[0], time.monotonic()
    recipe, schema = first.recipe, first.schema
    folders = [work / plan.recipe.name for plan in plans] if first.joint_recipes else [work]
    galaxies = load_galaxies(
        first.stores, first.table, schema.names, recipe.size, seed=first.seed, unlabelled=first.synthetic
    )
    train = np.flatnonzero(_in_train(galaxies))
    answers = list(dict.fromkeys(answer for plan in plans for answer in plan.answers))
    targets = galaxies.table[[plan.column for plan in plans]].to_numpy(np.float32)
    labels = galaxies.labels_and_votes(schema).iloc[train]
    real = Examples.from_labels(galaxies.images[train], targets[train], labels, answers, schema)
    split, members = galaxies.table["split"], recipe.classifier.members
    reserved_objects = _ReservedObjects(first, device)
    trainer = _CommitteeTrainer(first, work, device)
    rows = [np.flatnonzero(roles.trains(split, k)[train]) if first.folds else None for k in range(members)]
    networks = {"real_only": trainer.train("real_only", real, rows, [None] * members)}
    generator_summary: dict[str, Any] = {}
    if first.synthetic:
        if image_plans := [plan for plan in plans if plan.recipe.synthetic.positives]:
            generator_summary = _generator(image_plans[0], galaxies, work, device)
        sets: list[Examples | None] = []
        for member in range(max(first.folds, 1)):
            combined = None
            for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
                reference, fold_folder = networks["real_only"][member].only(k), folder / f"fold-{member}"
                synthetic_set = _synthetic(
                    plan, galaxies.of(plan.column), fold_folder if member else folder, work, reference, answers, device,
                    member, reserved_objects.objects,
                )  # fmt: skip
                if synthetic_set is not None:
                    # A synthetic galaxy of one target may be a positive or a negative of another one.
                    columns = [
                        synthetic_set.target if p is plan else targets_of(synthetic_set.labels, schema, p.rules)
                        for p in plans
                    ]
                    examples = synthetic.examples_of(synthetic_set, np.stack(columns, 1), answers, schema)
                    combined = examples if combined is None else combined.joined(examples)
            sets.append(combined)
        if all(examples is not None for examples in sets):
            networks["real_plus_synthetic"] = trainer.train(
                "real_plus_synthetic", real, rows, sets if first.folds else sets * members
            )

    # With cross-fitting the same objects calibrate and test.
    held_out = {
        name: np.flatnonzero(use(split) & one_row_per_object(galaxies.table))
        for name, use in (("calibration", roles.calibrates), ("test", roles.tests))
    }
    outputs: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name in networks:
        for subset, subset_rows in held_out.items():
            if first.folds and subset == "test":
                outputs[name, subset] = outputs[name, "calibration"]
            elif first.folds:
                folds = roles.fold_numbers(split)[subset_rows]
                outputs[name, subset] = out_of_fold(networks[name], galaxies.images[subset_rows], folds, device)
            else:
                outputs[name, subset] = ensemble.member_outputs(networks[name], galaxies.images[subset_rows], device)
    labels = galaxies.labels_and_votes(schema).iloc[held_out["test"]]
    morphology_metrics = {
        name: morphology.evaluate(outputs[name, "test"][1], labels, answers, schema) for name in networks
    }

    def member_scores(name: str, split: str, k: int) -> np.ndarray:
        return outputs[name, split][0][:, :, k]

    unlabelled = {name: reserved_objects.scores(networks[name]) for name in networks} if first.folds else {}

    def committee(name: str, split: str, k: int) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Return scores on the scale of the mean over all networks, which a scan uses, and the correction applied."""
        if not first.folds:
            return member_scores(name, split, k).mean(0), None
        scores, correction = crossfit.committee_scores(
            member_scores(name, split, k)[0], targets[held_out[split], k], unlabelled[name][..., k]
        )
        return scores, {"folds": first.folds, **correction}

    def truth(split: str, k: int) -> np.ndarray:
        # Ambiguous galaxies count as no targets: a survey contains them, too (`galscan.stats.calibration`).
        return (targets[held_out[split], k] == 1).astype(int)

    def ambiguous(split: str, k: int) -> np.ndarray:
        return np.isnan(targets[held_out[split], k])

    def gains(split: str) -> list[dict[str, Any]]:
        return [
            metrics.gain(
                member_scores("real_plus_synthetic", split, k), member_scores("real_only", split, k), truth(split, k),
                first.seed,
            )
            for k in range(len(plans))
        ]  # fmt: skip

    with_synthetic = "real_plus_synthetic" in networks
    on_calibration = gains("calibration") if with_synthetic else []
    on_test = gains("test") if with_synthetic else []
    # With cross-fitting the same scores decide and are reported. The bias is small: one of two, chosen if it is clear.
    chosen, rule = _delivered(plans, on_calibration, "the out-of-fold scores show" if first.folds else CALIBRATION)
    _prefilters(first, networks[chosen], folders, device)
    table = galaxies.table[split != ""]
    for k, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        report: dict[str, Any] = {
            name: None
            if name not in networks
            else metrics.summarise(
                member_scores(name, "test", k), truth("test", k), first.seed, committee(name, "test", k)[0]
            )
            for name in ("real_only", "real_plus_synthetic")
        }
        scores, crossfitted = committee(chosen, "calibration", k)
        n_positive, n = int(truth("test", k).sum()), len(truth("test", k))
        n_ambiguous = int(ambiguous("test", k).sum())
        report |= {
            "gain": on_test[k] if with_synthetic else None,
            "chosen": chosen,
            "delivery_rule": rule,
            "test": {
                "positives": n_positive,
                "negatives": n - n_positive - n_ambiguous,
                "ambiguous": n_ambiguous,
                "prevalence": n_positive / n,
            },
            "crossfit": crossfitted,
            "calibration_gain": on_calibration[k] if with_synthetic else None,
            "morphology": morphology_metrics if answers else None,
            "classifier_steps": read_json(work / "steps.json")["steps"],
            "generator": generator_summary or None,
            "synthetic": read_json(folder / SYNTHETIC) if first.synthetic else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        splits = table[[name for name in model.SPLITS if name != "target"]].assign(target=table[plan.column])
        written = model.write_model(
            folder, recipe=plan.recipe, target=plan.recipe.name, schema=schema, size=recipe.size, seed=first.seed,
            answers=answers, networks=[network.only(k) for network in networks[chosen]],
            calibration=calibration.fit(*crossfit.calibration_set(
                scores, targets[held_out["calibration"], k], crossfitted["factors"] if crossfitted else None
            )),
            splits=splits, metrics=report, extra={
                "request": plan.request, "request_hash": digest(plan.request),
                "radius": identity.radius_of(plan.stores), "imaging": _imaging(plan, splits),
                **({"grades": plan.provenance} if plan.graded_scans else {}),
            },
        )  # fmt: skip
        write_model_report(written.path)


def _imaging(plan: Plan, splits: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the distinct imaging descriptions of the stores in the calibration set."""
    names = set(splits.loc[roles.calibrates(splits["split"]), "store"])
    imaging = [identity.imaging_of(store) for store in plan.stores if store.name in names]
    return [entry for k, entry in enumerate(imaging) if entry not in imaging[:k]]


def _in_train(galaxies: Galaxies) -> np.ndarray:
    """Return a mask of the rows that train any network; ambiguous ones train only its morphology outputs."""
    return roles.trains(galaxies.table["split"])


def _delivered(plans: list[Plan], gains: list[dict[str, Any]], shown: str = CALIBRATION) -> tuple[str, str]:
    """Return which networks are delivered, and a description of the rule that decided.

    With a dozen calibration positives hardly any gain is significant. So networks trained with a feature whose gain
    the benchmark proves are delivered unless the calibration set shows harm; other synthetic galaxies only where the
    calibration set shows a significant gain. The test set of a fixed split does not enter the decision.
    """
    if not gains:
        return "real_only", "no synthetic galaxies"
    if any(gain["hi"] < 0 for gain in gains):
        return "real_only", f"{shown} harm: the upper bound of the gain is below zero"
    if any(gain["lo"] > 0 for gain in gains):
        return "real_plus_synthetic", f"{shown} a gain: its lower bound is above zero"
    rules = [plan.rules.inject for plan in plans if not plan.recipe.synthetic.positives]
    if len(rules) == len(plans) and all(rule is not None and rule.feature in PROVEN for rule in rules):
        return "real_plus_synthetic", f"a feature proven by the benchmark, and {shown} no harm"
    return "real_only", f"no feature proven by the benchmark, and {shown} no certain gain"


def _check_synthetic(plan: Plan) -> None:
    """Check weights, stretches and rules of the synthetic galaxies before training starts."""
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
                "generator.kind = 'maps' generates no whole images: set synthetic.positives = 0, or use another kind"
            )
    elif plan.recipe.synthetic.positives:
        backends.check_start(settings)
    if rule is not None:
        for store in plan.stores:
            stretch_of(store.attrs.get("provenance", {}), str(store.path))
        labels = {name: plan.table[name].to_numpy() for name in plan.schema.names}
        hosts = parse_rule(rule.hosts, plan.schema.names).evaluate(labels)[0]
        # Whether an unlabelled galaxy is a host is predicted by a network that is not trained yet.
        hosts |= plan.table[plan.schema.names].isna().all(axis=1).to_numpy()
        if not all(hosts[~held_out(plan.table, k)].any() for k in range(max(plan.folds, 1))):
            raise InputError(
                f"no training galaxy satisfies 'inject.hosts' ({' '.join(rule.hosts.split())}): loosen the rule, "
                "add a store with --store, or pass --no-synthetic"
            )


def _generator(plan: Plan, galaxies: Galaxies, work: Path, device: Device) -> dict[str, Any]:
    from galscan.synthesis import backends

    path, settings = work / "generator.json", plan.recipe.generator
    if path.is_file():
        return dict(read_json(path))
    assert not isinstance(settings, MapSettings)  # see `_check_synthetic`
    training_set = galaxies.generator_set(settings)
    result = backends.train(
        training_set, plan.schema, [s.name for s in plan.stores], settings, work, seed=plan.seed, device=device,
        seconds=plan.seconds(GENERATOR_FRACTION),
    )  # fmt: skip
    summary = {**result, "galaxies": len(training_set.images), "kind": settings.kind, "start": settings.start}
    write_json(path, summary)
    return summary


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
    """Make the synthetic training set of the network `member`, or of all networks; None if no target is left.

    `reference` was not trained on the fold of that network, and galaxies of the fold and `unused` objects are neither
    hosts nor conditions. So the network does not depend on its fold, not even through the choice of hosts and mined
    negatives. Whole images that a network trained on real galaxies alone rejects are dropped.
    """
    from galscan.synthesis import backends
    from galscan.synthesis.evaluation import ReferenceClassifier, filter_synthetic
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
    store = work / "synthetic.zarr"
    if not (work / SYNTHETIC).is_file():
        parts: list[SyntheticSet] = []
        counts: dict[str, Any] = {"dropped": {}}
        if rules.inject is not None and recipe.synthetic.injected:
            # Where whole images are generated as well, the recipe's generator is that of the images.
            generator = recipe.generator if isinstance(recipe.generator, MapSettings) else MapSettings(kind="maps")
            candidates = synthetic.candidates_of(
                galaxies, galaxies.not_held_out(member, unused), plan.stores, reference, answers, schema, device
            )
            injected, injection_counts = synthetic.inject(
                candidates, schema, rules, recipe.synthetic, generator, work, seed=plan.seed + 1009 * member,
                device=device, seconds=plan.seconds(MAPS_FRACTION / max(plan.folds, 1)),
            )  # fmt: skip
            parts.append(injected)
            counts |= injection_counts
        if recipe.synthetic.positives:
            train = np.flatnonzero(_in_train(galaxies))
            images, table = galaxies.images[train], galaxies.table.iloc[train]
            conditions = galaxies.conditions(train)
            write_conditions(conditions, table["target"].to_numpy(), table["store"].to_numpy(), work / CONDITIONS)
            generated = generate_set(
                backends.load(common), conditions, table["target"].to_numpy(),
                table["survey"].to_numpy(), rules, recipe.synthetic, seed=plan.seed, device=device,
                seconds=plan.seconds(SAMPLING_FRACTION),
            )  # fmt: skip
            screened = filter_synthetic(
                generated, images, ReferenceClassifier(reference, answers, schema, device), rules, schema
            )
            counts["dropped"] = {
                str(k): int(n) for k, n in screened.loc[~screened["kept"], "reason"].value_counts().items()
            }
            parts.append(generated.select(screened["kept"].to_numpy()))
        combined = SyntheticSet.joined(parts) if parts else None
        kept = 0 if combined is None else int(combined.synthetic.sum())
        counts |= {"all": kept + sum(counts["dropped"].values()), "kept": kept}
        counts["kept_positive"] = 0 if combined is None else int((combined.target == 1).sum())
        if combined is not None and counts["kept_positive"]:
            answer = [*rules.inject.values][:1] if rules.inject is not None else [*rules.synthetic.set][:2]
            sheet(combined, work / "synthetic.png", answer, f"synthetic {recipe.name}; last: synthetic negatives")
            provenance = {"seed": plan.seed, "recipe": recipe.hash}
            provenance |= {"without": roles.fold_name(member)} if plan.folds else {}
            write_synthetic_set(combined, store, f"synthetic-{recipe.name}", schema, provenance)
        write_json(work / SYNTHETIC, counts)
    return read_synthetic_set(store, schema.name) if store.is_dir() else None


class _ReservedObjects:
    """Unlabelled objects kept out of all training, on which the scatter between cross-fitted networks is measured."""

    def __init__(self, plan: Plan, device: Device):
        self.plan, self.device = plan, device
        self.table = plan.table.iloc[:0]
        if plan.folds:
            self.table = reserved(plan.table, synthetic=plan.synthetic, seed=plan.seed)
        self.objects = frozenset(self.table["object"])

    def scores(self, networks: list[Network]) -> np.ndarray:
        """Return the scores of each network, shape (members, n, targets)."""
        from galscan.models.ensemble import member_scores
        from galscan.training.dataset import load_galaxies

        plan = self.plan
        galaxies = load_galaxies(
            plan.stores, self.table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=True
        )
        return member_scores(networks, galaxies.images, self.device)


class _CommitteeTrainer:
    """Trains the networks of a plan in parallel; all committees take the same number of steps."""

    def __init__(self, plan: Plan, work: Path, device: Device):
        self.plan, self.work, self.device = plan, work, device

    def train(
        self, name: str, real: Examples, rows: Sequence[np.ndarray | None], synthetic: Sequence[Examples | None]
    ) -> list[Network]:
        """Train a committee, each network on its rows and its synthetic galaxies; load networks that are trained."""
        from galscan.training.committee import Job, train_networks

        settings = self.plan.recipe.classifier
        steps = self._steps(real)
        jobs = [
            Job(
                self.work / f"{name}-{member}.safetensors", real, synthetic[member], settings, steps,
                self.plan.seed * 1000 + member, f"{name.replace('_', ' ')} networks",
                rows[member],
            )
            for member in range(settings.members)
        ]  # fmt: skip
        return train_networks(jobs, self.device)

    def _steps(self, real: Examples) -> int:
        from galscan.core.concurrency import default_workers
        from galscan.training.train import affordable_steps

        path, settings = self.work / "steps.json", self.plan.recipe.classifier
        if not path.is_file():
            parallel = min(default_workers(), settings.members) if self.device.type == "cpu" else 1
            rounds = -(-settings.members // parallel)
            # The budget is split between two committees even if only one is trained, so that --no-synthetic compares.
            fraction = 1 - PREFILTER_FRACTION
            if self.plan.rules.inject is not None and self.plan.recipe.synthetic.injected:
                fraction -= MAPS_FRACTION
            if self.plan.recipe.synthetic.positives:
                fraction -= GENERATOR_FRACTION + SAMPLING_FRACTION
            seconds = self.plan.seconds(fraction / (2 * rounds))
            write_json(path, {"steps": affordable_steps(real, settings, device=self.device, seconds=seconds)})
        return int(read_json(path)["steps"])


def _prefilters(plan: Plan, networks: list[Network], folders: list[Path], device: Device) -> None:
    """Train a small network on the scores of the delivered ones, for each target; none with too few images.

    The images may include calibration and test objects: their labels are not used, and no metric of the prefilter is
    reported on them.
    """
    from galscan.models.ensemble import member_scores
    from galscan.models.model import PREFILTER_FILE
    from galscan.models.prefilter import Prefilter, prefilter_sample, save_prefilter, train_prefilter

    settings, paths = plan.recipe.prefilter, [folder / PREFILTER_FILE for folder in folders]
    if all(path.is_file() for path in paths) or not settings.steps:
        return
    images = prefilter_sample(plan.stores, settings.sample, plan.seed, plan.recipe.size)
    if len(images) < MIN_PREFILTER_IMAGES:
        return
    scores = np.empty((len(images), len(folders)), np.float32)
    with track("prefilter: training images", len(images), "galaxies") as advance:
        for start in range(0, len(images), BATCH):
            batch = slice(start, start + BATCH)
            scores[batch] = member_scores(networks, images[batch], device).mean(0)
            advance(len(images[batch]))
    network = train_prefilter(
        images, scores, steps=settings.steps, seed=plan.seed, device=device, seconds=plan.seconds(PREFILTER_FRACTION)
    )
    for k, path in enumerate(paths):
        save_prefilter(Prefilter(network.only(k)), path)
