"""Metrics of a classifier on held-out real galaxies, and the gain from synthetic galaxies, with bootstrap intervals.

The second half is for a stated *prevalence*: a test set has a higher fraction of targets than a survey, and purity
depends on it. Each target is weighted by prevalence / targets, and each non-target by (1 - prevalence) / non-targets,
so that the weights of a test set add up to one survey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

BOOTSTRAP = 500


def _resampled_ap(scores: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    """Return bootstrap values of the mean average precision: members and (stratified) objects are resampled.

    Equal `seed` and shapes give equal resamples, so that two methods can be compared in pairs.
    """
    random = np.random.default_rng(seed)
    positive, negative = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    values = np.empty(BOOTSTRAP)
    rankings, prevalence = [rank_targets(s, targets) for s in scores], len(positive) / len(targets)
    for k in range(BOOTSTRAP):
        weights = [np.bincount(random.integers(n, size=n), minlength=n) for n in (len(positive), len(negative))]
        members = random.integers(len(scores), size=len(scores))
        values[k] = np.mean([_average_precision(*rankings[m].curve(prevalence, *weights)) for m in members])
    return values


def summarise(
    scores: np.ndarray, targets: np.ndarray, seed: int, committee: np.ndarray | None = None
) -> dict[str, Any]:
    """Return average precision per member, its mean and 95 % interval, and the ensemble's curve.

    Parameters
    ----------
    scores : ndarray, shape (members, n)
        Or (1, n): out-of-fold scores, each by one member.
    targets : ndarray of 0 and 1, shape (n,)
    committee : ndarray, shape (n,), optional
        Scores of the whole ensemble, of which ``ap_ensemble`` and ``pr_curve`` are; by default the mean of `scores`.
    """
    resampled = _resampled_ap(scores, targets, seed)
    member_ap = [float(average_precision_score(targets, s)) for s in scores]
    committee = scores.mean(0) if committee is None else committee
    precision, recall, _ = precision_recall_curve(targets, committee)
    thin = np.unique(np.linspace(0, len(recall) - 1, 200).astype(int))
    return {
        "ap": member_ap, "ap_mean": float(np.mean(member_ap)),
        "ap_lo": float(np.percentile(resampled, 2.5)), "ap_hi": float(np.percentile(resampled, 97.5)),
        "ap_ensemble": float(average_precision_score(targets, committee)),
        "pr_curve": {"recall": recall[thin].tolist(), "precision": precision[thin].tolist()},
    }  # fmt: skip


def gain(with_synthetic: np.ndarray, without: np.ndarray, targets: np.ndarray, seed: int) -> dict[str, float]:
    """Return the gain in mean average precision from synthetic galaxies, and its 95 % paired bootstrap interval."""
    change = _resampled_ap(with_synthetic, targets, seed) - _resampled_ap(without, targets, seed)
    mean = np.mean([average_precision_score(targets, a) - average_precision_score(targets, b)
                    for a, b in zip(with_synthetic, without, strict=True)])  # fmt: skip
    low, high = np.percentile(change, [2.5, 97.5])
    return {"mean": float(mean), "lo": float(low), "hi": float(high)}


class WorkingPoint(NamedTuple):
    """Prevalence of the survey, and the purity and completeness at which the list is evaluated."""

    prevalence: float
    """Fraction of targets among the survey's objects, above 0 and below 1."""
    purity: float
    """At which completeness is reported."""
    completeness: float
    """At which purity is reported."""


class Ranking(NamedTuple):
    """Positions of targets and non-targets in a ranking.

    Only thresholds at a target's score matter: extending a list to the next non-target lowers purity and leaves
    completeness unchanged. Thresholds are numbered from the highest score; objects of equal score enter a list
    together.
    """

    target: np.ndarray
    """Threshold at which each target enters the list; int of shape (targets,)."""
    non_target: np.ndarray
    """The same for non-targets; ``thresholds`` for those below all targets."""
    thresholds: int

    def curve(
        self, prevalence: float, target_weight: np.ndarray | None = None, non_target_weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return completeness (rising) and purity at each threshold, with optional weights of the objects."""
        true_positives = np.bincount(self.target, target_weight, self.thresholds).cumsum()
        false_positives = np.bincount(self.non_target, non_target_weight, self.thresholds + 1).cumsum()
        completeness = true_positives / true_positives[-1]
        true, false = prevalence * completeness, (1 - prevalence) * false_positives[:-1] / false_positives[-1]
        return completeness, true / np.maximum(true + false, 1e-300)  # 0 for a list of zero total weight


def rank_targets(scores: np.ndarray, targets: np.ndarray) -> Ranking:
    """Rank objects with `scores` (n,) and `targets` (n,) of 0 and 1."""
    levels = np.unique(scores[targets == 1])
    threshold = len(levels) - np.searchsorted(levels, scores, side="right")
    return Ranking(threshold[targets == 1], threshold[targets == 0], len(levels))


def _average_precision(completeness: np.ndarray, purity: np.ndarray) -> float:
    return float(np.diff(completeness, prepend=0.0) @ purity)


METRICS = ("ap", "completeness", "purity")


def _metrics(curve: tuple[np.ndarray, np.ndarray], point: WorkingPoint) -> tuple[float, float, float]:
    """Return average precision, and the largest completeness (0 if there is none) and purity at a working point."""
    completeness, purity = curve
    most_complete = completeness[purity >= point.purity - 1e-12].max(initial=0.0)
    purest = purity[completeness >= point.completeness - 1e-12].max()
    return _average_precision(*curve), float(most_complete), float(purest)


class Scored(NamedTuple):
    """The test set of one repeat of an experiment, with the scores of each method."""

    ids: np.ndarray
    """Text of shape (n,); an object may occur twice, and in the test sets of several repeats."""
    targets: np.ndarray
    scores: Mapping[str, np.ndarray]


def measure(repeats: Sequence[Scored], point: WorkingPoint) -> dict[str, np.ndarray]:
    """Return the `METRICS` of each method in each repeat, float of shape (repeats, 3)."""
    curves = {
        name: [rank_targets(r.scores[name], r.targets).curve(point.prevalence) for r in repeats]
        for name in repeats[0].scores
    }
    return {name: np.array([_metrics(curve, point) for curve in each]) for name, each in curves.items()}


def bootstrap(
    repeats: Sequence[Scored], point: WorkingPoint, seed: int, count: int = BOOTSTRAP
) -> dict[str, np.ndarray]:
    """Resample repeats and objects; return the mean `METRICS` over repeats for each method.

    Repeats are drawn with replacement. Objects get exponentially distributed random weights (the Bayesian bootstrap,
    Rubin 1981, Annals of Statistics 9, 130), normalised in each class; an object has the same weight in all repeats,
    since a test set that is used again is not a new one. All methods use the same draws, so that their differences and
    ratios are paired. Arrays have the shape (count, 3).
    """
    random = np.random.default_rng(seed)
    _, object_index = np.unique(np.concatenate([r.ids for r in repeats]), return_inverse=True)
    rows = np.split(object_index, np.cumsum([len(r.ids) for r in repeats])[:-1])
    split = [(w[r.targets == 1], w[r.targets == 0]) for w, r in zip(rows, repeats, strict=True)]
    rankings = [{name: rank_targets(s, r.targets) for name, s in r.scores.items()} for r in repeats]
    values = {name: np.zeros((count, len(METRICS))) for name in repeats[0].scores}
    for k in range(count):
        weight = random.exponential(size=int(object_index.max()) + 1)
        times = np.bincount(random.integers(len(repeats), size=len(repeats)), minlength=len(repeats))
        for number in np.flatnonzero(times):
            target_weight, non_target_weight = (weight[indices] for indices in split[number])
            for name, ranking in rankings[number].items():
                curve = ranking.curve(point.prevalence, target_weight, non_target_weight)
                values[name][k] += times[number] / len(repeats) * np.array(_metrics(curve, point))
    return values
