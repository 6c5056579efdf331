"""Splits of the labelled objects: train, calibration, test, or a cross-fitting fold, which serves all three uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

FOLD = "fold "  # followed by a number: the split of a cross-fitted object


def fold_name(number: int) -> str:
    """Return the name of the split of a fold."""
    return f"{FOLD}{number}"


def fold_numbers(split: pd.Series) -> np.ndarray:
    """Return the fold of each object, int, shape (n,); -1 for objects in no fold."""
    text = split.astype(str)
    return np.where(text.str.startswith(FOLD), text.str.removeprefix(FOLD), "-1").astype(int)


def trains(split: pd.Series, member: int | None = None) -> np.ndarray:
    """Return which objects train a network (bool, shape (n,)): network number `member`, or any if None."""
    folds = fold_numbers(split)
    return ((split == "train") | (folds >= 0) & (folds != member)).to_numpy()


def calibrates(split: pd.Series) -> np.ndarray:
    """Return which objects are used for calibration, bool, shape (n,)."""
    return (split == "calibration").to_numpy() | (fold_numbers(split) >= 0)


def tests(split: pd.Series) -> np.ndarray:
    """Return which objects the metrics of a model are measured on, bool, shape (n,)."""
    return (split == "test").to_numpy() | (fold_numbers(split) >= 0)


def held_out_from(split: pd.Series, member: int = 0) -> np.ndarray:
    """Return which objects neither a network nor the synthetic galaxies made for it are derived from; bool, shape (n,).

    A model's generator belongs to its first network (`member` 0): a synthetic galaxy that is evaluated beside real ones
    must not be derived from these objects.
    """
    return split.isin(("calibration", "test")).to_numpy() | (fold_numbers(split) == member)


def with_fixed_split(split: pd.Series) -> pd.Series:
    """Return the split with the first fold as test set and the others as train, to evaluate one network only."""
    folds = fold_numbers(split)
    return split.mask(folds == 0, "test").mask(folds > 0, "train")


def one_row_per_object(table: pd.DataFrame) -> np.ndarray:
    """Return one row (bool mask) for each object and split, for statistics that count each object once.

    It is the first row. Where stores disagree on the target it is the first row with the highest target, which also
    determined the split.
    """
    ordered = table.reset_index(drop=True).sort_values("target", ascending=False, kind="stable")
    chosen = np.zeros(len(table), bool)
    chosen[ordered.drop_duplicates(["object", "split"]).index] = True
    return chosen
