"""On how much graders agree, beyond chance."""

from __future__ import annotations

import numpy as np


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
