"""Plan of a training: inputs, split and settings, checked before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from galscan.core import home
from galscan.core.errors import InputError
from galscan.labels.recipe import Recipe, load_recipe
from galscan.labels.schema import Schema, load_schema
from galscan.labels.settings import LabelRules
from galscan.models import roles
from galscan.models.roles import one_row_per_object
from galscan.store import layout
from galscan.surveys.resampling import pixels_text
from galscan.synthesis.features.base import has_model, has_prior
from galscan.training import graded_labels as grading
from galscan.training.dataset import check_counts, check_sizes, join_targets, read_table, target_column
from galscan.training.split import folds_of, split_objects


@dataclass(frozen=True)
class Plan:
    """A checked plan: recipe, stores, split objects, grades and output folder."""

    recipe: Recipe
    schema: Schema
    stores: list[layout.Store]
    table: pd.DataFrame
    out: Path
    budget: float | None  # minutes
    synthetic: bool
    seed: int
    graded_scans: list[grading.GradedLabels] = field(default_factory=list)
    grades: list[dict[str, Any]] = field(default_factory=list)
    """Counts of the grades, one entry for each of `graded_scans` (`galscan.training.graded_labels.add_labels`)."""
    joint_recipes: tuple[str, ...] = ()
    """Hashes of the recipes of all targets, if one network is trained for several."""
    folds: int = 0
    """Folds of cross-fitting, one for each network; 0 for a fixed split."""
    fixed_because: str = ""
    """Reason why the split is fixed although the recipe has cross-fitting."""

    @property
    def rules(self) -> LabelRules:
        return self.recipe.schemas[self.schema.name]

    @property
    def answers(self) -> list[str]:
        """Answers that the networks predict beside the target; for a tree, all answers of a question."""
        return self.schema.complete(self.rules.morphology)

    @property
    def request(self) -> dict[str, Any]:
        """All settings that affect the result; a model folder resumes only with the same request."""
        return {
            "recipe": self.recipe.hash, "stores": [[s.name, s.content_hash] for s in self.stores],
            "synthetic": self.synthetic, "seed": self.seed, "budget": self.budget,
            # Only if used, so that requests of older models are unchanged.
            **({"grades": [[s.fingerprint, s.hash] for s in self.graded_scans]} if self.graded_scans else {}),
            **({"together": list(self.joint_recipes)} if self.joint_recipes else {}),
        }  # fmt: skip

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Scans whose grades were trained on, for ``model.json``."""
        return [
            {"run": str(s.run), "fingerprint": s.fingerprint, "sha256": s.hash, **counts}
            for s, counts in zip(self.graded_scans, self.grades, strict=True)
        ]

    def seconds(self, fraction: float) -> float | None:
        return None if self.budget is None else self.budget * 60 * fraction

    @property
    def column(self) -> str:
        """Name of the table column of this target."""
        return target_column(self.recipe.name) if self.joint_recipes else "target"

    def inputs(self) -> list[str]:
        """Return target and stores as lines of text."""
        size = self.recipe.size
        stores = [
            f"store        {s.name}: {s.count:,} objects, {pixels_text(s.size, size)} ({s.path})" for s in self.stores
        ]
        return [f"target       {self.recipe.name}: {self.recipe.title}", *stores]

    def describe(self) -> str:
        """Return the plan as text."""
        r, t, rows = self.recipe, self.table, self.inputs()
        labelled = int(t[self.schema.names].notna().any(axis=1).sum())
        rows += [f"labels       {self.schema.name}: {labelled:,} labelled, {len(t) - labelled:,} not"]
        crossfitted = f"cross-fitting in {self.folds} folds: each network is trained without one and scores it"
        if self.folds or self.fixed_because:
            rows += [f"split        {crossfitted if self.folds else f'fixed: {self.fixed_because}'}"]
        names = [roles.fold_name(k) for k in range(self.folds)] or ["train", "calibration", "test"]
        for split in names:
            target = t.loc[(t["split"] == split) & one_row_per_object(t), self.column]
            counts = (target == 1).sum(), (target == 0).sum(), target.isna().sum()
            rows += ["{:<12} {:,} positive, {:,} negative, {:,} ambiguous".format(split, *counts)]
        rows += grading.describe(self.graded_scans, self.grades)
        rows += [f"generator    {self._generator()}"]
        if self.synthetic:
            rows += [f"synthetic    {r.synthetic.summary(self.rules)}"]
        members, prefilter = r.classifier.members, r.prefilter
        committees = f"{members} real-only" + (f" and {members} real + synthetic" if self.synthetic else "")
        rows += [f"classifiers  {committees}" + (f" on {r.classifier.network}" if r.classifier.encoder else "")]
        steps = f"{prefilter.steps:,} steps on up to {prefilter.sample:,} images" if prefilter.steps else "none"
        time = f"at most about {self.budget:g} minutes" if self.budget else "as long as the steps take (see --budget)"
        return "\n".join([*rows, f"prefilter    {steps}", f"time         {time}", f"output       {self.out}"])

    def _generator(self) -> str:
        r, injects = self.recipe, self.rules.inject is not None and self.recipe.synthetic.injected > 0
        if not self.synthetic or not (r.synthetic.positives or (r.generator.kind == "maps" and injects)):
            return "none"
        rule = self.rules.inject
        if r.generator.kind == "maps" and rule and not has_prior(rule.feature):
            return "none: maps are variants of those measured"
        if r.generator.kind == "maps" and (r.generator.maps == "prior" or (rule and not has_model(rule.feature))):
            return "none: maps are sampled from the prior"
        if not r.generator.steps:
            return f"{r.generator.kind}, the weights of {r.generator.start} as they are"
        return f"{r.generator.kind}, {r.generator.steps:,} steps of {r.generator.batch}"


def make_plan(
    target: str,
    survey: str | Sequence[str],
    store: str | Path | Sequence[str | Path],
    out: str | Path | None,
    budget: float | None,
    synthetic: bool,
    seed: int,
    graded_scans: Sequence[grading.GradedLabels] = (),
) -> Plan:
    """Make the plan of one target: resolve names, read labels, split objects, then add grades."""
    if budget is not None and not budget > 0:
        raise InputError(f"--budget {budget:g}: give minutes above 0")
    recipe = load_recipe(target)
    if recipe.classifier.encoder:
        from galscan.models.encoders import find_encoder

        find_encoder(recipe.classifier.encoder)
    for scan in graded_scans:
        if scan.target not in (None, recipe.name):
            raise InputError(
                f"{scan.run} was a scan for '{scan.target}': its grades cannot be used for '{recipe.name}'"
            )
    paths = home.find_stores(survey, store)
    by_default = not paths
    if by_default:
        paths = [*sorted((home.data_home() / "surveys").glob("*.zarr"))]
    if not paths:
        raise InputError(
            f"no labelled survey to train on in {home.data_home() / 'surveys'}: build one with "
            "galscan ingest --survey local --path IMAGES --catalog TABLE --labels SCHEMA, or name a store with --store"
        )
    if len({p.resolve() if isinstance(p, Path) else p for p in paths}) < len(paths):
        raise InputError("a store is named twice; name each once")
    stores = [layout.open_store(p) for p in paths]
    if by_default:  # all with enough pixels; if none has, the error below names the first
        stores = [s for s in stores if s.size >= recipe.size] or stores
    given = len(stores)
    stores = grading.add_stores(stores, graded_scans)
    check_sizes(stores, recipe)
    # Stores without labels of the recipe are still used to train the generator.
    schema = load_schema(recipe.schema_for(s for store in stores[:given] for s in store.schemas))
    rules = recipe.schemas[schema.name]
    table = read_table(stores[:given], schema, rules)
    check_counts(table, rules, recipe.name)
    whole_images = synthetic and recipe.synthetic.positives > 0
    folds, reason = folds_of(recipe, table, synthetic=synthetic, whole_images=whole_images)
    table["split"] = split_objects(table, recipe.split, seed, folds)
    grades: list[dict[str, Any]] = []
    if graded_scans:
        table, grades = grading.add_labels(table, stores, graded_scans)
    return Plan(
        recipe, schema, stores, table, Path(out) if out else home.model_path(recipe.name), budget, synthetic, seed,
        list(graded_scans), grades, folds=folds, fixed_because=reason,
    )  # fmt: skip


def make_plans(
    targets: Sequence[str],
    survey: str | Sequence[str],
    store: str | Path | Sequence[str | Path],
    out: str | Path | None,
    budget: float | None,
    synthetic: bool,
    seed: int,
    graded_scans: Sequence[grading.GradedLabels] = (),
) -> list[Plan]:
    """Make the plans of one target, or of several targets of one network, with a common split of objects.

    Settings of the networks, the split and the prefilter are those of the first target's recipe.
    """
    if len(targets) == 1:
        return [make_plan(targets[0], survey, store, out, budget, synthetic, seed, graded_scans)]
    if graded_scans:
        raise InputError("--grades apply to a single target: train that target alone, or leave --grades out")
    plans = [make_plan(target, survey, store, None, budget, synthetic, seed) for target in targets]
    first = plans[0]
    names = [plan.recipe.name for plan in plans]
    if len(set(names)) < len(names):
        raise InputError(f"a target is named twice: {', '.join(names)}")
    for plan in plans:
        if plan.recipe.size != first.recipe.size or plan.schema.name != first.schema.name:
            raise InputError(
                f"'{plan.recipe.name}' uses {plan.schema.name} labels at {plan.recipe.size} px, "
                f"'{first.recipe.name}' uses {first.schema.name} labels at {first.recipe.size} px: "
                "train them one after the other"
            )
    whole_images = synthetic and any(plan.recipe.synthetic.positives for plan in plans)
    folds, reason = folds_of(first.recipe, first.table, synthetic=synthetic, whole_images=whole_images)
    table = join_targets({plan.recipe.name: plan.table for plan in plans}, first.recipe.split, seed, folds)
    folder = Path(out) if out else home.model_path("-".join(names)[:64].rstrip("-."))
    hashes = tuple(plan.recipe.hash for plan in plans)
    common = {"table": table, "joint_recipes": hashes, "folds": folds, "fixed_because": reason}
    return [replace(plan, out=folder / plan.recipe.name, **common) for plan in plans]
