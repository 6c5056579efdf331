"""Cross-fitting: every labelled object is used for training, calibration and test, and scored out of fold.

Labelled objects are divided into as many folds as the ensemble has networks, and network k is trained on all folds but
k. Each object is then scored by the one network that was not trained on it: its out-of-fold score (cross-fitting:
Chernozhukov et al. 2018, Econometrics Journal 21, C1). No data from fold k reach network k: its synthetic galaxies are
made without hosts, maps or negatives of fold k, and the reference classifier that selects hosts and negatives among the
unlabelled galaxies is the real-only network that was not trained on fold k either. So each network has its own
synthetic training set.

A survey is scored by the mean m of all K networks, which has less scatter than the score s of one of them. Both scatter
about the limit t of infinitely many networks: s = t + e, with Var(e) = g(t). The variance between networks depends on
the score, often by a factor of ten; so g is measured on objects that trained no network (`scatter_of`). With it the
distribution of t is deconvolved from the out-of-fold scores of each class by penalised maximum likelihood, with a
penalty on the third derivative of the log density, so that it is normal where data are lacking (Silverman 1982, Annals
of Statistics 10, 795; deconvolution with a smooth exponential family: Efron 2016, Biometrika 103, 1). Adding noise of
variance g / K gives the distribution of m, and each score s is mapped to the same quantile of it (`correct`).

Deconvolved scores carry less information than as many scores of the ensemble: the mean of n of them has the variance
Var(s)/n instead of Var(m)/n. So n scores count as n Var(m)/Var(s) in the calibration: they are represented by as many
equally spaced quantiles (`calibration_set`). Without the correction, the classes overlap more than in the survey, and
purity is underestimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

LEAST = 200  # objects, below which the scatter is too uncertain to correct for it
GRID = 81  # grid points of `Scatter`
ITERATIONS = 60  # at most, of the EM algorithm for the scatter and of Newton's method for the density of each class
BANDWIDTH = 2.0  # grid points over which the variance is smoothed
BINS = 240  # of the histogram of out-of-fold scores of a class


class Scatter(NamedTuple):
    """Scatter of the score of one network about the limit of infinitely many networks, as a function of that limit."""

    score: np.ndarray
    """Grid of scores, equally spaced, shape (`GRID`,)."""
    variance: np.ndarray
    """Variance of the score of one network at each grid point."""
    members: int
    objects: int


def scatter_of(scores: np.ndarray) -> Scatter | None:
    """Measure the scatter of networks on objects that trained none of them; None for fewer than `LEAST` objects.

    Binning the variance by the networks' mean score would be biased: that mean is noisy, and objects of equal mean
    differ between classes. The EM algorithm finds the maximum-likelihood variance at each grid point, and the
    distribution of objects over the grid (nonparametric maximum likelihood: Laird 1978, Journal of the American
    Statistical Association 73, 805). `scores` has the shape (members, n).
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
    floor = 1e-4 * variance[0]
    for _ in range(ITERATIONS):
        log = np.log(density + 1e-300) - members / 2 * np.log(variance) - distance / (2 * variance)
        responsibility = np.exp(log - log.max(1, keepdims=True))
        responsibility /= responsibility.sum(1, keepdims=True)
        density = responsibility.mean(0)
        weighted_squares = kernel @ (responsibility * distance).sum(0)
        weight = members * (kernel @ responsibility.sum(0))
        # Where there are hardly any objects, the mean over the grid is used.
        variance = np.maximum((weighted_squares + 1e-3 * variance.mean()) / (weight + 1e-3), floor)
    return Scatter(grid, variance, members, n)


def correct(scores: np.ndarray, scatter: Scatter) -> tuple[np.ndarray, float]:
    """Map out-of-fold scores of one class to the distribution of ensemble scores; their order is preserved.

    Also return the factor by which the standard deviation was reduced.
    """
    scores = np.asarray(scores, np.float64)
    sigma = scores.std()
    if len(scores) < 2 or not sigma > 1e-9:
        return scores, 1.0
    # The grid covers the scores of this class; spacing adds step^2 / 12 to the noise variance.
    low, high = scores.min() - sigma, scores.max() + sigma
    grid = np.linspace(low, high, GRID)
    step = grid[1] - grid[0]
    noise = np.sqrt(np.interp(grid, scatter.score, scatter.variance) + step**2 / 12)
    edges = np.linspace(low - sigma, high + sigma, BINS + 1)
    counts = np.histogram(scores, edges)[0]
    occupied = np.flatnonzero(counts)
    cdf = norm.cdf((edges[:, None] - grid) / noise)
    likelihood = np.diff(cdf, axis=0)[occupied] + 1e-12
    third_difference = np.diff(np.eye(GRID), 3, axis=0)
    weight = (sigma / step) ** 5

    def loss(log_density: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the penalised negative log likelihood, its gradient, and the density."""
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        predicted, curvature = likelihood @ density, third_difference @ log_density
        found = density * (likelihood.T @ (counts[occupied] / predicted))
        value = weight * (curvature @ curvature) / 2 - counts[occupied] @ np.log(predicted)
        return float(value), counts.sum() * density - found + weight * (third_difference.T @ curvature), density

    # Newton steps with the complete-data information, as in the EM algorithm; halved where too long.
    variance = max(scores.var() - np.interp(scores, grid, noise**2).mean(), scores.var() / scatter.members)
    log_density = -((grid - scores.mean()) ** 2) / (2 * variance)
    penalty = weight * third_difference.T @ third_difference
    value, gradient, density = loss(log_density)
    for _ in range(ITERATIONS):
        information = counts.sum() * (np.diag(density + 1e-6) - np.outer(density, density)) + penalty
        change, length = np.linalg.solve(information, gradient), 1.0
        while (proposal := loss(log_density - length * change))[0] > value and length > 1e-3:
            length /= 2
        gain, log_density = value - proposal[0], log_density - length * change
        value, gradient, density = proposal
        if gain < 1e-3:
            break
    score_cdf = norm.cdf((scores[:, None] - grid) / noise) @ density
    fine_grid = np.linspace(low - sigma, high + sigma, 10 * GRID)
    ensemble_cdf = norm.cdf((fine_grid[:, None] - grid) / (noise / np.sqrt(scatter.members))) @ density
    mapped = np.interp(score_cdf.clip(1e-12, 1 - 1e-12), ensemble_cdf + 1e-15 * np.arange(len(ensemble_cdf)), fine_grid)
    mean = density @ grid
    true_variance = density @ (grid - mean) ** 2
    noise_variance = density @ noise**2
    return mapped, float(np.sqrt((true_variance + noise_variance / scatter.members) / (true_variance + noise_variance)))


NAMES = {1.0: "targets", 0.0: "negatives", -1.0: "ambiguous"}


def committee_scores(
    scores: np.ndarray, targets: np.ndarray, unlabelled: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return out-of-fold scores of one target, corrected to the distribution of ensemble scores, and a summary.

    With too few unlabelled objects nothing is corrected: the classes then overlap more than in the survey, and purity
    is underestimated rather than overestimated.

    Parameters
    ----------
    scores, targets : ndarray, shape (n,)
        Targets are 1, 0, or NaN (ambiguous).
    unlabelled : ndarray, shape (members, m)
        Scores of objects that trained no network. The summary has their number, ``objects``, and the ``factors`` of
        `correct` by class, None if nothing was corrected.
    """
    scatter, classes = scatter_of(unlabelled), np.nan_to_num(targets, nan=-1.0)
    corrected, factors = np.array(scores, np.float64), {}
    if scatter is not None:
        for label in np.unique(classes):
            rows = classes == label
            corrected[rows], factors[NAMES[label]] = correct(corrected[rows], scatter)
    return corrected, {"objects": unlabelled.shape[1], "factors": factors or None}


def calibration_set(
    scores: np.ndarray, targets: np.ndarray, factors: Mapping[str, float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, truth (1 or 0) and ambiguity flags of the calibration set, at its effective size.

    The quantiles of each class (of Hazen, at (k - 1/2) / m) keep its distribution. The proportion of ambiguous objects
    and negatives is kept, as together they are the non-targets. Arguments are those of `committee_scores`; without
    `factors` all scores are used as they are.
    """
    classes = np.nan_to_num(targets, nan=-1.0)
    if factors is None:
        return np.asarray(scores, np.float64), (classes == 1).astype(int), classes == -1
    counts = {label: int((classes == label).sum()) for label in np.unique(classes)}
    efficiency = {label: min(1.0, factors[NAMES[label]] ** 2) for label in counts}
    non_targets = [label for label in counts if label != 1]
    if non_targets:
        effective = sum(counts[label] * efficiency[label] for label in non_targets)
        efficiency |= dict.fromkeys(non_targets, effective / sum(counts[label] for label in non_targets))
    quantiles = {}
    for label, count in counts.items():
        size = max(1, round(count * efficiency[label]))
        quantiles[label] = np.quantile(scores[classes == label], (np.arange(size) + 0.5) / size, method="hazen")
    labels = np.repeat([*quantiles], [len(values) for values in quantiles.values()])
    return np.concatenate([*quantiles.values()]), (labels == 1).astype(int), labels == -1


def describe(crossfit: Mapping[str, Any] | None) -> str:
    """Return a sentence for reports on how a cross-fitted model was tested and calibrated."""
    if not crossfit:
        return ""
    text = (
        f"Cross-fitted in {crossfit['folds']} folds: every labelled object trained all networks but one, and that one "
        "gave its out-of-fold score, which is used for calibration and test"
    )
    if not crossfit["factors"]:
        return (
            f"{text}. Scores of one network scatter more than the mean of all, by which a survey is scored. This is "
            f"not corrected, as that needs {LEAST} unlabelled objects outside training: purity may be underestimated."
        )
    factors = ", ".join(f"{name} {factor:.2f}" for name, factor in crossfit["factors"].items())
    return (
        f"{text}. The scores were corrected to the smaller scatter of the mean of all networks, by which a survey is "
        f"scored, as measured on {crossfit['objects']:,} unlabelled objects outside training. The standard deviation "
        f"changed by the factors {factors}; scores are weighted in the calibration by their squares."
    )
