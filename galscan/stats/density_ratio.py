"""Semi-parametric density ratio of targets to non-targets by score: between Platt's line and isotonic regression.

The family
    ln p(score | target) / p(score | non-target) is a monotone curve: piecewise linear, u, between `PIECES` + 1 knots,
    bent over to a ceiling c, as -ln(exp(-u) + exp(-c)). Platt's sigmoid (1999) is one piece without a ceiling; isotonic
    regression is many pieces without a smoothness prior. In between, the logarithms of the slopes are a random walk;
    the standard deviation of its step is a hyperparameter with the values `PRIOR_SCALES`: a small one gives Platt's
    line, a large one lets the data of each piece determine its slope. The ceiling is needed because a ratio need not
    keep rising beyond the last calibrated target: labels contain errors, and some non-targets resemble targets in every
    way. Extrapolating a straight line would be overconfident at the best ranks.

The likelihood
    Let n0 non-targets (negatives and ambiguous objects) and n1 targets be calibrated, and let N objects be surveyed, of
    which a fraction pi are targets (label shift). The distribution f0 of the non-targets is left free. Its profile (Qin
    1998, Biometrika 85, 619; Anderson 1979, Biometrika 66, 17) or its integral under a Bayesian bootstrap (Rubin 1981,
    Annals of Statistics 9, 130) turns the three samples into a multinomial regression of the sample's index on the
    score, with weights

        non-targets n0,    targets n1 exp(a + h),    survey N q exp(b) (1 + w exp(h)),

    where h is the curve relative to its value at the median target, and a, b are free, as the intercepts of
    case-control studies are (Prentice & Pyke 1979, Biometrika 66, 403; Seaman & Richardson 2004, Biometrika 91, 15),
    because sample sizes carry no information. w is the odds of a survey object with that median score to be a target,
    and q the fraction of objects with a score that were scored by the full network (1 % of those that a prefilter
    rejects). So every datum counts once, the survey's own histogram informs the curve, and no shape is assumed for f0:
    a shoulder of look-alikes that n0 is too small to show is allowed for.

The posterior draws
    For each prior scale, importance sampling from Student's t around the mode, refined once (adaptive multiple
    importance sampling, Cornuet et al. 2012, Scandinavian Journal of Statistics 39, 798): the sum of its weights is the
    evidence of that prior scale. The draws for all scales are resampled and moved by differential evolution (ter Braak
    2006, Statistics and Computing 16, 239), which keeps the posterior invariant and restores diversity.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PIECES, FINE = 7, 10  # number of linear pieces of the curve, and of histogram bins in each
PRIOR_SCALES = (0.3, 1.0, 3.0)  # standard deviation of the random walk of log slopes, end to end
RISE, RISE_SPREAD = np.log(9.0), 1.0  # log of the total rise between the outer knots, if all slopes are equal
CEILING, CEILING_SPREAD = np.log(0.8), 0.4  # log of the ceiling above the lowest knot, as a fraction of it
ODDS = 0.5  # Beta(1/2, 1/2), Jeffreys' prior, for the purity at the median target
AT_ONCE = 200  # curves evaluated together
FREE = 100.0  # standard deviation of a nearly flat prior
PROPOSALS, TAIL, MOVES = 800, 5, 20  # draws per round, degrees of freedom, moves after resampling
_A, _B, _W, _C, _FIRST = 0, 1, 2, 3, 4  # columns of the parameters; log slopes follow


@dataclass(frozen=True, eq=False)
class Curves:
    """Monotone curves: piecewise linear, extrapolated linearly, and bent over to a ceiling and a floor.

    `values`, shape (R, m + 1), are those of each curve at the `knots`, shape (m + 1,), before `ceilings`, shape (R,),
    and `floors`, shape (R,) or None, are applied.
    """

    knots: np.ndarray
    values: np.ndarray
    ceilings: np.ndarray
    floors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def subset(self, rows: slice) -> Curves:
        """Return a slice of the curves."""
        floors = None if self.floors is None else self.floors[rows]
        return Curves(self.knots, self.values[rows], self.ceilings[rows], floors)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the value of each curve at each score, shape (R, n)."""
        piece, fraction = _locate(self.knots, np.asarray(scores, np.float64))
        bent = np.empty((len(self.values), *piece.shape))
        for first in range(0, len(bent), AT_ONCE):  # intermediate arrays take several times the memory of the result
            rows = slice(first, first + AT_ONCE)
            values = self.values[rows]
            line = values[:, piece] + fraction * (values[:, piece + 1] - values[:, piece])
            bent[rows] = -np.logaddexp(-line, -self.ceilings[rows, None])
            if self.floors is not None:
                bent[rows] = np.logaddexp(bent[rows], self.floors[rows, None])
        return bent

    def bounded(self, floors: np.ndarray, ceilings: np.ndarray) -> Curves:
        """Return the curves with a floor and a ceiling each, shape (R,); a lower ceiling of their own is kept."""
        return Curves(self.knots, self.values, np.minimum(self.ceilings, ceilings), floors)


@dataclass(frozen=True)
class Departure:
    """Chi-square tests of label shift: whether the survey's scores agree with those of the calibration set."""

    p_value: float
    """Two-sample test of the calibrated negatives and the survey without its most probable targets."""
    targets_p_value: float
    """Test of the calibrated targets and those inferred for the survey."""
    negative_weight: float
    """Weight of a calibrated negative that would make the departure consistent with chance."""


class Evidence:
    """Data that constrain the curve: calibrated scores and, optionally, the score histogram of a survey.

    Parameters
    ----------
    negatives, positives : ndarray
        Calibrated scores of non-targets and targets; at least one each, and not all equal.
    centres, counts, scored : ndarray, optional
        Scores of the survey's histogram, the number of objects with each, and how many of them were scored by the full
        network; by default all.
    negative_weight : float
        Of a calibrated non-target; less than 1 where those of the survey have a different distribution.
    """

    def __init__(
        self, negatives: np.ndarray, positives: np.ndarray, centres: np.ndarray | None = None,
        counts: np.ndarray | None = None, scored: np.ndarray | None = None, negative_weight: float = 1.0,
    ) -> None:  # fmt: skip
        centres = np.empty(0) if centres is None else centres
        counts = np.empty(0) if counts is None else np.asarray(counts, np.float64)
        scored = counts if scored is None else np.asarray(scored, np.float64)
        self.knots = _knots(negatives, positives, centres, counts)
        self.median_target = float(np.median(positives))
        edges = _edges(self.knots)
        bins = [np.searchsorted(edges, scores) for scores in (negatives, positives, centres)]
        sample_weights = [np.full(len(negatives), negative_weight), np.ones(len(positives)), scored]
        sample_counts = np.array([np.bincount(g, w, len(edges) + 1) for g, w in zip(bins, sample_weights, strict=True)])
        used = sample_counts.sum(axis=0) > 0
        self.negatives, self.targets, self.survey = sample_counts[:, used]
        self.all = sample_counts[:, used].sum(axis=0)
        scores, weights = np.concatenate([negatives, positives, centres]), np.concatenate(sample_weights)
        self.centres = np.bincount(np.concatenate(bins), weights * scores, len(edges) + 1)[used] / self.all
        self.sizes = sample_counts.sum(axis=1)
        self.total = counts.sum()
        bin_totals = np.bincount(bins[2], counts, len(edges) + 1)[used]
        self.scored_fraction = np.where(bin_totals > 0, self.survey / np.maximum(bin_totals, 1e-300), 1.0)
        self.basis = self.basis_at(self.centres)
        self.piece_fractions = np.diff(self.knots) / (self.knots[-1] - self.knots[0])
        self.lowest = self.basis_at(self.knots[:1])[:, 0]
        self.size = _FIRST + len(self.knots) - 1

    def log_density(self, p: np.ndarray, prior_scale: np.ndarray) -> np.ndarray:
        """Return the log posterior of parameters `p` (R, size), up to a constant."""
        return self._density(p, prior_scale, False)[0]

    def _density(self, p: np.ndarray, prior_scale: np.ndarray, gradient: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the log posterior and, with `gradient`, its gradient."""
        from scipy.special import expit

        n0, n1, n = self.sizes
        slopes = np.exp(np.clip(p[:, _FIRST:], -30, 8))
        ceiling, lowest = self._ceiling(p, slopes)
        # einsum, here and below: a matrix product would start BLAS threads, which cost far more than they save.
        line = np.einsum("rm,mg->rg", slopes, self.basis)
        exp_line = np.exp(-np.clip(line, -200, 200))
        exp_ceiling = np.exp(-ceiling)[:, None]
        ratio = (1 + exp_ceiling) / (exp_line + exp_ceiling)
        odds = np.exp(np.clip(p[:, _W], -60, 60))[:, None] * ratio
        a, b = n1 * np.exp(np.clip(p[:, _A], -60, 60)), self.total * np.exp(np.clip(p[:, _B], -60, 60))
        surveyed = b[:, None] * self.scored_fraction
        weights = n0 + a[:, None] * ratio + surveyed * (1 + odds)
        value = (np.log1p(odds) * self.survey).sum(1) + (np.log(ratio) * self.targets).sum(1)
        value += n1 * p[:, _A] + n * p[:, _B] - (np.log(weights) * self.all).sum(1)
        steps = np.diff(p[:, _FIRST:], axis=1)
        precision = max(steps.shape[1], 1) / prior_scale**2
        rise = p[:, _FIRST:].mean(axis=1) - RISE
        ceiling_pull = (p[:, _C] - CEILING) / CEILING_SPREAD**2
        intercepts = p[:, [_A, _B]] / FREE**2
        overflow = np.maximum(np.abs(line) - 100, 0)  # beyond any realistic log ratio: keeps it from overflowing
        value -= 0.5 * (precision * (steps**2).sum(1) + (rise / RISE_SPREAD) ** 2 + ceiling_pull**2 * CEILING_SPREAD**2)
        value += ODDS * (p[:, _W] - 2 * np.logaddexp(0, p[:, _W])) - 0.5 * (intercepts**2).sum(1) * FREE**2
        value -= 0.5 * (overflow**2).sum(1)
        if not gradient:
            return value, np.empty(0)
        per_weight = self.all / weights
        survey_targets = self.survey * odds / (1 + odds)
        # Derivative with respect to the log ratio.
        residual = survey_targets + self.targets - per_weight * (a[:, None] * ratio + surveyed * odds)
        line_weight = exp_line / (exp_line + exp_ceiling)
        ceiling_gradient = (residual * (1 - line_weight)).sum(1) - residual.sum(1) * expit(-ceiling)
        g = np.empty_like(p)
        g[:, _A] = n1 - (per_weight * ratio).sum(1) * a - intercepts[:, 0]
        g[:, _B] = n - (per_weight * surveyed * (1 + odds)).sum(1) - intercepts[:, 1]
        g[:, _W] = survey_targets.sum(1) - (per_weight * surveyed * odds).sum(1) + ODDS * (1 - 2 * expit(p[:, _W]))
        g[:, _C] = ceiling_gradient * (ceiling - lowest) - ceiling_pull
        g[:, _FIRST:] = slopes * np.einsum("rg,mg->rm", residual * line_weight - overflow * np.sign(line), self.basis)
        g[:, _FIRST:] += ceiling_gradient[:, None] * slopes * (np.exp(p[:, [_C]]) * self.piece_fractions + self.lowest)
        g[:, _FIRST:] -= (rise / RISE_SPREAD**2 / (p.shape[1] - _FIRST))[:, None]
        pull = precision[:, None] * steps
        g[:, _FIRST:-1] += pull
        g[:, _FIRST + 1 :] -= pull
        return value, g

    def departure(self) -> Departure:
        """Test the calibrated negatives against the survey's non-targets: its objects less the expected targets.

        Cells are counted from the highest score down, each twice as large as the one before, because purity depends on
        high scores; the rest is divided into eighths. Targets are tested in eighths of at least five each.
        """
        from scipy.special import chdtrc

        p, _ = self.mode(1.0)
        targets_p_value = self._departure_of_targets(p)
        log_odds = self.curves(p[None])(self.centres)[0]
        surveyed = self.total * np.exp(p[_B]) * self.scored_fraction * (1 + np.exp(log_odds))
        fraction = self.sizes[0] / (self.sizes[0] + surveyed)  # of calibrated negatives among these and the survey
        both = self.negatives + self.survey
        expected = fraction * both
        cumulative = np.cumsum(expected[::-1])[::-1]
        n0 = cumulative[0]
        steps = [5.0 * 2**k for k in range(60) if 5.0 * (2 ** (k + 1) - 1) < n0 / 4]
        edges = np.concatenate([np.cumsum(steps), n0 * np.arange(2, 8) / 8 if n0 >= 40 else [n0 / 2]])
        cell = np.searchsorted(edges, cumulative - 0.5 * expected)
        observed, mean, variance = (
            np.bincount(cell, x) for x in (self.negatives, expected, both * fraction * (1 - fraction))
        )
        occupied = mean >= 1
        if occupied.sum() < 2:
            return Departure(1.0, targets_p_value, 1.0)
        statistic = float(((observed - mean)[occupied] ** 2 / variance[occupied]).sum())
        degrees = int(occupied.sum()) - 1
        return Departure(float(chdtrc(degrees, statistic)), targets_p_value, min(1.0, degrees / max(statistic, 1e-300)))

    def _departure_of_targets(self, p: np.ndarray) -> float:
        """Return the p-value of the calibrated targets' scores under the curve fitted to all three samples."""
        from scipy.special import chdtrc

        n0, n1, _ = self.sizes
        ratio = self.curves(p[None], start=0)(self.centres)[0]
        odds = self.curves(p[None])(self.centres)[0]
        targets = n1 * np.exp(ratio)
        weights = n0 + targets + self.total * np.exp(p[_B]) * self.scored_fraction * (1 + np.exp(odds))
        expected = self.all * targets / weights
        expected *= n1 / expected.sum()
        cells = int(min(8, n1 // 5))
        if cells < 2:
            return 1.0
        cell = np.minimum((np.cumsum(expected) - 0.5 * expected) * cells / n1, cells - 1).astype(int)
        observed, mean = (np.bincount(cell, x, cells) for x in (self.targets, expected))
        occupied = mean > 0
        return float(chdtrc(occupied.sum() - 1, ((observed - mean)[occupied] ** 2 / mean[occupied]).sum()))

    def mode(self, prior_scale: float, start: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the posterior mode and a matrix L with L L' the covariance around it.

        Newton's method with the absolute values of the curvature, so that it ascends from any start.
        """
        x = np.concatenate([[0.0, 0.0, -1.0, CEILING], np.full(self.size - _FIRST, RISE)]) if start is None else start
        prior_scales = np.array([prior_scale])
        value, gradient = (array[0] for array in self._density(x[None], prior_scales, True))
        for _ in range(100):
            curvature, axes = self._curvature(x, prior_scale)
            step = axes @ ((axes.T @ gradient) / curvature)
            step *= min(1.0, 3.0 / np.abs(step).max())
            length = 1.0
            while length > 1e-6 and not self.log_density(x[None] + length * step, prior_scales)[0] > value:
                length *= 0.5
            if length <= 1e-6:
                break
            x, previous = x + length * step, value
            value, gradient = (array[0] for array in self._density(x[None], prior_scales, True))
            if value - previous < 1e-6:
                break
        curvature, axes = self._curvature(x, prior_scale)
        return x, axes / np.sqrt(curvature)

    def _curvature(self, x: np.ndarray, prior_scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the curvature of the log density along its principal axes, from differences of its gradient."""
        step = 1e-4 * np.eye(self.size)
        gradients = self._density(np.concatenate([x + step, x - step]), np.array([prior_scale]), True)[1]
        hessian = (gradients[self.size :] - gradients[: self.size]) / 2e-4
        values, axes = np.linalg.eigh(0.5 * (hessian + hessian.T))
        return np.maximum(np.abs(values), 1e-2), axes

    def draw(self, draws: int, rng: np.random.Generator, *, ratio: bool = False) -> tuple[Curves, np.ndarray]:
        """Draw curves of the log odds of a survey object to be a target, and the weight of each prior scale.

        With `ratio`, curves of the log density ratio, which needs no survey.
        """
        samples, log_weights, start = [], [], None
        for prior_scale in PRIOR_SCALES:
            start, spread = self.mode(prior_scale, start)
            p, weight = self._importance_sample(start, spread, prior_scale, rng)
            samples.append(np.column_stack([p, np.full(len(p), prior_scale)]))
            log_weights.append(weight)
        pooled, log_weight = np.concatenate(samples), np.concatenate(log_weights)
        weight = np.exp(log_weight - log_weight.max())
        steps = np.cumsum(weight / weight.sum())
        chosen = np.searchsorted(steps, (rng.random() + np.arange(draws)) / draws).clip(max=len(steps) - 1)
        resampled = pooled[rng.permutation(chosen)]
        p = self._differential_evolution(resampled[:, :-1], resampled[:, -1], rng)
        scale_weights = np.array([w.sum() for w in np.split(weight, len(PRIOR_SCALES))]) / weight.sum()
        return self.curves(p, start=_A if ratio else _W), scale_weights

    def _importance_sample(
        self, mode: np.ndarray, spread: np.ndarray, prior_scale: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return draws around the mode and the logarithms of their importance weights."""
        centre, proposals, draws, log_posterior = mode, [], np.empty((0, self.size)), np.empty(0)
        for _ in range(2):
            steps = rng.standard_normal((PROPOSALS, self.size))
            steps /= np.sqrt(rng.chisquare(TAIL, PROPOSALS) / TAIL)[:, None]
            draws = np.concatenate([draws, centre + np.einsum("rj,ij->ri", steps, spread)])
            new = self.log_density(draws[-PROPOSALS:], np.array([prior_scale]))
            log_posterior = np.concatenate([log_posterior, new])
            proposals.append((centre, np.linalg.inv(spread)))
            log_proposals = [_student(draws, *q) for q in proposals]
            log_weight = log_posterior - (np.logaddexp.reduce(log_proposals, axis=0) - np.log(len(proposals)))
            weight = np.exp(log_weight - log_weight.max())
            weight = np.minimum(weight, weight.sum() / 20)  # no single draw may dominate the next proposal
            weight /= weight.sum()
            centre = weight @ draws
            deviation = (draws - centre) * np.sqrt(weight)[:, None]
            spread = np.linalg.cholesky(0.9 * deviation.T @ deviation + 0.1 * spread @ spread.T)
        # Normalisation of the prior, which depends on the prior scale.
        return draws, log_weight - (self.size - _FIRST - 1) * np.log(prior_scale)

    def _differential_evolution(self, p: np.ndarray, prior_scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Move resampled draws by differential evolution: each half by differences within the other half."""
        current, half = self.log_density(p, prior_scale), len(p) // 2
        step_scale = 2.38 / np.sqrt(2 * self.size)
        for turn in range(2 * MOVES):
            moved, others = (np.arange(half), np.arange(half, len(p)))[:: -1 if turn % 2 else 1]
            first, second = rng.choice(others, len(moved)), rng.choice(others, len(moved))
            scale = step_scale * np.exp(0.5 * rng.standard_normal((len(moved), 1)))
            proposed = p[moved] + scale * (p[first] - p[second]) + 1e-6 * rng.standard_normal((len(moved), self.size))
            log_posterior = self.log_density(proposed, prior_scale[moved])
            accepted = np.log(rng.random(len(moved))) < log_posterior - current[moved]
            p[moved[accepted]], current[moved[accepted]] = proposed[accepted], log_posterior[accepted]
        return p

    def basis_at(self, scores: np.ndarray) -> np.ndarray:
        """Return the rise of each piece from the median target to each score, for a slope of one over all pieces."""
        return _ramps(scores, self.knots) - _ramps(np.array([self.median_target]), self.knots)

    def _ceiling(self, p: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the height of the ceiling above the line at the median target, and the line at the lowest knot."""
        lowest = (slopes * self.lowest).sum(axis=1)
        height = np.exp(np.clip(p[:, _C], -10, 10)) * (slopes * self.piece_fractions).sum(axis=1) + lowest
        return np.clip(height, -200, 200), lowest

    def curves(self, p: np.ndarray, start: int = _W) -> Curves:
        """Return the curves of parameters: log odds in the survey, or (`start` = 0) the log density ratio."""
        slopes = np.exp(np.clip(p[:, _FIRST:], -30, 8))
        height = self._ceiling(p, slopes)[0]
        level = p[:, start] + np.logaddexp(0, -height)  # the bent curve is zero at the median target
        values = level[:, None] + np.einsum("rm,mg->rg", slopes, self.basis_at(self.knots))
        return Curves(self.knots, values, level + height)


def _student(p: np.ndarray, centre: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return the log density of Student's t, up to a constant."""
    squared_distance = (np.einsum("rj,ij->ri", p - centre, inverse) ** 2).sum(axis=1)
    return np.linalg.slogdet(inverse)[1] - 0.5 * (TAIL + len(centre)) * np.log1p(squared_distance / TAIL)


def _locate(knots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the piece that contains each score (the outer pieces are unbounded), and the position within it."""
    piece = np.clip(np.searchsorted(knots, scores, side="right") - 1, 0, len(knots) - 2)
    return piece, (scores - knots[piece]) / (knots[piece + 1] - knots[piece])


def _ramps(scores: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return the rise of each piece up to each score, for a slope of one over all pieces: (m, n)."""
    low, high = np.r_[-np.inf, knots[1:-1]], np.r_[knots[1:-1], np.inf]
    return (np.clip(scores, low[:, None], high[:, None]) - knots[:-1, None]) / (knots[-1] - knots[0])


def _knots(negatives: np.ndarray, positives: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the knots: quantiles of the calibrated targets and of the survey's highest ranks."""
    order = np.argsort(-(centres if len(centres) else negatives))
    scores = (centres if len(centres) else negatives)[order]
    above = np.cumsum((counts if len(centres) else np.ones(len(negatives)))[order])
    ranks = np.geomspace(min(3.0, above[-1]), above[-1] / 2, 40)
    best = scores[np.searchsorted(above, ranks).clip(max=len(scores) - 1)]
    pooled = np.concatenate([best, np.quantile(positives, (np.arange(40) + 0.5) / 40)])
    low, high = min(pooled.min(), positives.min()), pooled.max()
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):  # all scores equal: any width will do
        return np.array([low - max(abs(low), 1.0), high + max(abs(high), 1.0)])
    knots = [low]
    for knot in np.quantile(pooled, np.arange(1, PIECES) / PIECES):
        if min(knot - knots[-1], high - knot) > (high - low) / (5 * PIECES):
            knots.append(knot)
    return np.array([*knots, high])


def _edges(knots: np.ndarray) -> np.ndarray:
    """Return the edges of the score bins: fine between the knots, coarse beyond."""
    inner = [np.linspace(low, high, FINE, endpoint=False) for low, high in pairwise(knots)]
    edges = np.concatenate([*inner, knots[-1:]])
    below, above = 2 * (edges[1] - edges[0]), edges[-1] - edges[-2]
    return np.concatenate([edges[0] - below * np.arange(8, 0, -1), edges, edges[-1] + above * np.arange(1, 6)])
