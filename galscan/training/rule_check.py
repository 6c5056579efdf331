"""What a recipe's rules make of labelled galaxies, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.recipe import Recipe
from galscan.labels.rules import Rule, parse_rule
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules, SyntheticRule
from galscan.models import roles
from galscan.models.roles import once
from galscan.store.layout import Store
from galscan.training.dataset import check_counts, read_table
from galscan.training.split import folds_of, split_objects

KINDS = ("positive", "negative", "ambiguous", "not_asked", "unlabelled", "both")
ADVISED = 20  # calibration positives, below which purity is hardly known
SELDOM = 0.05  # of the labelled objects
Columns = Mapping[str, np.ndarray]


def read(recipe: Recipe, schema: Schema, stores: Sequence[Store], seed: int = 0) -> pd.DataFrame:
    """Read ids, labels, target and split of all usable objects, and which of `KINDS` each is.

    Unlike training it goes on where rules contradict each other or find too little, so that all can be told.
    """
    rules = recipe.schemas[schema.name]
    # Read with a rule that cannot contradict itself.
    alone = rules.model_copy(update={"negative": f"not ({rules.positive})"})
    table = read_table(stores, schema, alone)
    columns = columns_of(table, schema)
    yes, not_yes = parse_rule(rules.positive, schema.names).evaluate(columns)
    no, not_no = parse_rule(rules.negative, schema.names).evaluate(columns)
    labelled = table[schema.names].notna().any(axis=1).to_numpy()
    conditions = [yes & no, yes, no, not_yes & not_no, labelled]
    table["kind"] = np.select(conditions, ["both", *KINDS[:4]], "unlabelled")
    table["target"] = np.select([yes & ~no, no & ~yes], [1.0, 0.0], np.nan)
    folds, _ = folds_of(recipe, table, synthetic=True, whole=recipe.synthetic.positives > 0)
    table["split"] = split_objects(table, recipe.split, seed, folds)
    return table


def columns_of(table: pd.DataFrame, schema: Schema) -> dict[str, np.ndarray]:
    """Return the labels of `table` as rules want them."""
    return {name: table[name].to_numpy() for name in schema.names}


def counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how many objects of each kind there are, by store, and in all where there are several."""
    rows = [{"store": name, "objects": len(part)} | _kinds(part) for name, part in table.groupby("store", sort=False)]
    return rows if len(rows) == 1 else [*rows, {"store": "all", "objects": len(table)} | _kinds(table)]


def _kinds(part: pd.DataFrame) -> dict[str, int]:
    return {kind: int((part["kind"] == kind).sum()) for kind in KINDS}


def splits(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return how many positives, negatives and ambiguous objects each part of the split has."""
    of_folds = {split for split in table["split"] if split.startswith(roles.FOLD)}
    return {
        split: {kind: int((part["target"] == value).sum()) for kind, value in (("positive", 1), ("negative", 0))}
        | {"ambiguous": int(part["target"].isna().sum())}
        for split in (sorted(of_folds, key=lambda fold: (len(fold), fold)) or ("train", "calibration", "test"))
        for part in [table[(table["split"] == split) & once(table)]]
    }


def waterfall(text: str, table: pd.DataFrame, schema: Schema) -> dict[str, Any]:
    """Follow a rule condition by condition.

    Returns
    -------
    dict
        ``join`` (``and``, ``or`` or nothing) and ``steps``. Of each step: for how many objects it is ``true`` alone,
        how many were ``not_asked`` what it needs, how many are left ``so_far``, and how many the rule would find
        ``without`` it.
    """
    columns = columns_of(table, schema)
    join, parts = parse_rule(text, schema.names).parts()
    joined = np.logical_or if join == "or" else np.logical_and
    outcomes = [part.evaluate(columns) for part in parts]
    steps = []
    for k, part in enumerate(parts):
        others = [true for n, (true, _) in enumerate(outcomes) if n != k]
        true, false = outcomes[k]
        steps.append({
            "condition": part.text, "true": int(true.sum()), "not_asked": int((~true & ~false).sum()),
            "so_far": int(joined.reduce([true for true, _ in outcomes[: k + 1]]).sum()),
            "without": int(joined.reduce(others).sum()) if others else None,
        })  # fmt: skip
    return {"join": join, "steps": steps}


def starts(rules: LabelRules) -> Iterator[tuple[str, str]]:
    """Yield the rules that say of which galaxies synthetic ones are made, with the keys they stand under."""
    yield "synthetic.from", rules.synthetic.base
    yield from ((f"hard_negatives.{k}.from", rule.base) for k, rule in enumerate(rules.hard_negatives))
    named = [("inject", rules.inject)] if rules.inject is not None else []
    for key, rule in [*named, *((f"inject_negatives.{k}", rule) for k, rule in enumerate(rules.inject_negatives))]:
        yield from ((f"{key}.{part}", getattr(rule, part)) for part in ("hosts", "measure") if getattr(rule, part))
    if rules.mined_negatives:
        yield "mined_negatives", rules.mined_negatives


def sources(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> list[dict[str, Any]]:
    """Return how many galaxies satisfy each of `starts`, and how many of those may train a network."""
    columns = columns_of(table, schema)
    held = table.loc[~roles.trains(table["split"]) & (table["split"] != ""), "object"]
    free = ~table["object"].isin(set(held)).to_numpy()
    found = []
    for key, text in starts(rules):
        true = parse_rule(text, schema.names).evaluate(columns)[0]
        found.append({"key": key, "rule": " ".join(text.split()), "match": int(true.sum()),
                      "training": int((true & free).sum())})  # fmt: skip
    return found


def hardness(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return how likely each object is taken for a target: 2 as a hard negative of the rules, 1 one condition short."""
    columns = columns_of(table, schema)
    hard = np.zeros(len(table), bool)
    for rule in rules.hard_negatives:
        inside = [(columns[a] >= low) & (columns[a] <= high) for a, (low, high) in rule.set.items()]
        hard |= np.logical_and.reduce([parse_rule(rule.base, schema.names).evaluate(columns)[0], *inside])
    join, parts = parse_rule(rules.positive, schema.names).parts()
    missed = sum(~part.evaluate(columns)[0] for part in parts) if join == "and" else np.full(len(table), 9)
    return np.select([hard, np.asarray(missed) == 1], [2, 1], 0)


def problem(recipe: Recipe, schema: Schema, table: pd.DataFrame, stores: Sequence[Store]) -> str | None:
    """Return in one line why the target cannot be trained on these stores; None if it can."""
    rules = recipe.schemas[schema.name]
    both = table[table["kind"] == "both"]
    if len(both):
        return (
            f"{len(both):,} objects are positive and negative at once, '{both['id'].iloc[0]}' of "
            f"{both['store'].iloc[0]} for one; make the two rules exclude each other"
        )
    try:
        check_counts(table.drop(columns=["kind", "split"]), rules, recipe.name)
    except InputError as error:
        return str(error)
    start = sources(rules, table, schema)[0]
    if recipe.synthetic.positives and not start["training"]:
        return (
            f"no training galaxy satisfies synthetic.from, '{start['rule']}': loosen it, or draw none "
            "([synthetic] positives = 0)"
        )
    for store in stores:
        if store.size < recipe.size:
            return (
                f"{store.path} holds {store.size} px cutouts, the recipe needs {recipe.size} px; ingest with "
                f"--size {recipe.size} or more, or train by a recipe with size = {store.size} or less"
            )
    return None


def warnings(recipe: Recipe, schema: Schema, table: pd.DataFrame) -> list[str]:
    """Return what makes no training impossible, but its result worth less."""
    rules, found = recipe.schemas[schema.name], []
    by_store = table.groupby("store", sort=False)["kind"].value_counts().unstack(fill_value=0)
    by_store = by_store.reindex(columns=KINDS, fill_value=0)
    held = int((roles.calibrates(table["split"]) & (table["target"] == 1)).sum())
    if 0 < held < ADVISED:
        found.append(
            f"{held} positives to calibrate with: with fewer than {ADVISED} the intervals of purity are wide; label "
            "more, or grade a scan (galscan vet)"
        )
    if (by_store["negative"] > 0).sum() > 1 and (by_store["positive"] > 0).sum() == 1:
        found.append(
            f"all positives are in {by_store['positive'].idxmax()}, negatives in other stores as well: a classifier "
            "may learn the store"
        )
    if not _gap(rules, schema):
        found.append("the rules leave nothing ambiguous: borderline galaxies are called one or the other; leave a gap")
    found += _seldom(rules, table, schema)
    if recipe.synthetic.positives:
        found += _drawn(rules, table, schema)
    for entry in sources(rules, table, schema)[1:]:
        settings = recipe.synthetic
        wanted = {"hard": settings.positives, "mine": settings.mined}.get(entry["key"][:4], settings.injected)
        if wanted and not entry["training"]:
            found.append(f"no training galaxy satisfies {entry['key']}, '{entry['rule']}': nothing is made of it")
    return found


def _gap(rules: LabelRules, schema: Schema) -> bool:
    """Tell whether some labels make a galaxy neither positive nor negative."""
    random = np.random.default_rng(0)
    columns = {a.name: random.uniform(a.low, a.high, 4000) for a in schema.answers}
    yes, no = (parse_rule(text, schema.names).evaluate(columns)[0] for text in (rules.positive, rules.negative))
    return not (yes | no).all()


def _seldom(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> Iterator[str]:
    """Name the answers on which a rule or the morphology rests and that few or none were asked."""
    named = {n for text in (rules.positive, rules.negative) for n in parse_rule(text, schema.names).names}
    labelled = table.loc[table["kind"] != "unlabelled", schema.names]
    groups: dict[float, list[str]] = {}
    for name in schema.names:
        if name in named or name in rules.morphology:
            groups.setdefault(float(labelled[name].notna().mean()) if len(labelled) else 0.0, []).append(name)
    for share, names in groups.items():
        if share == 0:
            yield f"{', '.join(names)}: known of no object"
        elif share < SELDOM and (rested := [name for name in names if name in named]):
            yield f"{', '.join(rested)}: asked of {share:.1%} of the labelled objects only"


def _drawn(rules: LabelRules, table: pd.DataFrame, schema: Schema) -> Iterator[str]:
    """Say where what is drawn as a target would be none by the rules, or what is drawn as none would be one."""
    positive = parse_rule(rules.positive, schema.names)
    told = [
        ("synthetic", rules.synthetic),
        *((f"hard_negatives.{k}", rule) for k, rule in enumerate(rules.hard_negatives)),
    ]
    for key, rule in told:
        labels = columns_of(table, schema)
        pool = parse_rule(rule.base, schema.names).evaluate(labels)[0]
        if not pool.any():
            continue
        share = float(positive.evaluate(_conditions(labels, pool, rule))[0].mean())
        if key == "synthetic" and share < 0.5:
            yield f"of what {key} would draw {share:.0%} satisfies the positive rule; set the answers that it asks for"
        elif key != "synthetic" and share > 0.05:
            yield f"of what {key} would draw {share:.0%} satisfies the positive rule; set an answer that forbids it"


def _conditions(labels: Columns, pool: np.ndarray, rule: SyntheticRule) -> dict[str, np.ndarray]:
    """Return what would be drawn, with the middle of each range."""
    middle = {name: np.full(pool.sum(), (low + high) / 2) for name, (low, high) in rule.set.items()}
    return {name: values[pool] for name, values in labels.items()} | middle


def named(rule: Rule, schema: Schema, table: pd.DataFrame, row: int, most: int = 2) -> list[str]:
    """Return the answers of one object that `rule` rests on, in words short enough for a caption."""
    stems = {f"{task.id}_{task.stem}_" for task in schema.tasks}
    short = {name: next((name.removeprefix(s) for s in stems if name.startswith(s)), name) for name in rule.names}
    return [f"{short[name]} {table[name].iloc[row]:.2f}" for name in rule.names[:most]]
