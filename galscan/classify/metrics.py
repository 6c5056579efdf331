"""How good a classifier is on real held-out galaxies, and what the dreams changed; with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

BOOTSTRAP = 500


def _resampled_ap(scores: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    """Return mean average precision over members for resampled members and (stratified) objects.

    The same `seed` and shapes resample the same way, so that two methods can be compared in pairs.
    """
    random = np.random.default_rng(seed)
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    values = np.empty(BOOTSTRAP)
    for k in range(BOOTSTRAP):
        rows = np.concatenate([random.choice(positive, len(positive)), random.choice(negative, len(negative))])
        members = random.integers(len(scores), size=len(scores))
        values[k] = np.mean([average_precision_score(targets[rows], scores[m][rows]) for m in members])
    return values


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the average precision of scores (n,) for targets (n,) of 0 and 1."""
    return float(average_precision_score(targets, scores))


def summarise(scores: np.ndarray, targets: np.ndarray, seed: int) -> dict[str, Any]:
    """Return average precision per member, its mean and 95 % interval, and the ensemble's curve.

    Parameters
    ----------
    scores : ndarray, shape (members, n)
    targets : ndarray of 0 and 1, shape (n,)

    Returns
    -------
    dict
        ``ap`` (list, one a member), ``ap_mean``, ``ap_lo``, ``ap_hi`` (bootstrap over members and
        objects), ``ap_ensemble`` (of the mean score) and ``pr_curve`` of the ensemble.
    """
    resampled = _resampled_ap(scores, targets, seed)
    each = [average_precision(s, targets) for s in scores]
    precision, recall, _ = precision_recall_curve(targets, scores.mean(0))
    thin = np.unique(np.linspace(0, len(recall) - 1, 200).astype(int))
    return {
        "ap": each, "ap_mean": float(np.mean(each)),
        "ap_lo": float(np.percentile(resampled, 2.5)), "ap_hi": float(np.percentile(resampled, 97.5)),
        "ap_ensemble": average_precision(scores.mean(0), targets),
        "pr_curve": {"recall": recall[thin].tolist(), "precision": precision[thin].tolist()},
    }  # fmt: skip


def gain(with_dreams: np.ndarray, without: np.ndarray, targets: np.ndarray, seed: int) -> dict[str, float]:
    """Return the change of mean average precision by the dreams and its 95 % paired bootstrap interval."""
    change = _resampled_ap(with_dreams, targets, seed) - _resampled_ap(without, targets, seed)
    mean = np.mean([average_precision_score(targets, a) - average_precision_score(targets, b)
                    for a, b in zip(with_dreams, without, strict=True)])  # fmt: skip
    low, high = np.percentile(change, [2.5, 97.5])
    return {"mean": float(mean), "lo": float(low), "hi": float(high)}
