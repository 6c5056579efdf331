"""From stores to training data: labels, targets, and the split by real object.

The split comes first and goes by the object's id, so that an object that is in two stores is on one
side. Held-out objects (calibration, test) are seen by nobody: not by the classifier, and not by the
generator, also not as unlabelled galaxies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from galscan.errors import InputError
from galscan.generate.galaxies import MEASURED, GalaxySet, measure
from galscan.labels import Schema, parse_rule, target_mask
from galscan.recipe import AnyGenerator, LabelRules, Split
from galscan.store.layout import UNUSABLE, Store

MAX_UNLABELLED = 20_000  # galaxies without labels that the generator learns from; more hardly teaches it
MIN_POSITIVES = 6  # two on each side of the split: below that nothing can be said of the result


@dataclass(frozen=True)
class Galaxies:
    """Real galaxies in memory: all that are labelled, and a sample of the others.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    table : DataFrame, n rows
        store, id (text), survey (index of the store), split (train, calibration, test, '' for
        ambiguous and unlabelled ones), target (1, 0, NaN).
    labels : DataFrame of float32, n rows
        All answers of the schema, NaN = not asked.
    """

    images: np.ndarray
    table: pd.DataFrame
    labels: pd.DataFrame

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of one split."""
        return np.flatnonzero(self.table["split"] == split)

    def conditions(self, rows: np.ndarray) -> pd.DataFrame:
        """Return what a generator is told of these galaxies: the labels, and what is measured on the pictures."""
        measured = pd.DataFrame(measure(self.images[rows]), columns=list(MEASURED))
        return pd.concat([self.labels.iloc[rows].reset_index(drop=True), measured], axis=1)

    def generator_set(self, settings: AnyGenerator) -> GalaxySet:
        """Return what the generator may learn from: everything but the held-out objects."""
        held_out = set(self.table.loc[self.table["split"].isin(("calibration", "test")), "id"])
        keep = np.flatnonzero(~self.table["id"].isin(held_out))
        labelled = self.labels.notna().any(axis=1).to_numpy()
        weight = np.where(labelled, settings.labelled_weight, 1.0)[keep]
        rare = (self.table["target"] == 1).to_numpy()[keep]
        if 0 < rare.sum() < len(rare):
            least = settings.rare_share / (1 - settings.rare_share) * weight[~rare].sum() / rare.sum()
            weight[rare] = np.maximum(weight[rare], least)
        return GalaxySet(
            self.images[keep],
            self.conditions(keep).to_numpy(np.float32),
            self.table["survey"].to_numpy()[keep],
            weight,
        )


def read_table(stores: Sequence[Store], schema: Schema, rules: LabelRules) -> pd.DataFrame:
    """Read ids, labels and targets of all usable objects; no pixels.

    Returns
    -------
    DataFrame
        Columns store, survey, row, id (text), target (1, 0, NaN) and one per answer of `schema`.

    Raises
    ------
    InputError
        If the positive and the negative rule agree on some object.
    """
    parts = []
    for number, store in enumerate(stores):
        usable = np.flatnonzero((store.column("flags") & UNUSABLE) == 0)
        held = store.labels(schema.name) if schema.name in store.schemas else pd.DataFrame(index=range(store.count))
        labels = held.reindex(columns=schema.names).iloc[usable].astype(np.float32).reset_index(drop=True)
        base = pd.DataFrame(
            {"store": store.name, "survey": number, "row": usable, "id": store.column("id")[usable].astype(str)}
        )
        parts.append(pd.concat([base, labels], axis=1))
    table = pd.concat(parts, ignore_index=True)
    positive, negative = (parse_rule(text, schema.names) for text in (rules.positive, rules.negative))
    table["target"] = target_mask(positive, negative, {name: table[name].to_numpy() for name in schema.names})
    return table


def check_counts(table: pd.DataFrame, rules: LabelRules, target: str) -> None:
    """Refuse to train where there is too little to learn from or to judge by.

    Raises
    ------
    InputError
        Saying how many there are, and what would help.
    """
    for value, name, rule in ((1, "positive", rules.positive), (0, "negative", rules.negative)):
        count = table.loc[table["target"] == value, "id"].nunique()
        if count < MIN_POSITIVES:
            labelled = int(table.drop(columns=["store", "survey", "row", "id", "target"]).notna().any(axis=1).sum())
            raise InputError(
                f"{count} {name} examples of '{target}' among {labelled:,} labelled objects, at least {MIN_POSITIVES} "
                f"are needed: label more galaxies for which '{' '.join(rule.split())}', add a store with --store, "
                "or loosen the rule"
            )


def split_objects(table: pd.DataFrame, split: Split, seed: int) -> np.ndarray:
    """Assign every object with a target to train, calibration or test, stratified, by a hash of its id.

    Parameters
    ----------
    table : DataFrame
        Columns id and target.

    Returns
    -------
    ndarray of str, shape (n,)
        '' for rows without target. Rows of one id have one split, whatever their target.
    """
    objects = table[table["target"].notna()].groupby("id", sort=False)["target"].max()
    keys = np.array([hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in objects.index])
    chosen = np.empty(len(objects), dtype=object)
    for value in (0, 1):
        of_class = np.flatnonzero(objects.to_numpy() == value)
        order = of_class[np.argsort(keys[of_class])]
        n = len(order)
        held = [max(2, round(n * share)) for share in (split.calibration, split.test)]
        chosen[order[: held[0]]] = "calibration"
        chosen[order[held[0] : sum(held)]] = "test"
        chosen[order[sum(held) :]] = "train"
    names = dict(zip(objects.index, chosen, strict=True))
    return np.array(
        [names.get(i, "") if np.isfinite(t) else "" for i, t in zip(table["id"], table["target"], strict=True)]
    )


def load_galaxies(
    stores: Sequence[Store], table: pd.DataFrame, answers: Sequence[str], size: int, *, seed: int, unlabelled: bool
) -> Galaxies:
    """Stream the stores once and keep the labelled galaxies and, if asked, a sample of the others."""
    # A galaxy that people graded has a target and perhaps no label.
    labelled = (table[list(answers)].notna().any(axis=1) | table["target"].notna()).to_numpy()
    others = np.flatnonzero(~labelled)
    random = np.random.default_rng(seed)
    sample = random.choice(others, min(MAX_UNLABELLED if unlabelled else 0, len(others)), replace=False)
    chosen = table.loc[np.sort(np.concatenate([np.flatnonzero(labelled), sample]))]

    images = np.empty((len(chosen), size, size, 3), np.uint8)
    survey, row = chosen["survey"].to_numpy(), chosen["row"].to_numpy()
    for number, store in enumerate(stores):
        for shard in range(store.n_shards):
            rows = store.rows(shard)
            here = np.flatnonzero((survey == number) & (row >= rows.start) & (row < rows.stop))
            if len(here):
                images[here] = store.images(rows)[row[here] - rows.start]
    chosen = chosen.reset_index(drop=True)
    return Galaxies(images, chosen[["store", "survey", "id", "target", "split"]], chosen[list(answers)])
