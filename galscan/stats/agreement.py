"""Inter-grader agreement: fraction of agreement, and Cohen's or Fleiss' kappa."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd


def agreements(is_target: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the agreement of each pair of graders and, if there are more than two, of all of them.

    Parameters
    ----------
    is_target : DataFrame
        One row per object, one column per grader: whether it is a target, NaN where the grader did not grade it.
    """
    graders = list(is_target.columns)
    groups = [*combinations(graders, 2), *([tuple(graders)] if len(graders) > 2 else [])]
    results = []
    for group in groups:
        common = is_target[list(group)].dropna().astype(bool).to_numpy()
        if len(common):
            agreement, beyond_chance = kappa(common)
            results.append({"graders": list(group), "items": len(common), "same": agreement, "kappa": beyond_chance})
    return results


def kappa(is_target: np.ndarray) -> tuple[float, float | None]:
    """Return the fraction of objects on which all agree, and kappa; `is_target` is bool, shape (objects, graders)."""
    count = is_target.shape[1]
    votes = is_target.sum(axis=1)
    agreement = float(np.isin(votes, (0, count)).mean())
    rates = is_target.mean(axis=0)
    if count == 2:
        agreed, chance = agreement, float(rates.prod() + (1 - rates).prod())
    else:
        agreed = float(((votes * (votes - 1) + (count - votes) * (count - votes - 1)) / (count * (count - 1))).mean())
        chance = float(rates.mean() ** 2 + (1 - rates.mean()) ** 2)
    return agreement, (agreed - chance) / (1 - chance) if chance < 1 else None
