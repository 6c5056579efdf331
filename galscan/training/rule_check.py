"""Check of a recipe's rules on labelled galaxies, before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.recipe import Recipe
from galscan.labels.rules import Rule, parse_rule
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules
from galscan.models import roles
from galscan.models.roles import one_row_per_object
from galscan.store.layout import Store
from galscan.training.dataset import check_counts, check_sizes, read_table
from galscan.training.split import folds_of, split_objects

KINDS = ("positive", "negative", "ambiguous", "not_asked", "unlabelled", "both")
ADVISED = 20  # calibration positives; with fewer, purity is poorly constrained
RARELY = 0.05  # fraction of the labelled objects with an answer, below which there is a warning


def read(recipe: Recipe, schema: Schema, stores: Sequence[Store], seed: int = 0) -> pd.DataFrame:
    """Read ids, labels, target, split and kind (one of `KINDS`) of all usable objects.

    Unlike in training, conflicting rules or too few objects are no errors here, so that all problems are reported.
    """
    rules = recipe.schemas[schema.name]
    # A negative rule that cannot conflict with the positive rule.
    complement = rules.model_copy(update={"negative": f"not ({rules.positive})"})
    table = read_table(stores, schema, complement)
    columns = columns_of(table, schema)
    yes, not_yes = parse_rule(rules.positive, schema.names).evaluate(columns)
    no, not_no = parse_rule(rules.negative, schema.names).evaluate(columns)
    labelled = table[schema.names].notna().any(axis=1).to_numpy()
    conditions = [yes & no, yes, no, not_yes & not_no, labelled]
    table["kind"] = np.select(conditions, ["both", *KINDS[:4]], "unlabelled")
    table["target"] = np.select([yes & ~no, no & ~yes], [1.0, 0.0], np.nan)
    folds, _ = folds_of(recipe, table, synthetic=True, whole_images=recipe.synthetic.positives > 0)
    table["split"] = split_objects(table, recipe.split, seed, folds)
    return table


def columns_of(table: pd.DataFrame, schema: Schema) -> dict[str, np.ndarray]:
    """Return the labels of `table` as the columns of rules."""
    return {name: table[name].to_numpy() for name in schema.names}


def counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the number of objects of each kind by store and, for several stores, in total."""
    groups = [*table.groupby("store", sort=False)]
    groups += [("all", table)] if len(groups) > 1 else []
    return [
        {"store": name, "objects": len(rows)} | {kind: int((rows["kind"] == kind).sum()) for kind in KINDS}
        for name, rows in groups
    ]


def splits(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the numbers of positive, negative and ambiguous objects in each split."""
    folds = roles.fold_numbers(table["split"]).max(initial=-1) + 1
    once, counts = table[one_row_per_object(table)], {}
    for split in [roles.fold_name(k) for k in range(folds)] or ("train", "calibration", "test"):
        target = once.loc[once["split"] == split, "target"]
        kinds = {"positive": target == 1, "negative": target == 0, "ambiguous": target.isna()}
        counts[split] = {kind: int(rows.sum()) for kind, rows in kinds.items()}
    return counts


def waterfall(text: str, table: pd.DataFrame, schema: Schema) -> dict[str, Any]:
    """Evaluate a rule condition by condition.

    Returns ``join`` (``and``, ``or`` or empty) and ``steps``, one per condition, with numbers of objects: ``true`` for
    the condition alone, ``not_asked`` an answer it needs, ``so_far`` after this and all earlier conditions, and
    ``without`` this condition.
    """
    columns = columns_of(table, schema)
    join, conditions = parse_rule(text, schema.names).operands()
    joined = np.logical_or if join == "or" else np.logical_and
    outcomes = [condition.evaluate(columns) for condition in conditions]
    steps = []
    for k, condition in enumerate(conditions):
        rest = [true for n, (true, _) in enumerate(outcomes) if n != k]
        true, false = outcomes[k]
        steps.append({
            "condition": condition.text, "true": int(true.sum()), "not_asked": int((~true & ~false).sum()),
            "so_far": int(joined.reduce([true for true, _ in outcomes[: k + 1]]).sum()),
            "without": int(joined.reduce(rest).sum()) if rest else None,
        })  # fmt: skip
    return {"join": join, "steps": steps}


def source_rules(rules: LabelRules) -> Iterator[tuple[str, str]]:
    """Yield key and text of the rules that select the galaxies from which synthetic ones are made."""
    yield "synthetic.from", rules.synthetic.base
    yield from ((f"hard_negatives.{k}.from", rule.base) for k, rule in enumerate(rules.hard_negatives))
    named = [("inject", rules.inject)] if rules.inject is not None else []
    for key, rule in [*named, *((f"inject_negatives.{k}", rule) for k, rule in enumerate(rules.inject_negatives))]:
        yield from (
            (f"{key}.{name}", getattr(rule, name)) for name in ("hosts", "donors", "measure") if getattr(rule, name)
        )
    if rules.mined_negatives:
        yield "mined_negatives", rules.mined_negatives


def sources(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> list[dict[str, Any]]:
    """Return the numbers of galaxies that satisfy each of `source_rules`, in total and in training."""
    columns = columns_of(table, schema)
    held_out = table.loc[~roles.trains(table["split"]) & (table["split"] != ""), "object"]
    training = ~table["object"].isin(set(held_out)).to_numpy()
    result = []
    for key, text in source_rules(rules):
        true = parse_rule(text, schema.names).evaluate(columns)[0]
        result.append({"key": key, "rule": " ".join(text.split()), "match": int(true.sum()),
                      "training": int((true & training).sum())})  # fmt: skip
    return result


def hardness(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return the similarity of each object to a target: 2 for hard negatives, 1 if one condition fails, else 0."""
    columns = columns_of(table, schema)
    hard = np.zeros(len(table), bool)
    for rule in rules.hard_negatives:
        in_ranges = [(columns[a] >= low) & (columns[a] <= high) for a, (low, high) in rule.set.items()]
        hard |= np.logical_and.reduce([parse_rule(rule.base, schema.names).evaluate(columns)[0], *in_ranges])
    join, conditions = parse_rule(rules.positive, schema.names).operands()
    failed = np.sum([~condition.evaluate(columns)[0] for condition in conditions], axis=0)
    return np.select([hard, (failed == 1) & (join == "and")], [2, 1], 0)


def problem(recipe: Recipe, schema: Schema, table: pd.DataFrame, stores: Sequence[Store]) -> str | None:
    """Return the reason why the target cannot be trained on these stores, in one line, or None."""
    rules = recipe.schemas[schema.name]
    both = table[table["kind"] == "both"]
    if len(both):
        return (
            f"{len(both):,} objects are positive and negative at once, '{both['id'].iloc[0]}' of "
            f"{both['store'].iloc[0]} for one; make the two rules exclude each other"
        )
    try:
        check_counts(table, rules, recipe.name)
        check_sizes(stores, recipe)
    except InputError as error:
        return str(error)
    start = sources(rules, table, schema)[0]
    if recipe.synthetic.positives and not start["training"]:
        return (
            f"no training galaxy satisfies synthetic.from, '{start['rule']}': loosen it, or generate none "
            "([synthetic] positives = 0)"
        )
    return None


def warnings(recipe: Recipe, schema: Schema, table: pd.DataFrame) -> list[str]:
    """Return warnings about problems that do not prevent training."""
    rules, messages = recipe.schemas[schema.name], []
    by_store = table.groupby("store", sort=False)["kind"].value_counts().unstack(fill_value=0)
    by_store = by_store.reindex(columns=KINDS, fill_value=0)
    calibration_positives = int((roles.calibrates(table["split"]) & (table["target"] == 1)).sum())
    if 0 < calibration_positives < ADVISED:
        messages.append(
            f"{calibration_positives} positives for calibration: with fewer than {ADVISED} the intervals of "
            "purity are wide; label more, or grade a scan (galscan vet)"
        )
    if (by_store["negative"] > 0).sum() > 1 and (by_store["positive"] > 0).sum() == 1:
        messages.append(
            f"all positives are in {by_store['positive'].idxmax()}, negatives in other stores as well: a classifier "
            "may learn the store"
        )
    if not _has_gap(rules, schema):
        messages.append(
            "the rules leave nothing ambiguous: every borderline galaxy becomes positive or negative; leave a gap"
        )
    messages += _rarely_asked(rules, table, schema)
    if recipe.synthetic.positives:
        messages += _contradicted(rules, table, schema)
    for source in sources(rules, table, schema)[1:]:
        settings = recipe.synthetic
        count = {"hard": settings.positives, "mine": settings.mined}.get(source["key"][:4], settings.injected)
        if count and not source["training"]:
            messages.append(f"no training galaxy satisfies {source['key']}, '{source['rule']}': nothing is made of it")
    return messages


def _has_gap(rules: LabelRules, schema: Schema) -> bool:
    """Return whether some labels make a galaxy neither positive nor negative."""
    random = np.random.default_rng(0)
    columns = {a.name: random.uniform(a.low, a.high, 4000) for a in schema.answers}
    yes, no = (parse_rule(text, schema.names).evaluate(columns)[0] for text in (rules.positive, rules.negative))
    return not (yes | no).all()


def _rarely_asked(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> Iterator[str]:
    """Yield warnings about answers of a rule or of the morphology that are known for few or no objects."""
    named = {n for text in (rules.positive, rules.negative) for n in parse_rule(text, schema.names).names}
    labelled = table.loc[table["kind"] != "unlabelled", schema.names]
    groups: dict[float, list[str]] = {}
    for name in schema.names:
        if name in named or name in rules.morphology:
            groups.setdefault(float(labelled[name].notna().mean()) if len(labelled) else 0.0, []).append(name)
    for fraction, names in groups.items():
        if fraction == 0:
            yield f"{', '.join(names)}: known of no object"
        elif fraction < RARELY and (in_rules := [name for name in names if name in named]):
            yield f"{', '.join(in_rules)}: asked of {fraction:.1%} of the labelled objects only"


def _contradicted(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> Iterator[str]:
    """Yield warnings about synthetic galaxies whose labels contradict their class."""
    positive, labels = parse_rule(rules.positive, schema.names), columns_of(table, schema)
    classes = {"synthetic": rules.synthetic} | {f"hard_negatives.{k}": r for k, r in enumerate(rules.hard_negatives)}
    for key, rule in classes.items():
        pool = parse_rule(rule.base, schema.names).evaluate(labels)[0]
        if not pool.any():
            continue
        # The conditions that would be sampled, with the middle of each range.
        middle = {name: np.full(pool.sum(), (low + high) / 2) for name, (low, high) in rule.set.items()}
        conditions = {name: values[pool] for name, values in labels.items()} | middle
        fraction = float(positive.evaluate(conditions)[0].mean())
        if key == "synthetic" and fraction < 0.5:
            yield f"{fraction:.0%} of the galaxies of {key} satisfy the positive rule; set the answers that it needs"
        elif key != "synthetic" and fraction > 0.05:
            yield f"{fraction:.0%} of the galaxies of {key} satisfy the positive rule; set an answer that violates it"


def named(rule: Rule, schema: Schema, table: pd.DataFrame, row: int, most: int = 2) -> list[str]:
    """Return up to `most` answers of one object that `rule` uses, as short lines for a caption."""
    stems = {f"{task.id}_{task.stem}_" for task in schema.tasks}
    short = {name: next((name.removeprefix(s) for s in stems if name.startswith(s)), name) for name in rule.names}
    return [f"{short[name]} {table[name].iloc[row]:.2f}" for name in rule.names[:most]]
