"""Cross-fitting: every labelled object trains, calibrates and tests, and no network is tested on what trained it.

Labelled objects are divided into as many folds as the committee has networks, and network k is trained on all folds but
k. Each object is then scored by the one network that did not train on it: its out-of-fold score (cross-fitting:
Chernozhukov et al. 2018, Econometrics Journal 21, C1).
Nothing that depends on fold k may reach network k: synthetic galaxies for it are made without hosts, maps or negatives
of fold k, and the reference network that chooses hosts and negatives among the unlabelled galaxies is the real-only
network that was not trained on fold k either. So each network has a synthetic training set of its own.

A survey is scored by the mean m of all K networks, which scatters less than the score s of one of them. Both scatter
about what infinitely many networks would give, t: s = t + e, with Var(e) = g(t). How much networks differ depends on
the score, often tenfold in variance; so g is measured, on objects that trained no network (`scatter_of`). With it the
distribution of t is deconvolved from the out-of-fold scores of each kind: the likeliest, with a penalty on the third
derivative of its logarithm, so that it is normal where the data say nothing (Silverman 1982, Annals of Statistics 10,
795; deconvolution with a smooth exponential family: Efron 2016, Biometrika 103, 1). Noise of variance g / K then gives
the distribution of m, and each score s is moved to the same quantile of it (`correct`).

What is deconvolved says less than as many scores of the whole committee would: the mean of n of them is known to
Var(s)/n, and not to Var(m)/n. So n scores count as n Var(m)/Var(s) when they calibrate: as many equally spaced
quantiles stand for them (`calibration_set`). Uncorrected, the kinds overlap more than in the survey, and purity is
underestimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

LEAST = 200  # objects, below which the networks' scatter is not known well enough to correct for it
GRID = 81  # places of `Scatter`
ITERATIONS = 60  # of the EM algorithms that find it, and the distribution of each kind, at most
BANDWIDTH = 2.0  # places over which its variance is smoothed
BINS = 240  # of the out-of-fold scores of a kind


class Scatter(NamedTuple):
    """How one network scatters about what infinitely many would give, by the latter."""

    score: np.ndarray
    """Places, equally spaced, shape (`GRID`,)."""
    variance: np.ndarray
    """Of the score of one network there."""
    members: int
    objects: int


def scatter_of(scores: np.ndarray) -> Scatter | None:
    """Measure the scatter of networks on objects that trained none of them; None where they are fewer than `LEAST`.

    The variance by the mean of the networks would not do: that is noisy, too, and objects of equal mean differ by kind.
    The EM algorithm finds the likeliest variance at each place, and how many objects are there (nonparametric maximum
    likelihood: Laird 1978, Journal of the American Statistical Association 73, 805).

    Parameters
    ----------
    scores : ndarray, shape (members, n)
    """
    members, n = scores.shape
    if n < LEAST or members < 2:
        return None
    mean = scores.mean(0, dtype=np.float64)
    squares = ((scores - mean) ** 2).sum(0)
    step = (mean.max() - mean.min()) / (GRID - 11)
    grid = mean.min() + step * (np.arange(GRID) - 5)
    distance = members * (mean[:, None] - grid) ** 2 + squares[:, None]
    variance = np.full(GRID, max(squares.mean() / (members - 1), 1e-12))
    density = np.full(GRID, 1 / GRID)
    kernel = np.exp(-0.5 * ((np.arange(GRID)[:, None] - np.arange(GRID)) / BANDWIDTH) ** 2)
    least = 1e-4 * variance[0]
    for _ in range(ITERATIONS):
        log = np.log(density + 1e-300) - members / 2 * np.log(variance) - distance / (2 * variance)
        share = np.exp(log - log.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        density = share.mean(0)
        # Where hardly an object is, it is the mean of all places.
        found, weight = kernel @ (share * distance).sum(0), members * (kernel @ share.sum(0))
        variance = np.maximum((found + 1e-3 * variance.mean()) / (weight + 1e-3), least)
    return Scatter(grid, variance, members, n)


def correct(
    scores: np.ndarray, kinds: np.ndarray, scatter: Scatter | None
) -> tuple[np.ndarray, dict[Any, float] | None]:
    """Give out-of-fold scores of each kind the distribution of committee scores; their order stays.

    Without a `scatter` nothing is corrected: the kinds then overlap more than they do in the survey, and purity is
    underestimated rather than overestimated.

    Parameters
    ----------
    scores : ndarray, shape (n,)
    kinds : ndarray, shape (n,)
        What each object is, any values.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
    factors : dict, or None
        By which the standard deviation of each kind shrank.
    """
    scores = np.asarray(scores, np.float64)
    if scatter is None:
        return scores, None
    corrected, factors = scores.copy(), {}
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        corrected[rows], factors[kind] = _deconvolved(scores[rows], scatter)
    return corrected, factors


def _deconvolved(scores: np.ndarray, scatter: Scatter) -> tuple[np.ndarray, float]:
    """Move scores of objects of one kind to the quantiles of the mean of all networks; return them and the factor."""
    first = scores.std()
    if len(scores) < 2 or not first > 1e-9:
        return scores, 1.0
    # Places that reach as far as the scores of this kind do; what lies between two of them is noise.
    low, high = scores.min() - first, scores.max() + first
    grid = np.linspace(low, high, GRID)
    step = grid[1] - grid[0]
    noise = np.sqrt(np.interp(grid, scatter.score, scatter.variance) + step**2 / 12)
    edges = np.linspace(low - first, high + first, BINS + 1)
    counts = np.histogram(scores, edges)[0]
    seen = np.flatnonzero(counts)
    below = norm.cdf((edges[:, None] - grid) / noise)
    chance = np.diff(below, axis=0)[seen] + 1e-12
    rough = np.diff(np.eye(GRID), 3, axis=0)
    weight = (first / step) ** 5

    def loss(log: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the penalised likelihood's negative logarithm, its gradient, and the density."""
        density = np.exp(log - log.max())
        density /= density.sum()
        mixed, bent = chance @ density, rough @ log
        found = density * (chance.T @ (counts[seen] / mixed))
        value = weight * (bent @ bent) / 2 - counts[seen] @ np.log(mixed)
        return float(value), counts.sum() * density - found + weight * (rough.T @ bent), density

    # Steps of Newton's method with the information of complete data, as of the EM algorithm, halved where too long.
    spread = max(scores.var() - np.interp(scores, grid, noise**2).mean(), scores.var() / scatter.members)
    log = -((grid - scores.mean()) ** 2) / (2 * spread)
    penalty = weight * rough.T @ rough
    value, gradient, density = loss(log)
    for _ in range(ITERATIONS):
        information = counts.sum() * (np.diag(density + 1e-6) - np.outer(density, density)) + penalty
        change, length = np.linalg.solve(information, gradient), 1.0
        while (after := loss(log - length * change))[0] > value and length > 1e-3:
            length /= 2
        gained, log = value - after[0], log - length * change
        value, gradient, density = after
        if gained < 1e-3:
            break
    one = norm.cdf((scores[:, None] - grid) / noise) @ density
    fine = np.linspace(low - first, high + first, 10 * GRID)
    whole = norm.cdf((fine[:, None] - grid) / (noise / np.sqrt(scatter.members))) @ density
    moved = np.interp(one.clip(1e-12, 1 - 1e-12), whole + 1e-15 * np.arange(len(whole)), fine)
    mean = density @ grid
    own = density @ (grid - mean) ** 2
    scattered = density @ noise**2
    return moved, float(np.sqrt((own + scattered / scatter.members) / (own + scattered)))


NAMES = {1.0: "targets", 0.0: "negatives", -1.0: "ambiguous"}


def committee_scores(
    scores: np.ndarray, targets: np.ndarray, unlabelled: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return out-of-fold scores of one target as the committee would give them, and what was done to them.

    Parameters
    ----------
    scores, targets : ndarray, shape (n,)
        Targets are 1, 0, or NaN (ambiguous).
    unlabelled : ndarray, shape (members, m)
        Scores of objects that trained no network.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
    summary : dict
        ``objects`` of which the scatter is known, and ``factors``: by which each kind was shrunk, None if none was.
    """
    scatter = scatter_of(unlabelled)
    corrected, factors = correct(scores, np.nan_to_num(targets, nan=-1.0), scatter)
    named = None if factors is None else {NAMES[float(kind)]: factor for kind, factor in factors.items()}
    return corrected, {"objects": unlabelled.shape[1], "factors": named}


def calibration_set(
    scores: np.ndarray, targets: np.ndarray, factors: Mapping[str, float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, truth (1 or 0) and which are ambiguous of what calibrates: as many as the scores are worth.

    Quantiles of each kind (those of Hazen, at (k - 1/2) / m) keep its distribution. Ambiguous objects and negatives
    remain in proportion, as together they are the objects that are no targets.

    Parameters
    ----------
    scores, targets : ndarray, shape (n,)
        As `committee_scores` gives and takes them.
    factors : mapping of str to float, or None
        As of `committee_scores`; None: all scores as they are.
    """
    kinds = np.nan_to_num(targets, nan=-1.0)
    if factors is None:
        return np.asarray(scores, np.float64), (kinds == 1).astype(int), kinds == -1
    counts = {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)}
    worth = {kind: min(1.0, factors[NAMES[kind]] ** 2) for kind in counts}
    others = [kind for kind in counts if kind != 1]
    if others:
        common = sum(counts[kind] * worth[kind] for kind in others) / sum(counts[kind] for kind in others)
        worth |= dict.fromkeys(others, common)
    parts = {}
    for kind, count in counts.items():
        many = max(1, round(count * worth[kind]))
        parts[kind] = np.quantile(scores[kinds == kind], (np.arange(many) + 0.5) / many, method="hazen")
    kept = np.repeat([*parts], [len(part) for part in parts.values()])
    return np.concatenate([*parts.values()]), (kept == 1).astype(int), kept == -1


def describe(crossfit: Mapping[str, Any] | None) -> str:
    """Return in words how figures and calibration of a cross-fitted model came about."""
    if not crossfit:
        return ""
    text = (
        f"Cross-fitted in {crossfit['folds']} folds: every labelled object trained all networks but one, and that one "
        "gave its out-of-fold score, which calibrates and tests"
    )
    if not crossfit["factors"]:
        return (
            f"{text}. Scores of one network scatter more than the mean of all, by which a survey is scored; this is "
            f"not corrected, as it takes {LEAST} unlabelled objects that train nothing: purity may be underestimated."
        )
    factors = ", ".join(f"{name} {factor:.2f}" for name, factor in crossfit["factors"].items())
    return (
        f"{text}. Of the scatter of one network as much was taken out as the mean of all, by which a survey is scored, "
        f"has less, by {crossfit['objects']:,} unlabelled objects that train nothing. The standard deviation shrank by "
        f"{factors}; scores calibrate with its square as their weight."
    )
