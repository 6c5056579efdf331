"""What the objects of a model are used for: train, calibration, test, or a fold, which is used for all three."""

from __future__ import annotations

import numpy as np
import pandas as pd

FOLD = "fold "  # and a number: the split of an object that is cross-fitted


def fold_name(number: int) -> str:
    """Return the split of the objects of a fold."""
    return f"{FOLD}{number}"


def fold_numbers(split: pd.Series) -> np.ndarray:
    """Return the fold of each object, int, shape (n,); -1 where it is in none."""
    text = split.astype(str)
    return np.where(text.str.startswith(FOLD), text.str.removeprefix(FOLD), "-1").astype(int)


def trains(split: pd.Series, member: int | None = None) -> np.ndarray:
    """Return which objects may train a network (bool, shape (n,)): the one of this number, or any."""
    folds = fold_numbers(split)
    return ((split == "train") | (folds >= 0) & (folds != member)).to_numpy()


def calibrates(split: pd.Series) -> np.ndarray:
    """Return which objects calibrate, bool, shape (n,)."""
    return (split == "calibration").to_numpy() | (fold_numbers(split) >= 0)


def tests(split: pd.Series) -> np.ndarray:
    """Return which objects the figures of a model are of, bool, shape (n,)."""
    return (split == "test").to_numpy() | (fold_numbers(split) >= 0)


def kept_from(split: pd.Series, member: int = 0) -> np.ndarray:
    """Return which objects a network, and the synthetic galaxies made for it, know nothing of; bool, shape (n,).

    Those of a model folder are of its first network: a generated galaxy that is evaluated beside real ones must not be
    made of them.
    """
    return split.isin(("calibration", "test")).to_numpy() | (fold_numbers(split) == member)


def as_fixed(split: pd.Series) -> pd.Series:
    """Return the split with the first fold for a test set, for what evaluates with one network only."""
    folds = fold_numbers(split)
    return split.mask(folds == 0, "test").mask(folds > 0, "train")


def once(table: pd.DataFrame) -> np.ndarray:
    """Return which rows (bool) stand for their object where each is to count once.

    It is the first row of each object and split; where stores do not agree on its target, the first of the highest, by
    which it was split.
    """
    order = table.reset_index(drop=True).sort_values("target", ascending=False, kind="stable")
    chosen = np.zeros(len(table), bool)
    chosen[order.drop_duplicates(["object", "split"]).index] = True
    return chosen
