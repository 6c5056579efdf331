"""From stores to training data: labels, targets, and the split by real object.

The split comes first and goes by the object (`galscan.store.identity`), so that an object that is in two stores is on
one side, also where they call it by different names. By default it is into folds, for cross-fitting
(`galscan.stats.crossfit`): no network, and nothing that is made for it, has to do with the objects of its fold, also
not as unlabelled galaxies. A fixed split holds objects out (calibration, test) that train nothing: neither a classifier
nor a generator. What calibrates and tests counts once, in however many stores it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.columns import votes_column
from galscan.labels.rules import parse_rule, target_mask
from galscan.labels.schema import Schema
from galscan.labels.settings import GeneratorSettings, LabelRules, Split, StableDiffusionSettings
from galscan.models.roles import once
from galscan.store import identity
from galscan.store.layout import Store
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure
from galscan.training.split import held_out, split_objects

MAX_UNLABELLED = 20_000  # galaxies without labels that the generator learns from; more hardly teaches it
HELD_OUT = ("calibration", "test")
MIN_POSITIVES = 6  # two on each side of the split: below that nothing can be said of the result


@dataclass(frozen=True)
class Galaxies:
    """Real galaxies in memory: all that are labelled, and a sample of the others.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    table : DataFrame, n rows
        store, id (text), ra, dec, lineage and object (as of `read_table`), survey (index of the store), frame (arcsec
        on a side), split ("fold 0", "fold 1"... where it is cross-fitted, else train, calibration, test; '' for
        unlabelled ones), target (1, 0, NaN where the labels are
        ambiguous or none); of several targets, 1 for any of them, and then one column for each (`target_column`).
    labels : DataFrame of float32, n rows
        All answers of the schema, NaN = not asked.
    """

    images: np.ndarray
    table: pd.DataFrame
    labels: pd.DataFrame

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of one split, ambiguous galaxies among them.

        Of what calibrates and tests each object is there once (`once`); training has it from every store that does.
        """
        rows = (self.table["split"] == split).to_numpy()
        return np.flatnonzero(rows & once(self.table) if split in HELD_OUT else rows)

    def free(self, member: int = 0, unused: Collection[str] = ()) -> np.ndarray:
        """Return the row numbers of what a network may be trained on, and what may be made of: all but `held_out`.

        `unused` are objects that nothing is made of either.
        """
        return np.flatnonzero(~(held_out(self.table, member) | self.table["object"].isin(unused).to_numpy()))

    def of(self, column: str) -> Galaxies:
        """Return the same galaxies with another column's target."""
        return Galaxies(self.images, self.table.assign(target=self.table[column]), self.labels)

    def counted(self, schema: Schema) -> pd.DataFrame:
        """Return the labels and, of votes, how many there were on each question."""
        return self.labels.join(self.table[votes_of(schema)])

    def conditions(self, rows: np.ndarray) -> pd.DataFrame:
        """Return what a generator is told of these galaxies: the labels, and what is measured on the pictures."""
        measured = pd.DataFrame(measure(self.images[rows]), columns=list(MEASURED))
        return pd.concat([self.labels.iloc[rows].reset_index(drop=True), measured], axis=1)

    def generator_set(self, settings: GeneratorSettings | StableDiffusionSettings) -> GalaxySet:
        """Return what a generator of whole images may be trained on: everything but the held-out objects."""
        keep = self.free()
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
    """Read names, positions, labels and targets of all usable objects; no pixels.

    Returns
    -------
    DataFrame
        Columns store, survey, row, id (text), ra, dec (deg), lineage (`galscan.store.identity.lineage_of`), frame
        (arcsec on a side), target (1, 0, NaN), labelled (bool: any answer is known; without a target it is ambiguous),
        object (text, the same for all rows of one object: its id where no other object has it), one per answer of
        `schema` and, of a tree, one per question: how many votes there were on it (`votes_of`), NaN = not counted.

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
            {
                "store": store.name, "survey": number, "row": usable, "id": store.column("id")[usable].astype(str),
                "ra": store.column("ra")[usable], "dec": store.column("dec")[usable],
                "lineage": identity.lineage_of(store), "frame": store.column("pixel_scale")[usable] * store.size,
            }
        )  # fmt: skip
        counted = held.reindex(columns=votes_of(schema)).iloc[usable].astype(np.float32).reset_index(drop=True)
        parts.append(pd.concat([base, labels, counted], axis=1))
    table = pd.concat(parts, ignore_index=True)
    table["target"] = targets_of(table, schema, rules)
    table["labelled"] = table[schema.names].notna().any(axis=1)
    table["object"] = identity.names_of(table, radius=identity.radius_of(stores))
    return table


def votes_of(schema: Schema) -> list[str]:
    """Return the names of the columns that hold how many votes there were on each question of a tree."""
    return [votes_column(task.id) for task in schema.tasks]


def targets_of(labels: pd.DataFrame, schema: Schema, rules: LabelRules) -> np.ndarray:
    """Return what the rules say of labels: 1, 0, or NaN where they say neither; float32, shape (n,).

    Raises
    ------
    InputError
        If both rules hold of some object.
    """
    positive, negative = (parse_rule(text, schema.names) for text in (rules.positive, rules.negative))
    return target_mask(positive, negative, {name: labels[name].to_numpy() for name in schema.names})


def target_column(name: str) -> str:
    """Return the column that holds one of several targets."""
    return f"target: {name}"


def together(tables: Mapping[str, pd.DataFrame], split: Split, seed: int, folds: int = 0) -> pd.DataFrame:
    """Make one table of those of several targets, of the same objects, and split it once for all of them.

    An object that is held out of one target is held out of all, as all are learnt by one network. Every target has its
    share of positives in each split, the rarest first.

    Returns
    -------
    DataFrame
        As one of `tables`: ``target`` is 1 where any target is, and `target_column` has each.
    """
    table = next(iter(tables.values())).copy()
    targets = pd.DataFrame({name: one["target"] for name, one in tables.items()})
    rarest_last = (targets == 1).sum().sort_values(ascending=False).index
    kind = targets.max(axis=1)
    table["target"] = kind
    for number, name in enumerate(rarest_last, 1):
        kind = kind.mask(targets[name] == 1, number)
    table["split"] = split_objects(table.assign(target=kind), split, seed, folds)
    return table.assign(**{target_column(name): targets[name] for name in targets})


def check_counts(table: pd.DataFrame, rules: LabelRules, target: str) -> None:
    """Refuse to train where there is too little to learn from or to judge by.

    Raises
    ------
    InputError
        Saying how many there are, and what would help.
    """
    for value, name, rule in ((1, "positive", rules.positive), (0, "negative", rules.negative)):
        count = table.loc[table["target"] == value, "object"].nunique()
        if count < MIN_POSITIVES:
            raise InputError(
                f"{count} {name} examples of '{target}' among {int(table['labelled'].sum()):,} labelled objects, at "
                f"least {MIN_POSITIVES} are needed: label more galaxies for which '{' '.join(rule.split())}', add a "
                "store with --store, or loosen the rule"
            )


def load_galaxies(
    stores: Sequence[Store], table: pd.DataFrame, answers: Sequence[str], size: int, *, seed: int, unlabelled: bool
) -> Galaxies:
    """Stream the stores once and keep the labelled galaxies and, if asked, a sample of the others.

    Images of larger stores are resampled to `size` pixels on a side.

    Raises
    ------
    InputError
        If the images of a store are smaller.
    """
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
                images[here] = resample(store.images(rows)[row[here] - rows.start], size)
    chosen = chosen.reset_index(drop=True)
    return Galaxies(images, chosen.drop(columns=["row", "labelled", *answers]), chosen[list(answers)])
