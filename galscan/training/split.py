"""Split of labelled objects into training, calibration and test sets, or into folds of cross-fitting."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from galscan.labels.recipe import Recipe
from galscan.labels.settings import Split
from galscan.models.roles import fold_name, held_out_from
from galscan.stats import crossfit
from galscan.stats.purity import AMBIGUOUS

RESERVED = 8000  # unlabelled objects, at most, to measure the scatter between networks; many, to include high scores


def folds_of(recipe: Recipe, table: pd.DataFrame, *, synthetic: bool, whole_images: bool) -> tuple[int, str]:
    """Return the number of folds, 0 for a fixed split, and the reason if the split is fixed although the recipe is not.

    A generator of whole images (`whole_images`) is trained once, on galaxies of all folds. For `table` see `reserved`.
    """
    members = recipe.classifier.members
    if recipe.split.method == "fixed":
        return 0, ""
    if members < 2:
        return 0, "cross-fitting needs two networks or more ([classifier] members)"
    if whole_images:
        return 0, "one generator of whole images is trained for all networks ([synthetic] positives)"
    if reserved(table, synthetic=synthetic, seed=0).empty:
        # Without that correction some 70 % of the intervals contain the truth (tests/benchmarks/crossfit.py).
        least = 2 * crossfit.LEAST if synthetic else crossfit.LEAST
        return 0, f"cross-fitting needs {least} unlabelled galaxies to measure the scatter between networks"
    return members, ""


def reserved(table: pd.DataFrame, *, synthetic: bool, seed: int) -> pd.DataFrame:
    """Return the rows of unlabelled objects on which the scatter between networks is measured.

    They are not used as hosts or negatives, because networks agree on their training data; if synthetic galaxies need
    hosts, half of the unlabelled objects remain for these. Empty if there are too few. `table` has the columns object,
    target and labelled (bool).
    """
    labelled = table["labelled"].astype(bool) | table["target"].notna()
    unlabelled = table[~table["object"].isin(table.loc[labelled, "object"])]
    count = min(RESERVED, len(unlabelled) // 2 if synthetic else len(unlabelled))
    chosen = unlabelled.sample(count if count >= crossfit.LEAST else 0, random_state=seed)
    return chosen.sort_index().reset_index(drop=True)


def held_out(table: pd.DataFrame, member: int = 0) -> np.ndarray:
    """Return a mask of the rows of objects that are held out from a network (`roles.held_out_from`).

    It includes rows without a split, from stores that have no labels of the object.
    """
    objects = table.loc[held_out_from(table["split"], member), "object"]
    return table["object"].isin(set(objects)).to_numpy()


def split_objects(table: pd.DataFrame, split: Split, seed: int, folds: int = 0) -> np.ndarray:
    """Assign every labelled object to a fold, or to train, calibration or test, stratified, by a hash of its name.

    Ambiguous objects (labelled, neither positive nor negative) are split in the same way, as every survey has them; in
    calibration and test they count as non-targets.

    Parameters
    ----------
    table : DataFrame
        Columns object, labelled and target: 0, 1 or, with several kinds of targets, a number for each.
    folds : int
        Number of folds of cross-fitting, equal in size (`folds_of`); 0 for the fractions of `split`.

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
        if folds:
            chosen[order] = [fold_name(k % folds) for k in range(len(order))]
            continue
        least = 0 if value == AMBIGUOUS else 2
        n_calibration, n_test = (max(least, round(len(order) * part)) for part in (split.calibration, split.test))
        chosen[order] = "train"
        chosen[order[: n_calibration + n_test]] = "test"
        chosen[order[:n_calibration]] = "calibration"
    names = table["object"].map(pd.Series(chosen, index=objects.index))
    return np.where(kind.notna(), names, "").astype(str)
