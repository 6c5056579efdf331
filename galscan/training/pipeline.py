"""The stages of ``galscan train-rare``; `run` lists them in order.

Each stage writes its result to the staging folder; an interrupted training resumes after the finished stages.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from galscan.core import device as devices
from galscan.core.concurrency import default_workers
from galscan.core.errors import InputError
from galscan.core.files import digest, read_json, write_json
from galscan.core.old_names import OLD_FILES
from galscan.core.progress import track
from galscan.labels.settings import MapSettings
from galscan.models import ensemble, model, roles
from galscan.models.model import PREFILTER_FILE, Model
from galscan.models.network import Network
from galscan.models.prefilter import Prefilter, prefilter_sample, save_prefilter, train_prefilter
from galscan.models.weights import SHARED
from galscan.stats import calibration, crossfit, metrics
from galscan.store import identity
from galscan.synthesis import backends
from galscan.synthesis.diffusion import maps as feature_maps
from galscan.synthesis.features.base import has_model
from galscan.synthesis.flux import stretch_of
from galscan.synthesis.synthetic_set import (
    CONDITIONS,
    SyntheticSet,
    read_synthetic_set,
    sheet,
    write_conditions,
    write_synthetic_set,
)
from galscan.training import morphology, synthetic, train
from galscan.training.committee import Job, train_networks
from galscan.training.dataset import Galaxies, load_galaxies, targets_of
from galscan.training.plan import Plan
from galscan.training.split import reserved
from galscan.training.train import Examples

# Fractions of --budget; the classifiers get the rest, where time gains most (tests/benchmarks/synthetic.py).
# Training a generator of whole images takes longer than training one of maps.
GENERATOR_FRACTION, SAMPLING_FRACTION, MAPS_FRACTION, PREFILTER_FRACTION = 0.25, 0.1, 0.12, 0.05
# Features whose gain a benchmark proves: networks trained with them are delivered unless they do harm. Ratio of average
# precision with 20 labels: dust lanes at least 1.13 on real galaxies and 1.00 on the simulated sky
# (tests/benchmarks/synthetic.py), companions at least 1.14 on real mergers (tests/benchmarks/features.py).
PROVEN = ("dust_lane", "companion")
MIN_PREFILTER_IMAGES = 2_000  # with fewer no prefilter is trained
BATCH = 2_048  # images scored between two updates of the progress line
SYNTHETIC = "synthetic.json"  # summary of the synthetic training set, in the model folder during training
REAL, WITH_SYNTHETIC = TRAINING_SETS = ("real_only", "real_plus_synthetic")
FOLDERS = "fold-*"  # the synthetic training sets of all networks but the first, where they are cross-fitted
# Files that only a resumed training needs.
LEFTOVERS = ("steps.json", "generator.json", "feature_maps.json", SYNTHETIC, "request.json", devices.TRAINING)


def check(plan: Plan) -> None:
    """Check weights, stretches and rules of the synthetic galaxies before training starts."""
    settings, rule = plan.recipe.generator, plan.rules.inject
    if isinstance(settings, MapSettings):
        if rule is not None and settings.maps != "prior" and has_model(rule.feature):
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
        synthetic.check_rule(plan, rule)


def run(plans: list[Plan], work: Path, device: torch.device) -> list[Model]:
    """Run the stages; return the models, one for each plan, in `work`."""
    started, first = time.monotonic(), plans[0]
    for new, old in OLD_FILES.items():  # of an interrupted training by version 0.1
        for path in [*work.glob(f"{old}*"), *work.glob(f"*/{old}*")]:
            path.rename(path.with_name(path.name.replace(old, new)))
    training = Training(plans, work, device)
    networks = {REAL: training.committee(REAL, [None])}
    generator = None
    if first.synthetic:
        generator = training.generator()
        sets = [training.synthetic_examples(k, networks[REAL][k]) for k in range(max(first.folds, 1))]
        if all(examples is not None for examples in sets):
            networks[WITH_SYNTHETIC] = training.committee(WITH_SYNTHETIC, sets)
    calibrating = Scores(training, networks, roles.calibrates)
    testing = calibrating if first.folds else Scores(training, networks, roles.tests)
    chosen, rule = delivered(plans, calibrating.gains)
    training.prefilter(networks[chosen])
    facts = {"chosen": chosen, "delivery_rule": rule, "generator": generator}
    return [
        training.write(k, networks[chosen], calibrating, testing.report(k) | facts, started) for k in range(len(plans))
    ]


def remove_leftovers(folder: Path, chosen: str | None) -> None:
    """Remove what only a resumed training needs; networks of the training set that is not `chosen` stay.

    `chosen` is None for a folder of several targets, where the model of each has a copy of what they share.
    """
    names = [*LEFTOVERS, *(f"{name}-*.safetensors" for name in TRAINING_SETS if chosen in (None, name))]
    for path in [path for name in names for pattern in (name, f"*/{name}") for path in folder.glob(pattern)]:
        path.unlink()
    if chosen is None:
        for path in folder.glob(SHARED):
            path.unlink()
    for path in [*folder.glob(FOLDERS), *folder.glob(f"*/{FOLDERS}")]:
        shutil.rmtree(path)


class Training:
    """The data and the stages of a training; the settings of the networks are those of the first plan."""

    def __init__(self, plans: list[Plan], work: Path, device: torch.device):
        first = plans[0]
        self.plans, self.first, self.work, self.device = plans, first, work, device
        self.recipe, self.schema, self.folds = first.recipe, first.schema, first.folds
        self.folders = [work / plan.recipe.name if first.joint_recipes else work for plan in plans]
        self.answers = list(dict.fromkeys(answer for plan in plans for answer in plan.answers))
        self.galaxies = self.load(first.table, unlabelled=first.synthetic)
        self.split = self.galaxies.table["split"]
        # Rows that train any network; ambiguous ones train only its morphology outputs.
        self.rows = np.flatnonzero(roles.trains(self.split))
        self.columns = [plan.column for plan in plans]
        self.real = Examples.from_galaxies(self.galaxies, self.rows, self.answers, self.schema, self.columns)
        # Unlabelled objects kept out of all training, on which the scatter between networks is measured.
        self.reserved = first.table.iloc[:0]
        if self.folds:
            self.reserved = reserved(first.table, synthetic=first.synthetic, seed=first.seed)

    def load(self, table: pd.DataFrame, *, unlabelled: bool) -> Galaxies:
        plan = self.first
        return load_galaxies(
            plan.stores, table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=unlabelled
        )

    def committee(self, name: str, synthetic_sets: Sequence[Examples | None]) -> list[Network]:
        """Train all networks, or load those that are trained; each has its own synthetic set, or all have the same."""
        settings, steps = self.recipe.classifier, self.steps()
        jobs = [
            Job(
                self.work / f"{name}-{k}.safetensors", self.real, synthetic_sets[k % len(synthetic_sets)], settings,
                steps, self.first.seed * 1000 + k, f"{name.replace('_', ' ')} networks",
                np.flatnonzero(roles.trains(self.split, k)[self.rows]) if self.folds else None,
            )
            for k in range(settings.members)
        ]  # fmt: skip
        return train_networks(jobs, self.device)

    def steps(self) -> int:
        """Return the number of steps of each network, the same for all committees."""
        path, recipe = self.work / "steps.json", self.recipe
        if not path.is_file():
            parallel = min(default_workers(), recipe.classifier.members) if self.device.type == "cpu" else 1
            rounds = -(-recipe.classifier.members // parallel)
            # The budget is split between two committees even if only one is trained, so that --no-synthetic compares.
            fraction = 1 - PREFILTER_FRACTION
            if self.first.rules.inject is not None and recipe.synthetic.injected:
                fraction -= MAPS_FRACTION
            if recipe.synthetic.positives:
                fraction -= GENERATOR_FRACTION + SAMPLING_FRACTION
            seconds = self.first.seconds(fraction / (2 * rounds))
            steps = train.affordable_steps(self.real, recipe.classifier, device=self.device, seconds=seconds)
            write_json(path, {"steps": steps})
        return int(read_json(path)["steps"])

    def generator(self) -> dict[str, Any] | None:
        """Train the generator of whole images and return its summary; None if no target needs one."""
        path, plan = self.work / "generator.json", next((p for p in self.plans if p.recipe.synthetic.positives), None)
        if plan is None:
            return None
        if not path.is_file():
            settings = plan.recipe.generator
            assert not isinstance(settings, MapSettings)  # see `check`
            galaxies = self.galaxies.generator_set(settings)
            result: dict[str, Any] = backends.train(
                galaxies, plan.schema, [s.name for s in plan.stores], settings, self.work, seed=plan.seed,
                device=self.device, seconds=plan.seconds(GENERATOR_FRACTION),
            )  # fmt: skip
            result |= {"galaxies": len(galaxies.images), "kind": settings.kind, "start": settings.start}
            write_json(path, result)
        return dict(read_json(path))

    def synthetic_examples(self, member: int, reference: Network) -> Examples | None:
        """Return the synthetic galaxies of all targets for one network, or for all; None where no target is left."""
        combined = None
        for k, (plan, folder) in enumerate(zip(self.plans, self.folders, strict=True)):
            work = folder / f"fold-{member}" if member else folder
            if not (work / SYNTHETIC).is_file():
                write_json(work / SYNTHETIC, self._make_synthetic(plan, work, reference.only(k), member))
            if not (work / "synthetic.zarr").is_dir():
                continue
            made = read_synthetic_set(work / "synthetic.zarr", self.schema.name)
            # A synthetic galaxy of one target may be a positive or a negative of another one.
            columns = [made.target if p is plan else targets_of(made.labels, self.schema, p.rules) for p in self.plans]
            examples = synthetic.examples_of(made, np.stack(columns, 1), self.answers, self.schema)
            combined = examples if combined is None else combined.joined(examples)
        return combined

    def _make_synthetic(self, plan: Plan, work: Path, reference: Network, member: int) -> dict[str, Any]:
        """Write the synthetic training set of one target for the network `member`; return its counts.

        `reference` was not trained on the fold of that network, and neither galaxies of the fold nor reserved objects
        are hosts or conditions. So the network does not depend on its fold, not even through the choice of hosts and
        mined negatives. Whole images that a network trained on real galaxies alone rejects are dropped.
        """
        recipe, rules, galaxies = plan.recipe, plan.rules, self.galaxies.of(plan.column)
        sets: list[SyntheticSet] = []
        counts: dict[str, Any] = {"dropped": {}}
        if rules.inject is not None and recipe.synthetic.injected:
            rows = galaxies.not_held_out(member, set(self.reserved["object"]))
            candidates = synthetic.candidates_of(
                galaxies, rows, plan.stores, reference, self.answers, plan.schema, self.device
            )
            injected, injection_counts = synthetic.inject(
                candidates, plan.schema, rules, recipe.synthetic, synthetic.map_settings(recipe), work,
                seed=plan.seed + 1009 * member, device=self.device,
                seconds=plan.seconds(MAPS_FRACTION / max(plan.folds, 1)),
            )  # fmt: skip
            sets.append(injected)
            counts |= injection_counts
        if recipe.synthetic.positives:
            conditions, table = galaxies.conditions(self.rows), galaxies.table.iloc[self.rows]
            write_conditions(conditions, table["target"].to_numpy(), table["store"].to_numpy(), work / CONDITIONS)
            generated, counts["dropped"] = synthetic.generate(
                backends.load(self.work), galaxies, self.rows, conditions, reference, self.answers, plan,
                recipe.synthetic, seed=plan.seed, device=self.device, seconds=plan.seconds(SAMPLING_FRACTION),
            )  # fmt: skip
            sets.append(generated)
        combined = SyntheticSet.joined(sets) if sets else None
        kept = 0 if combined is None else int(combined.synthetic.sum())
        counts |= {"all": kept + sum(counts["dropped"].values()), "kept": kept}
        counts["kept_positive"] = 0 if combined is None else int((combined.target == 1).sum())
        if combined is not None and counts["kept_positive"]:
            answer = [*rules.inject.values][:1] if rules.inject is not None else [*rules.synthetic.set][:2]
            sheet(combined, work / "synthetic.png", answer, f"synthetic {recipe.name}; last: synthetic negatives")
            provenance = {"seed": plan.seed, "recipe": recipe.hash}
            provenance |= {"without": roles.fold_name(member)} if plan.folds else {}
            write_synthetic_set(combined, work / "synthetic.zarr", f"synthetic-{recipe.name}", plan.schema, provenance)
        return counts

    def prefilter(self, networks: list[Network]) -> None:
        """Train a small network on the scores of the delivered ones, for each target; none with too few images.

        The images may include calibration and test objects: their labels are not used, and no metric of the prefilter
        is reported on them.
        """
        settings, plan = self.recipe.prefilter, self.first
        paths = [folder / PREFILTER_FILE for folder in self.folders]
        if all(path.is_file() for path in paths) or not settings.steps:
            return
        images = prefilter_sample(plan.stores, settings.sample, plan.seed, plan.recipe.size)
        if len(images) < MIN_PREFILTER_IMAGES:
            return
        scores = np.empty((len(images), len(paths)), np.float32)
        with track("prefilter: training images", len(images), "galaxies") as advance:
            for start in range(0, len(images), BATCH):
                batch = slice(start, start + BATCH)
                scores[batch] = ensemble.member_scores(networks, images[batch], self.device).mean(0)
                advance(len(images[batch]))
        seconds = plan.seconds(PREFILTER_FRACTION)
        network = train_prefilter(
            images, scores, steps=settings.steps, seed=plan.seed, device=self.device, seconds=seconds
        )
        for k, path in enumerate(paths):
            save_prefilter(Prefilter(network.only(k)), path)

    def write(
        self, k: int, networks: list[Network], calibrating: Scores, report: dict[str, Any], started: float
    ) -> Model:
        """Calibrate and write the model of target `k`."""
        plan, folder = self.plans[k], self.folders[k]
        scores, correction = calibrating.committee(report["chosen"], k)
        factors = correction["factors"] if correction else None
        table = self.galaxies.table[self.split != ""]
        splits = table[[name for name in model.SPLITS if name != "target"]].assign(target=table[plan.column])
        report |= {
            "crossfit": correction,
            "calibration_gain": calibrating.gains[k] if calibrating.gains else None,
            "classifier_steps": self.steps(),
            "synthetic": read_json(folder / SYNTHETIC) if self.first.synthetic else None,
            "seconds": round(time.monotonic() - started, 1),
        }
        return model.write_model(
            folder, recipe=plan.recipe, target=plan.recipe.name, schema=self.schema, size=self.recipe.size,
            seed=self.first.seed, answers=self.answers, networks=[network.only(k) for network in networks],
            calibration=calibration.fit(*crossfit.calibration_set(scores, calibrating.targets[:, k], factors)),
            splits=splits, metrics=report, extra={
                "request": plan.request, "request_hash": digest(plan.request),
                "radius": identity.radius_of(plan.stores), "imaging": _imaging(plan, splits),
                **({"grades": plan.provenance} if plan.graded_scans else {}),
            },
        )  # fmt: skip


class Scores:
    """Scores of the held-out objects of one use by each committee of networks, and their metrics.

    With cross-fitting each object is scored by the network that was not trained on it.
    """

    def __init__(self, training: Training, networks: Mapping[str, list[Network]], use: Callable[..., np.ndarray]):
        table, split, device = training.galaxies.table, training.split, training.device
        rows = np.flatnonzero(use(split) & roles.one_row_per_object(table))
        images, folds = training.galaxies.images[rows], roles.fold_numbers(split)[rows]
        self.training, self.folds = training, training.folds
        self.targets = table[training.columns].to_numpy(np.float32)[rows]
        self.labels = training.galaxies.labels_and_votes(training.schema).iloc[rows]
        self.outputs = {
            name: ensemble.out_of_fold(each, images, folds, device)
            if self.folds
            else ensemble.member_outputs(each, images, device)
            for name, each in networks.items()
        }
        self.unlabelled: dict[str, np.ndarray] = {}
        if self.folds:
            images = training.load(training.reserved, unlabelled=True).images
            self.unlabelled = {name: ensemble.member_scores(each, images, device) for name, each in networks.items()}
        # Ambiguous galaxies count as no targets: a survey contains them, too (`galscan.stats.calibration`).
        self.gains = [
            metrics.gain(
                self.outputs[WITH_SYNTHETIC][0][..., k], self.outputs[REAL][0][..., k], self.targets[:, k] == 1,
                training.first.seed,
            )
            for k in range(len(training.plans)) if WITH_SYNTHETIC in networks
        ]  # fmt: skip

    def committee(self, name: str, k: int) -> tuple[np.ndarray, dict[str, Any] | None]:
        """Return scores on the scale of the mean over all networks, which a scan uses, and the correction applied."""
        scores = self.outputs[name][0][..., k]
        if not self.folds:
            return scores.mean(0), None
        corrected, correction = crossfit.committee_scores(scores[0], self.targets[:, k], self.unlabelled[name][..., k])
        return corrected, {"folds": self.folds, **correction}

    def report(self, k: int) -> dict[str, Any]:
        """Return the metrics of target `k`."""
        targets, answers, schema = self.targets[:, k], self.training.answers, self.training.schema
        summaries = {
            name: metrics.summarise(scores[..., k], targets == 1, self.training.first.seed, self.committee(name, k)[0])
            for name, (scores, _) in self.outputs.items()
        }
        counts = {"positives": targets == 1, "negatives": targets == 0, "ambiguous": np.isnan(targets)}
        return dict.fromkeys(TRAINING_SETS) | summaries | {
            "gain": self.gains[k] if self.gains else None,
            "test": {name: int(rows.sum()) for name, rows in counts.items()}
            | {"prevalence": float((targets == 1).mean())},
            "morphology": {
                name: morphology.evaluate(raw, self.labels, answers, schema) for name, (_, raw) in self.outputs.items()
            } if answers else None,
        }  # fmt: skip


def delivered(plans: Sequence[Plan], gains: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return which networks are delivered, and a description of the rule that decided.

    With a dozen calibration positives hardly any gain is significant. So networks trained with a feature whose gain
    the benchmark proves are delivered unless the calibration set shows harm; other synthetic galaxies only where the
    calibration set shows a significant gain. The test set of a fixed split does not enter the decision. With
    cross-fitting the same scores decide and are reported; the bias is small: one of two, chosen if it is clear.
    """
    shown = "the out-of-fold scores show" if plans[0].folds else "the calibration set shows"
    if not gains:
        return REAL, "no synthetic galaxies"
    if any(gain["hi"] < 0 for gain in gains):
        return REAL, f"{shown} harm: the upper bound of the gain is below zero"
    if any(gain["lo"] > 0 for gain in gains):
        return WITH_SYNTHETIC, f"{shown} a gain: its lower bound is above zero"
    rules = [plan.rules.inject for plan in plans if not plan.recipe.synthetic.positives]
    if len(rules) == len(plans) and all(rule is not None and rule.feature in PROVEN for rule in rules):
        return WITH_SYNTHETIC, f"a feature proven by the benchmark, and {shown} no harm"
    return REAL, f"no feature proven by the benchmark, and {shown} no certain gain"


def _imaging(plan: Plan, splits: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the distinct imaging descriptions of the stores in the calibration set."""
    names = set(splits.loc[roles.calibrates(splits["split"]), "store"])
    imaging = [identity.imaging_of(store) for store in plan.stores if store.name in names]
    return [entry for k, entry in enumerate(imaging) if entry not in imaging[:k]]
