"""Where a galaxy becomes train, calibration or test, or one fold of several."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from galscan.labels.recipe import Recipe
from galscan.labels.settings import Split
from galscan.models.roles import fold_name, kept_from
from galscan.stats import crossfit
from galscan.stats.purity import AMBIGUOUS

RESERVED = 8000  # unlabelled objects, at most, on which it is measured: the scores of rare targets must be among theirs


def folds_of(recipe: Recipe, table: pd.DataFrame, *, synthetic: bool, whole: bool) -> tuple[int, str]:
    """Return how many folds a training has, 0 for a fixed split, and in words why it is fixed though the recipe is not.

    Parameters
    ----------
    table : DataFrame
        As of `reserved`.
    synthetic : bool
        Whether synthetic galaxies are made.
    whole : bool
        Whether a generator draws whole images: it is trained once, on galaxies of all folds.
    """
    members = recipe.classifier.members
    if recipe.split.method == "fixed":
        return 0, ""
    if members < 2:
        return 0, "cross-fitting needs two networks or more ([classifier] members)"
    if whole:
        return 0, "one generator of whole images is trained for all networks ([synthetic] positives)"
    if reserved(table, synthetic=synthetic, seed=0).empty:
        # Calibrated without that correction some 70 % of intervals hold the truth (tests/benchmarks/crossfit.py).
        least = 2 * crossfit.LEAST if synthetic else crossfit.LEAST
        return 0, f"cross-fitting needs {least} unlabelled galaxies, which tell how far the networks differ"
    return members, ""


def reserved(table: pd.DataFrame, *, synthetic: bool, seed: int) -> pd.DataFrame:
    """Return the rows of unlabelled objects on which the scatter of the networks is measured.

    Nothing is made of them, as networks agree on what they were trained on: where synthetic galaxies need hosts, half
    of the unlabelled objects remain for these. No rows where there are too few.

    Parameters
    ----------
    table : DataFrame
        Columns object, target and labelled (bool).
    """
    labelled = table["labelled"].astype(bool) | table["target"].notna()
    free = table[~table["object"].isin(table.loc[labelled, "object"])]
    count = min(RESERVED, len(free) // 2 if synthetic else len(free))
    return free.sample(count if count >= crossfit.LEAST else 0, random_state=seed).sort_index().reset_index(drop=True)


def held_out(table: pd.DataFrame, member: int = 0) -> np.ndarray:
    """Return which rows (bool) are of objects that a network must know nothing of (`roles.kept_from`).

    Also where the row itself is in no split, as of a store whose labels say nothing of the object.
    """
    objects = table.loc[kept_from(table["split"], member), "object"]
    return table["object"].isin(set(objects)).to_numpy()


def split_objects(table: pd.DataFrame, split: Split, seed: int, folds: int = 0) -> np.ndarray:
    """Assign every labelled object to a fold, or to train, calibration or test, stratified, by a hash of its name.

    Ambiguous objects, labelled but neither positive nor negative, are in every survey: they have their share of what
    calibrates and tests, where they count as what they are, no targets.

    Parameters
    ----------
    table : DataFrame
        Columns object, labelled and target: 0, 1 or, where there are several kinds of targets, a number for each.
    folds : int
        Of cross-fitting, equal in size (`galscan.stats.folds_of`); 0 for the fractions of `split`.

    Returns
    -------
    ndarray of str, shape (n,)
        '' for rows without label and target. Rows of one object have one split, whatever their target.
    """
    kind = table["target"].where(table["target"].notna() | ~table["labelled"], AMBIGUOUS)
    objects = kind[kind.notna()].groupby(table["object"], sort=False).max()
    keys = np.array([hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in objects.index])
    chosen = np.empty(len(objects), dtype=object)
    for value in np.unique(objects):
        of_class = np.flatnonzero(objects.to_numpy() == value)
        order = of_class[np.argsort(keys[of_class])]
        n = len(order)
        if folds:
            chosen[order] = [fold_name(k % folds) for k in range(n)]
            continue
        least = 0 if value == AMBIGUOUS else 2
        held = [max(least, round(n * share)) for share in (split.calibration, split.test)]
        chosen[order[: held[0]]] = "calibration"
        chosen[order[held[0] : sum(held)]] = "test"
        chosen[order[sum(held) :]] = "train"
    names = dict(zip(objects.index, chosen, strict=True))
    return np.array([names[i] if known else "" for i, known in zip(table["object"], kind.notna(), strict=True)])
