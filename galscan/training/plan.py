"""What train-rare will do, decided and checked before anything long begins."""

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
from galscan.models.roles import once
from galscan.store import layout
from galscan.surveys.resampling import pixels_text
from galscan.training import graded_labels as grading
from galscan.training.dataset import check_counts, read_table, target_column, together
from galscan.training.split import folds_of, split_objects


@dataclass(frozen=True)
class Plan:
    """What will be trained on what; decided before anything long begins."""

    recipe: Recipe
    schema: Schema
    stores: list[layout.Store]
    table: pd.DataFrame
    out: Path
    budget: float | None  # minutes
    synthetic: bool
    seed: int
    vetted: list[grading.GradedLabels] = field(default_factory=list)
    grades: list[dict[str, Any]] = field(default_factory=list)
    """What came of the grades, one entry for each of `vetted` (`galscan.training.graded_labels.add_labels`)."""
    together: tuple[str, ...] = ()
    """Hashes of the recipes of all targets that one network learns, where they are several."""
    folds: int = 0
    """Folds of cross-fitting, one for each network; 0 for a fixed split."""
    fixed_because: str = ""
    """Why the split is fixed though the recipe says cross-fitting, in words."""

    @property
    def rules(self) -> LabelRules:
        return self.recipe.schemas[self.schema.name]

    @property
    def answers(self) -> list[str]:
        """What the networks learn beside the target: of a tree, whole questions."""
        return self.schema.complete(self.rules.morphology)

    @property
    def request(self) -> dict[str, Any]:
        """All that decides the result; a folder never mixes two of them."""
        return {
            "recipe": self.recipe.hash, "stores": [[s.name, s.content_hash] for s in self.stores],
            "synthetic": self.synthetic, "seed": self.seed, "budget": self.budget,
            # Only where there are some: models of before stay what was asked for.
            **({"grades": [[v.fingerprint, v.hash] for v in self.vetted]} if self.vetted else {}),
            **({"together": list(self.together)} if self.together else {}),
        }  # fmt: skip

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Which scans' grades taught, for ``model.json``."""
        return [
            {"run": str(v.run), "fingerprint": v.fingerprint, "sha256": v.hash, **counts}
            for v, counts in zip(self.vetted, self.grades, strict=True)
        ]

    def seconds(self, share: float) -> float | None:
        return None if self.budget is None else self.budget * 60 * share

    @property
    def column(self) -> str:
        """The column of a table that holds this target."""
        return target_column(self.recipe.name) if self.together else "target"

    def describe(self) -> str:
        """Return the plan for people."""
        r, t = self.recipe, self.table
        rows = [f"target       {r.name}: {r.title}"]
        rows += [
            f"store        {s.name}: {s.count:,} objects, {pixels_text(s.size, r.size)} ({s.path})" for s in self.stores
        ]
        labelled = int(t[self.schema.names].notna().any(axis=1).sum())
        rows += [f"labels       {self.schema.name}: {labelled:,} labelled, {len(t) - labelled:,} not"]
        if self.folds:
            rows += [f"split        cross-fitting in {self.folds} folds: each network trains without one and scores it"]
        elif self.fixed_because:
            rows += [f"split        fixed: {self.fixed_because}"]
        names = [roles.fold_name(k) for k in range(self.folds)] or ["train", "calibration", "test"]
        for split in names:
            part = t.loc[(t["split"] == split) & once(t), self.column]
            positive, negative, ambiguous = (int(n) for n in ((part == 1).sum(), (part == 0).sum(), part.isna().sum()))
            rows += [f"{split:<12} {positive:,} positive, {negative:,} negative, {ambiguous:,} ambiguous"]
        rows += grading.describe(self.vetted, self.grades)
        rows += [f"generator    {self._generator()}"]
        if self.synthetic:
            rows += [f"synthetic    {r.synthetic.summary(self.rules)}"]
        rows += [
            f"classifiers  {r.classifier.members} real-only"
            + (f" and {r.classifier.members} real + synthetic" if self.synthetic else "")
            + (f" on {r.classifier.network}" if r.classifier.encoder else "")
        ]
        look = r.prefilter
        rows += [
            f"first look   {look.steps:,} steps on up to {look.sample:,} pictures"
            if look.steps
            else "first look   none"
        ]
        rows += [
            f"time         at most about {self.budget:g} minutes"
            if self.budget
            else "time         as long as the steps take (see --budget)"
        ]
        return "\n".join([*rows, f"output       {self.out}"])

    def _generator(self) -> str:
        r, injects = self.recipe, self.rules.inject is not None and self.recipe.synthetic.injected > 0
        if not self.synthetic or not (r.synthetic.positives or (r.generator.kind == "maps" and injects)):
            return "none"
        if r.generator.kind == "maps" and r.generator.maps == "prior":
            return "none: maps are drawn from the prior"
        return f"{r.generator.kind}, {r.generator.steps:,} steps of {r.generator.batch}"


def make_plan(
    target: str,
    survey: str | Sequence[str],
    store: str | Path | Sequence[str | Path],
    out: str | Path | None,
    budget: float | None,
    synthetic: bool,
    seed: int,
    vetted: Sequence[grading.GradedLabels] = (),
) -> Plan:
    """Resolve names, read the labels and split the objects; grades come in when that is done.

    Raises
    ------
    InputError
        If recipe, labels and stores do not fit together, or there are too few examples.
    """
    if budget is not None and not budget > 0:
        raise InputError(f"--budget {budget:g}: give minutes above 0")
    recipe = load_recipe(target)
    if recipe.classifier.encoder:
        from galscan.models.encoders import check_encoder

        check_encoder(recipe.classifier.encoder)
    for one in vetted:
        if one.target not in (None, recipe.name):
            raise InputError(
                f"{one.run} was a scan for '{one.target}': what it was graded for says nothing of '{recipe.name}'"
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
    if by_default:  # all with pixels enough; if none has, say so of the first
        stores = [s for s in stores if s.size >= recipe.size] or stores
    named = len(stores)
    stores = grading.add_stores(stores, vetted)
    for s in stores:
        if s.size < recipe.size:
            raise InputError(
                f"{s.path} holds {s.size} px cutouts, the recipe of '{recipe.name}' needs {recipe.size} px; ingest "
                f"with --size {recipe.size} or more, or train by a recipe with size = {s.size} or less"
            )
    # Stores without a label of the recipe's still teach the generator.
    schema = load_schema(recipe.schema_for(s for store in stores[:named] for s in store.schemas))
    rules = recipe.schemas[schema.name]
    table = read_table(stores[:named], schema, rules)
    check_counts(table, rules, recipe.name)
    folds, because = folds_of(recipe, table, synthetic=synthetic, whole=synthetic and recipe.synthetic.positives > 0)
    table["split"] = split_objects(table, recipe.split, seed, folds)
    grades: list[dict[str, Any]] = []
    if vetted:
        table, grades = grading.add_labels(table, stores, vetted)
    return Plan(
        recipe, schema, stores, table, Path(out) if out else home.model_path(recipe.name), budget, synthetic, seed,
        list(vetted), grades, folds=folds, fixed_because=because,
    )  # fmt: skip


def make_plans(
    targets: Sequence[str],
    survey: str | Sequence[str],
    store: str | Path | Sequence[str | Path],
    out: str | Path | None,
    budget: float | None,
    synthetic: bool,
    seed: int,
    vetted: Sequence[grading.GradedLabels] = (),
) -> list[Plan]:
    """Make the plans of one target, or of several that one network is to learn: their objects are split once for all.

    Settings of the networks, the split and the first look are those of the first target's recipe.

    Raises
    ------
    InputError
        If targets, labels and stores do not fit together, or there are too few examples.
    """
    if len(targets) == 1:
        return [make_plan(targets[0], survey, store, out, budget, synthetic, seed, vetted)]
    if vetted:
        raise InputError("--grades are of one target: train it alone, or leave them out")
    plans = [make_plan(target, survey, store, None, budget, synthetic, seed) for target in targets]
    first = plans[0]
    names = [plan.recipe.name for plan in plans]
    if len(set(names)) < len(names):
        raise InputError(f"a target is named twice: {', '.join(names)}")
    for plan in plans:
        if plan.recipe.size != first.recipe.size or plan.schema.name != first.schema.name:
            raise InputError(
                f"'{plan.recipe.name}' learns from {plan.schema.name} labels at {plan.recipe.size} px, "
                f"'{first.recipe.name}' from {first.schema.name} labels at {first.recipe.size} px: "
                "train them one after the other"
            )
    folds, because = folds_of(
        first.recipe,
        first.table,
        synthetic=synthetic,
        whole=synthetic and any(plan.recipe.synthetic.positives for plan in plans),
    )
    table = together({plan.recipe.name: plan.table for plan in plans}, first.recipe.split, seed, folds)
    place = Path(out) if out else home.model_path("-".join(names)[:64].rstrip("-."))
    hashes = tuple(plan.recipe.hash for plan in plans)
    how = {"table": table, "together": hashes, "folds": folds, "fixed_because": because}
    return [replace(plan, out=place / plan.recipe.name, **how) for plan in plans]
