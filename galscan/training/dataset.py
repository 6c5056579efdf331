"""Training data from stores: labels, targets, and the split by object.

Objects, not rows, are split (`galscan.store.identity`), so that an object in two stores is on one side of the split,
whatever its names. By default they are split into folds for cross-fitting (`galscan.stats.crossfit`): a network, and
synthetic galaxies made for it, never use objects of its fold, not even as unlabelled galaxies. With a fixed split,
neither classifiers nor generators are trained on objects held out for calibration and test. An object in several stores
is used once in calibration and test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.columns import votes_column
from galscan.labels.recipe import Recipe
from galscan.labels.rules import parse_rule, target_mask
from galscan.labels.schema import Schema
from galscan.labels.settings import GeneratorSettings, LabelRules, Split, StableDiffusionSettings
from galscan.store import identity
from galscan.store.layout import Store
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure
from galscan.training.split import held_out, split_objects

MAX_UNLABELLED = 20_000  # unlabelled galaxies for training a generator; more hardly improve it
MIN_POSITIVES = 6  # two in each of training, calibration and test: with fewer, results are meaningless


@dataclass(frozen=True)
class Galaxies:
    """Real galaxies in memory: all labelled ones, and a sample of the unlabelled ones.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    table : DataFrame, n rows
        store, id (text), ra, dec, lineage and object (see `read_table`), survey (index of the store), frame (arcsec on
        a side), split ("fold 0", "fold 1"... with cross-fitting, else train, calibration, test; '' for unlabelled
        ones), target (1, 0, NaN for ambiguous or no labels); with several targets, 1 for any of them, and one more
        column for each (`target_column`).
    labels : DataFrame of float32, n rows
        All answers of the schema, NaN = not asked.
    """

    images: np.ndarray
    table: pd.DataFrame
    labels: pd.DataFrame

    def not_held_out(self, member: int = 0, unused: Collection[str] = ()) -> np.ndarray:
        """Return the row numbers usable to train a network and to make synthetic galaxies: all except `held_out`.

        `unused` are further objects to exclude.
        """
        return np.flatnonzero(~(held_out(self.table, member) | self.table["object"].isin(unused).to_numpy()))

    def of(self, column: str) -> Galaxies:
        """Return the same galaxies with the target of another column."""
        return Galaxies(self.images, self.table.assign(target=self.table[column]), self.labels)

    def labels_and_votes(self, schema: Schema) -> pd.DataFrame:
        """Return the labels and, for vote fractions, the number of votes on each question."""
        return self.labels.join(self.table[votes_of(schema)])

    def conditions(self, rows: np.ndarray) -> pd.DataFrame:
        """Return the conditions of a generator for these galaxies: labels and measured image properties."""
        measured = pd.DataFrame(measure(self.images[rows]), columns=list(MEASURED))
        return pd.concat([self.labels.iloc[rows].reset_index(drop=True), measured], axis=1)

    def generator_set(self, settings: GeneratorSettings | StableDiffusionSettings) -> GalaxySet:
        """Return the training set of a generator of whole images: all except held-out objects."""
        keep = self.not_held_out()
        labelled = self.labels.notna().any(axis=1).to_numpy()
        weight = np.where(labelled, settings.labelled_weight, 1.0)[keep]
        rare = (self.table["target"] == 1).to_numpy()[keep]
        if 0 < rare.sum() < len(rare):
            minimum = settings.rare_share / (1 - settings.rare_share) * weight[~rare].sum() / rare.sum()
            weight[rare] = np.maximum(weight[rare], minimum)
        conditions, survey = self.conditions(keep).to_numpy(np.float32), self.table["survey"].to_numpy()[keep]
        return GalaxySet(self.images[keep], conditions, survey, weight)


def read_table(stores: Sequence[Store], schema: Schema, rules: LabelRules) -> pd.DataFrame:
    """Read names, positions, labels and targets of all usable objects; no pixels.

    Returns
    -------
    DataFrame
        Columns store, survey, row, id (text), ra, dec (deg), lineage (`galscan.store.identity.lineage_of`), frame
        (arcsec on a side), target (1, 0, NaN), labelled (bool: any answer is known; ambiguous if it has no target),
        object (text, the same for all rows of an object: its id if that is unique), one column per answer of `schema`
        and, for a tree, one per question with the number of votes (`votes_of`), NaN = unknown.
    """
    tables = []
    for number, store in enumerate(stores):
        usable = np.flatnonzero((store.column("flags") & UNUSABLE) == 0)
        stored = store.labels(schema.name) if schema.name in store.schemas else pd.DataFrame(index=range(store.count))
        labels = stored.reindex(columns=schema.names).iloc[usable].astype(np.float32).reset_index(drop=True)
        base = pd.DataFrame(
            {
                "store": store.name, "survey": number, "row": usable, "id": store.column("id")[usable].astype(str),
                "ra": store.column("ra")[usable], "dec": store.column("dec")[usable],
                "lineage": identity.lineage_of(store), "frame": store.column("pixel_scale")[usable] * store.size,
            }
        )  # fmt: skip
        votes = stored.reindex(columns=votes_of(schema)).iloc[usable].astype(np.float32).reset_index(drop=True)
        tables.append(pd.concat([base, labels, votes], axis=1))
    table = pd.concat(tables, ignore_index=True)
    table["target"] = targets_of(table, schema, rules)
    table["labelled"] = table[schema.names].notna().any(axis=1)
    table["object"] = identity.names_of(table, radius=identity.radius_of(stores))
    return table


def votes_of(schema: Schema) -> list[str]:
    """Return the names of the columns with the number of votes on each question of a tree."""
    return [votes_column(task.id) for task in schema.tasks]


def targets_of(labels: pd.DataFrame, schema: Schema, rules: LabelRules) -> np.ndarray:
    """Return the targets by the rules, float32, shape (n,): 1, 0, or NaN for neither; both are an `InputError`."""
    positive, negative = (parse_rule(text, schema.names) for text in (rules.positive, rules.negative))
    return target_mask(positive, negative, {name: labels[name].to_numpy() for name in schema.names})


def target_column(name: str) -> str:
    """Return the name of the column of one of several targets."""
    return f"target: {name}"


def join_targets(tables: Mapping[str, pd.DataFrame], split: Split, seed: int, folds: int = 0) -> pd.DataFrame:
    """Join the tables of several targets, of the same objects, and split the objects once for all targets.

    All targets are trained with one network, so an object is held out for all targets or for none. The split is
    stratified by target, the rarest first. The result is one of `tables`, with ``target`` 1 where any target is, and a
    column for each target (`target_column`).
    """
    table = next(iter(tables.values())).copy()
    targets = pd.DataFrame({name: target_table["target"] for name, target_table in tables.items()})
    rarest_last = (targets == 1).sum().sort_values(ascending=False).index
    kind = targets.max(axis=1)
    table["target"] = kind
    for number, name in enumerate(rarest_last, 1):
        kind = kind.mask(targets[name] == 1, number)
    table["split"] = split_objects(table.assign(target=kind), split, seed, folds)
    return table.assign(**{target_column(name): targets[name] for name in targets})


def check_counts(table: pd.DataFrame, rules: LabelRules, target: str) -> None:
    """Raise `InputError` if there are too few positives or negatives to train and evaluate."""
    for value, name, rule in ((1, "positive", rules.positive), (0, "negative", rules.negative)):
        count = table.loc[table["target"] == value, "object"].nunique()
        if count < MIN_POSITIVES:
            raise InputError(
                f"{count} {name} examples of '{target}' among {int(table['labelled'].sum()):,} labelled objects, at "
                f"least {MIN_POSITIVES} are needed: label more galaxies for which '{' '.join(rule.split())}', add a "
                "store with --store, or loosen the rule"
            )


def check_sizes(stores: Sequence[Store], recipe: Recipe) -> None:
    """Raise `InputError` if a store's images are smaller than those that the recipe needs."""
    for store in stores:
        if store.size < recipe.size:
            raise InputError(
                f"{store.path} holds {store.size} px cutouts, the recipe of '{recipe.name}' needs {recipe.size} px; "
                f"ingest with --size {recipe.size} or more, or use a recipe with size = {store.size} or less"
            )


def load_galaxies(
    stores: Sequence[Store], table: pd.DataFrame, answers: Sequence[str], size: int, *, seed: int, unlabelled: bool
) -> Galaxies:
    """Read the stores once and keep the labelled galaxies and, with `unlabelled`, a sample of the others.

    Images of larger stores are resampled to `size` pixels on a side; smaller ones are an `InputError`.
    """
    # A graded galaxy has a target, possibly without labels.
    labelled = (table[list(answers)].notna().any(axis=1) | table["target"].notna()).to_numpy()
    without_labels = np.flatnonzero(~labelled)
    random = np.random.default_rng(seed)
    sample = random.choice(without_labels, min(MAX_UNLABELLED if unlabelled else 0, len(without_labels)), replace=False)
    chosen = table.loc[np.sort(np.concatenate([np.flatnonzero(labelled), sample]))]

    images = np.empty((len(chosen), size, size, 3), np.uint8)
    survey, row = chosen["survey"].to_numpy(), chosen["row"].to_numpy()
    for number, store in enumerate(stores):
        for shard in range(store.n_shards):
            rows = store.rows(shard)
            in_shard = np.flatnonzero((survey == number) & (row >= rows.start) & (row < rows.stop))
            if len(in_shard):
                images[in_shard] = resample(store.images(rows)[row[in_shard] - rows.start], size)
    chosen = chosen.reset_index(drop=True)
    return Galaxies(images, chosen.drop(columns=["row", "labelled", *answers]), chosen[list(answers)])
