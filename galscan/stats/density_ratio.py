"""How much likelier a score is for a target than for another object: a curve between Platt's line and isotonic steps.

The family
    ln p(score | target) / p(score | not) is a rising curve: straight pieces u between `PIECES` + 1 knots, bent over to
    a ceiling c, as -ln(exp(-u) + exp(-c)). Platt's sigmoid (1999) is one piece without a ceiling; isotonic regression
    is many pieces without a tie. In between, the logarithms of the slopes are a random walk whose step is a dial,
    `STIFFNESS`: a small step is Platt's line, a large one leaves each piece to its own data. The ceiling is there
    because a ratio need not go on rising beyond the last calibrated target: labels err, and some of the others look
    like targets in every way. Whoever extends a straight line is too sure of the best ranks.

The likelihood
    Let n0 others and n1 targets be calibrated, and N objects be surveyed, of which a share pi are targets (label
    shift). The distribution f0 of the others is left free. Its profile (Qin 1998, Biometrika 85, 619; Anderson 1979,
    Biometrika 66, 17) or its integral under a Bayesian bootstrap (Rubin 1981, Annals of Statistics 9, 130) turns the
    three samples into a multinomial regression of "which sample" on the score, with weights

        others n0,    targets n1 exp(a + h),    survey N q exp(b) (1 + w exp(h)),

    where h is the curve counted from the median target, and a, b are free as the intercepts of case-control studies are
    (Prentice & Pyke 1979, Biometrika 66, 403; Seaman & Richardson 2004, Biometrika 91, 15): the sizes of the samples
    say nothing. w is the odds of an object of the survey with that median score, and q the share of its objects that
    were scored at all (one in a hundred of what a first look discards). So every datum counts once, the
    survey's own histogram informs the curve, and no shape is assumed of the others: a shoulder of look-alikes that n0
    is too small to show is allowed for.

The draws
    For each position of the dial, importance sampling from Student's t around the mode, refined once (adaptive multiple
    importance sampling, Cornuet et al. 2012, Scandinavian Journal of Statistics 39, 798): the sum of its weights is
    the position's evidence. The draws of all are resampled and moved by differential evolution (ter Braak 2006,
    Statistics and Computing 16, 239), which leaves the posterior as it is and mends what resampling made poor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import chdtrc, expit

PIECES, FINE = 7, 10  # of the curve, and of each of its pieces for counting scores
STIFFNESS = (0.3, 1.0, 3.0)  # standard deviation of the random walk of log slopes, end to end
RISE, RISE_SPREAD = np.log(9.0), 1.0  # log of how far the line rises between its outer knots, were its slopes alike
CEILING, CEILING_SPREAD = np.log(0.8), 0.4  # log of the ceiling's height over the lowest knot, as a share of that rise
ODDS = 0.5  # Beta(1/2, 1/2), Jeffreys' prior, of the purity at the median target
AT_ONCE = 200  # curves that are evaluated together
FREE = 100.0  # standard deviation of what is as good as flat
PROPOSALS, TAIL, MOVES = 800, 5, 20  # draws a round, degrees of freedom, moves after resampling
_A, _B, _W, _C, _FIRST = 0, 1, 2, 3, 4  # columns of the parameters; log slopes follow


@dataclass(frozen=True, eq=False)
class Curves:
    """Rising curves: straight between the knots and on beyond them, bent over to a ceiling and, below, to a floor.

    Attributes
    ----------
    knots : ndarray, shape (m + 1,)
    values : ndarray, shape (R, m + 1)
        Of each curve at the knots, before it is bent.
    ceilings : ndarray, shape (R,)
    floors : ndarray, shape (R,), or None
    """

    knots: np.ndarray
    values: np.ndarray
    ceilings: np.ndarray
    floors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def some(self, which: slice) -> Curves:
        """Return some of the curves."""
        floors = None if self.floors is None else self.floors[which]
        return Curves(self.knots, self.values[which], self.ceilings[which], floors)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the value of each curve at each score, shape (R, n)."""
        where, part = _place(self.knots, np.asarray(scores, np.float64))
        bent = np.empty((len(self.values), *where.shape))
        for first in range(0, len(bent), AT_ONCE):  # what lies between takes several times the memory of the result
            some = slice(first, first + AT_ONCE)
            values = self.values[some]
            line = values[:, where] + part * (values[:, where + 1] - values[:, where])
            bent[some] = -np.logaddexp(-line, -self.ceilings[some, None])
            if self.floors is not None:
                bent[some] = np.logaddexp(bent[some], self.floors[some, None])
        return bent

    def bounded(self, floors: np.ndarray, ceilings: np.ndarray) -> Curves:
        """Return the curves within a floor and a ceiling of each, shape (R,); their own ceilings hold where lower."""
        return Curves(self.knots, self.values, np.minimum(self.ceilings, ceilings), floors)


@dataclass(frozen=True)
class Departure:
    """How far a survey's scores are from those of the calibration set: chi-square tests.

    Attributes
    ----------
    p_value : float
        Of the negatives and the survey without its likeliest targets: two samples.
    targets_p_value : float
        Of the calibrated targets and those that the survey would have to hold.
    trust : float
        What a calibrated negative should count for, so that the departure would be what chance makes it.
    """

    p_value: float
    targets_p_value: float
    trust: float


class Evidence:
    """Calibrated scores and, if there is one, a survey's histogram: what is known of the curve.

    Parameters
    ----------
    negatives, positives : ndarray
        Calibrated scores; at least one each, and not all the same.
    centres, counts, seen : ndarray, optional
        The survey's scores, how many objects have each, and how many of them were scored to know it; all by default.
    trust : float
        What a calibrated negative counts for; less than 1 where the survey's others are seen to differ.
    """

    def __init__(
        self, negatives: np.ndarray, positives: np.ndarray, centres: np.ndarray | None = None,
        counts: np.ndarray | None = None, seen: np.ndarray | None = None, trust: float = 1.0,
    ) -> None:  # fmt: skip
        centres = np.empty(0) if centres is None else centres
        counts = np.empty(0) if counts is None else np.asarray(counts, np.float64)
        seen = counts if seen is None else np.asarray(seen, np.float64)
        self.knots = _knots(negatives, positives, centres, counts)
        self.middle = float(np.median(positives))
        edges = _edges(self.knots)
        group = [np.searchsorted(edges, scores) for scores in (negatives, positives, centres)]
        weight = [np.full(len(negatives), trust), np.ones(len(positives)), seen]
        found = np.array([np.bincount(g, w, len(edges) + 1) for g, w in zip(group, weight, strict=True)])
        used = found.sum(axis=0) > 0
        self.others, self.targets, self.survey = found[:, used]
        self.all = found[:, used].sum(axis=0)
        scores, every = np.concatenate([negatives, positives, centres]), np.concatenate(weight)
        self.centres = np.bincount(np.concatenate(group), every * scores, len(edges) + 1)[used] / self.all
        self.sizes = found.sum(axis=1)
        self.total = counts.sum()
        of_all = np.bincount(group[2], counts, len(edges) + 1)[used]
        self.drawn = np.where(of_all > 0, self.survey / np.maximum(of_all, 1e-300), 1.0)
        self.basis = self.basis_at(self.centres)
        self.shares = np.diff(self.knots) / (self.knots[-1] - self.knots[0])
        self.foot = self.basis_at(self.knots[:1])[:, 0]
        self.size = _FIRST + len(self.knots) - 1

    def log_density(self, p: np.ndarray, stiffness: np.ndarray) -> np.ndarray:
        """Return the logarithm of the posterior of parameters `p` (R, size), up to a constant."""
        return self._density(p, stiffness, False)[0]

    def _density(self, p: np.ndarray, stiffness: np.ndarray, slope: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the log posterior and, if asked for, its gradient."""
        n0, n1, n = self.sizes
        steep = np.exp(np.clip(p[:, _FIRST:], -30, 8))
        height, foot = self._ceiling(p, steep)
        # Not a matrix product, here and below: threads of BLAS cost far more than they save.
        line = np.einsum("rm,mg->rg", steep, self.basis)
        down = np.exp(-np.clip(line, -200, 200))
        flat = np.exp(-height)[:, None]
        ratio = (1 + flat) / (down + flat)
        odds = np.exp(np.clip(p[:, _W], -60, 60))[:, None] * ratio
        a, b = n1 * np.exp(np.clip(p[:, _A], -60, 60)), self.total * np.exp(np.clip(p[:, _B], -60, 60))
        surveyed = b[:, None] * self.drawn
        weights = n0 + a[:, None] * ratio + surveyed * (1 + odds)
        value = (np.log1p(odds) * self.survey).sum(1) + (np.log(ratio) * self.targets).sum(1)
        value += n1 * p[:, _A] + n * p[:, _B] - (np.log(weights) * self.all).sum(1)
        walk = np.diff(p[:, _FIRST:], axis=1)
        loose = max(walk.shape[1], 1) / stiffness**2
        level = p[:, _FIRST:].mean(axis=1) - RISE
        bend = (p[:, _C] - CEILING) / CEILING_SPREAD**2
        free = p[:, [_A, _B]] / FREE**2
        over = np.maximum(np.abs(line) - 100, 0)  # no ratio is so large: what overflows is kept away
        value -= 0.5 * (loose * (walk**2).sum(1) + (level / RISE_SPREAD) ** 2 + bend**2 * CEILING_SPREAD**2)
        value += ODDS * (p[:, _W] - 2 * np.logaddexp(0, p[:, _W])) - 0.5 * (free**2).sum(1) * FREE**2
        value -= 0.5 * (over**2).sum(1)
        if not slope:
            return value, np.empty(0)
        share = self.all / weights
        found = self.survey * odds / (1 + odds)
        each = found + self.targets - share * (a[:, None] * ratio + surveyed * odds)  # by the log ratio
        bent = down / (down + flat)
        lift = (each * (1 - bent)).sum(1) - each.sum(1) * expit(-height)
        g = np.empty_like(p)
        g[:, _A] = n1 - (share * ratio).sum(1) * a - free[:, 0]
        g[:, _B] = n - (share * surveyed * (1 + odds)).sum(1) - free[:, 1]
        g[:, _W] = found.sum(1) - (share * surveyed * odds).sum(1) + ODDS * (1 - 2 * expit(p[:, _W]))
        g[:, _C] = lift * (height - foot) - bend
        g[:, _FIRST:] = steep * np.einsum("rg,mg->rm", each * bent - over * np.sign(line), self.basis)
        g[:, _FIRST:] += lift[:, None] * steep * (np.exp(p[:, [_C]]) * self.shares + self.foot)
        g[:, _FIRST:] -= (level / RISE_SPREAD**2 / (p.shape[1] - _FIRST))[:, None]
        pull = loose[:, None] * walk
        g[:, _FIRST:-1] += pull
        g[:, _FIRST + 1 :] -= pull
        return value, g

    def departure(self) -> Departure:
        """Compare the negatives with the others of the survey: its objects without the likeliest targets.

        Cells are counted from the highest score down, each twice as many as the one before, as purity is decided
        there; then by eighths. Targets are in eighths, each of five at least.
        """
        p, _ = self.mode(1.0)
        of_targets = self._departure_of_targets(p)
        log_odds = self.curves(p[None])(self.centres)[0]
        surveyed = self.total * np.exp(p[_B]) * self.drawn * (1 + np.exp(log_odds))
        share = self.sizes[0] / (self.sizes[0] + surveyed)  # of negatives among those and the survey
        both = self.others + self.survey
        expected = share * both
        down = np.cumsum(expected[::-1])[::-1]
        n0 = down[0]
        steps = [5.0 * 2**k for k in range(60) if 5.0 * (2 ** (k + 1) - 1) < n0 / 4]
        edges = np.concatenate([np.cumsum(steps), n0 * np.arange(2, 8) / 8 if n0 >= 40 else [n0 / 2]])
        cell = np.searchsorted(edges, down - 0.5 * expected)
        seen, mean, spread = (np.bincount(cell, x) for x in (self.others, expected, both * share * (1 - share)))
        filled = mean >= 1
        if filled.sum() < 2:
            return Departure(1.0, of_targets, 1.0)
        excess = float(((seen - mean)[filled] ** 2 / spread[filled]).sum())
        freedom = int(filled.sum()) - 1
        return Departure(float(chdtrc(freedom, excess)), of_targets, min(1.0, freedom / max(excess, 1e-300)))

    def _departure_of_targets(self, p: np.ndarray) -> float:
        """Return the p-value of the calibrated targets' scores under the curve that fits all three samples."""
        n0, n1, _ = self.sizes
        ratio = self.curves(p[None], start=0)(self.centres)[0]
        odds = self.curves(p[None])(self.centres)[0]
        targets = n1 * np.exp(ratio)
        weights = n0 + targets + self.total * np.exp(p[_B]) * self.drawn * (1 + np.exp(odds))
        expected = self.all * targets / weights
        expected *= n1 / expected.sum()
        cells = int(min(8, n1 // 5))
        if cells < 2:
            return 1.0
        cell = np.minimum((np.cumsum(expected) - 0.5 * expected) * cells / n1, cells - 1).astype(int)
        seen, mean = (np.bincount(cell, x, cells) for x in (self.targets, expected))
        filled = mean > 0
        return float(chdtrc(filled.sum() - 1, ((seen - mean)[filled] ** 2 / mean[filled]).sum()))

    def mode(self, stiffness: float, start: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the likeliest parameters and a matrix L with L L' the covariance around them.

        Newton's method with the curvature's absolute value, so that it climbs from anywhere.
        """
        x = np.concatenate([[0.0, 0.0, -1.0, CEILING], np.full(self.size - _FIRST, RISE)]) if start is None else start
        one = np.array([stiffness])
        value, slope = (part[0] for part in self._density(x[None], one, True))
        for _ in range(100):
            curve, axes = self._curvature(x, stiffness)
            step = axes @ ((axes.T @ slope) / curve)
            step *= min(1.0, 3.0 / np.abs(step).max())
            length = 1.0
            while length > 1e-6 and not self.log_density(x[None] + length * step, one)[0] > value:
                length *= 0.5
            if length <= 1e-6:
                break
            x, before = x + length * step, value
            value, slope = (part[0] for part in self._density(x[None], one, True))
            if value - before < 1e-6:
                break
        curve, axes = self._curvature(x, stiffness)
        return x, axes / np.sqrt(curve)

    def _curvature(self, x: np.ndarray, stiffness: float) -> tuple[np.ndarray, np.ndarray]:
        """Return what the log density curves by along its own axes, by differences of its gradient."""
        step = 1e-4 * np.eye(self.size)
        slopes = self._density(np.concatenate([x + step, x - step]), np.array([stiffness]), True)[1]
        curve = (slopes[self.size :] - slopes[: self.size]) / 2e-4
        values, axes = np.linalg.eigh(0.5 * (curve + curve.T))
        return np.maximum(np.abs(values), 1e-2), axes

    def draw(self, draws: int, rng: np.random.Generator, *, ratio: bool = False) -> tuple[Curves, np.ndarray]:
        """Draw curves of the log odds of a survey's object, and the weight of each position of the dial.

        With `ratio`, curves of the log ratio itself, which needs no survey.
        """
        found, evidence, start = [], [], None
        for stiffness in STIFFNESS:
            start, spread = self.mode(stiffness, start)
            p, weight = self._sampled(start, spread, stiffness, rng)
            found.append(np.column_stack([p, np.full(len(p), stiffness)]))
            evidence.append(weight)
        every, log_weight = np.concatenate(found), np.concatenate(evidence)
        weight = np.exp(log_weight - log_weight.max())
        steps = np.cumsum(weight / weight.sum())
        chosen = np.searchsorted(steps, (rng.random() + np.arange(draws)) / draws).clip(max=len(steps) - 1)
        some = every[rng.permutation(chosen)]
        p = self._moved(some[:, :-1], some[:, -1], rng)
        dial = np.array([w.sum() for w in np.split(weight, len(STIFFNESS))]) / weight.sum()
        return self.curves(p, start=_A if ratio else _W), dial

    def _sampled(
        self, mode: np.ndarray, spread: np.ndarray, stiffness: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return draws around the mode and the logarithms of their weights."""
        centre, parts, drawn, value = mode, [], np.empty((0, self.size)), np.empty(0)
        for _ in range(2):
            far = rng.standard_normal((PROPOSALS, self.size))
            far /= np.sqrt(rng.chisquare(TAIL, PROPOSALS) / TAIL)[:, None]
            drawn = np.concatenate([drawn, centre + np.einsum("rj,ij->ri", far, spread)])
            value = np.concatenate([value, self.log_density(drawn[-PROPOSALS:], np.array([stiffness]))])
            parts.append((centre, np.linalg.inv(spread)))
            proposed = np.logaddexp.reduce([_student(drawn, *part) for part in parts], axis=0) - np.log(len(parts))
            log_weight = value - proposed
            weight = np.exp(log_weight - log_weight.max())
            weight = np.minimum(weight, weight.sum() / 20)  # no draw may decide alone where to look next
            weight /= weight.sum()
            centre = weight @ drawn
            off = (drawn - centre) * np.sqrt(weight)[:, None]
            spread = np.linalg.cholesky(0.9 * off.T @ off + 0.1 * spread @ spread.T)
        # The prior's own constant, which differs between positions of the dial.
        return drawn, log_weight - (self.size - _FIRST - 1) * np.log(stiffness)

    def _moved(self, p: np.ndarray, stiffness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Move resampled draws by differential evolution: each half by differences within the other."""
        value, half = self.log_density(p, stiffness), len(p) // 2
        reach = 2.38 / np.sqrt(2 * self.size)
        for turn in range(2 * MOVES):
            ours, theirs = (np.arange(half), np.arange(half, len(p)))[:: -1 if turn % 2 else 1]
            first, second = rng.choice(theirs, len(ours)), rng.choice(theirs, len(ours))
            scale = reach * np.exp(0.5 * rng.standard_normal((len(ours), 1)))
            tried = p[ours] + scale * (p[first] - p[second]) + 1e-6 * rng.standard_normal((len(ours), self.size))
            level = self.log_density(tried, stiffness[ours])
            better = np.log(rng.random(len(ours))) < level - value[ours]
            p[ours[better]], value[ours[better]] = tried[better], level[better]
        return p

    def basis_at(self, scores: np.ndarray) -> np.ndarray:
        """Return what each piece, were its slope one over all pieces, adds from the median target to each score."""
        return _ramps(scores, self.knots) - _ramps(np.array([self.middle]), self.knots)

    def _ceiling(self, p: np.ndarray, steep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how high over the line at the median target the ceiling is, and the line at the lowest knot."""
        foot = (steep * self.foot).sum(axis=1)
        height = np.exp(np.clip(p[:, _C], -10, 10)) * (steep * self.shares).sum(axis=1) + foot
        return np.clip(height, -200, 200), foot

    def curves(self, p: np.ndarray, start: int = _W) -> Curves:
        """Return the curves of parameters: log odds in the survey, or (`start` = 0) the log ratio itself."""
        steep = np.exp(np.clip(p[:, _FIRST:], -30, 8))
        height = self._ceiling(p, steep)[0]
        level = p[:, start] + np.logaddexp(0, -height)  # the bent curve is nought at the median target
        values = level[:, None] + np.einsum("rm,mg->rg", steep, self.basis_at(self.knots))
        return Curves(self.knots, values, level + height)


def _student(p: np.ndarray, centre: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return the log density of Student's t, up to a constant that all share."""
    far = (np.einsum("rj,ij->ri", p - centre, inverse) ** 2).sum(axis=1)
    return np.linalg.slogdet(inverse)[1] - 0.5 * (TAIL + len(centre)) * np.log1p(far / TAIL)


def _place(knots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the piece that each score lies in (the outer ones go on), and how far along."""
    where = np.clip(np.searchsorted(knots, scores, side="right") - 1, 0, len(knots) - 2)
    return where, (scores - knots[where]) / (knots[where + 1] - knots[where])


def _ramps(scores: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return what each piece has risen by at each score, were its slope one over all pieces together: (m, n)."""
    low, high = np.r_[-np.inf, knots[1:-1]], np.r_[knots[1:-1], np.inf]
    return (np.clip(scores, low[:, None], high[:, None]) - knots[:-1, None]) / (knots[-1] - knots[0])


def _knots(negatives: np.ndarray, positives: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return where the curve may bend: among the targets, and where the survey's ranks run to its best."""
    order = np.argsort(-(centres if len(centres) else negatives))
    scores = (centres if len(centres) else negatives)[order]
    above = np.cumsum((counts if len(centres) else np.ones(len(negatives)))[order])
    ranks = np.geomspace(min(3.0, above[-1]), above[-1] / 2, 40)
    best = scores[np.searchsorted(above, ranks).clip(max=len(scores) - 1)]
    pooled = np.concatenate([best, np.quantile(positives, (np.arange(40) + 0.5) / 40)])
    low, high = min(pooled.min(), positives.min()), pooled.max()
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):  # one score for all: any width will do
        return np.array([low - max(abs(low), 1.0), high + max(abs(high), 1.0)])
    found = [low]
    for knot in np.quantile(pooled, np.arange(1, PIECES) / PIECES):
        if min(knot - found[-1], high - knot) > (high - low) / (5 * PIECES):
            found.append(knot)
    return np.array([*found, high])


def _edges(knots: np.ndarray) -> np.ndarray:
    """Return the edges of the groups in which scores are counted: fine between the knots, coarse beyond."""
    inner = [np.linspace(low, high, FINE, endpoint=False) for low, high in pairwise(knots)]
    edges = np.concatenate([*inner, knots[-1:]])
    below, above = 2 * (edges[1] - edges[0]), edges[-1] - edges[-2]
    return np.concatenate([edges[0] - below * np.arange(8, 0, -1), edges, edges[-1] + above * np.arange(1, 6)])
