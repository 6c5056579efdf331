"""On how much graders agree, beyond chance."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd


def agreements(says: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each two graders, and for all of them if there are more, how far they agree.

    Parameters
    ----------
    says : DataFrame
        A row an object, a column a grader: whether it is a target, NaN where he did not grade it.
    """
    graders = list(says.columns)
    groups = [*combinations(graders, 2), *([tuple(graders)] if len(graders) > 2 else [])]
    told = []
    for group in groups:
        common = says[list(group)].dropna().astype(bool).to_numpy()
        if len(common):
            same, beyond_chance = kappa(common)
            told.append({"graders": list(group), "items": len(common), "same": same, "kappa": beyond_chance})
    return told


def kappa(says: np.ndarray) -> tuple[float, float | None]:
    """Return the fraction of objects on which all agree, and kappa; `says` is bool of shape (objects, graders)."""
    count = says.shape[1]
    votes = says.sum(axis=1)
    same = float(np.isin(votes, (0, count)).mean())
    rates = says.mean(axis=0)
    if count == 2:
        agreed, chance = same, float(rates.prod() + (1 - rates).prod())
    else:
        agreed = float(((votes * (votes - 1) + (count - votes) * (count - votes - 1)) / (count * (count - 1))).mean())
        chance = float(rates.mean() ** 2 + (1 - rates.mean()) ** 2)
    return same, (agreed - chance) / (1 - chance) if chance < 1 else None
