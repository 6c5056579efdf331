"""Purity and completeness of a ranked list, with intervals that own up to what they rest on.

The point estimate
    1. Platt's sigmoid turns a score into p(target | score) at the calibration set's prevalence (classify.calibrate).
    2. The survey's prevalence is the maximum of the likelihood of all its scores,
       L(pi) = sum_i ln(1 + pi (r_i - 1)), r = p(score | target) / p(score | not): the point to which the EM of
       Saerens, Latinne & Decaestecker (2002, Neural Computation 14, 21) climbs. L is concave, so its slope is
       bisected instead: EM crawls where the prevalence is near zero, and that is where rare galaxies are.
    3. Probabilities are moved to that prevalence (their equation 4). Purity at rank r is their mean over ranks <= r,
       completeness their sum over the expected number of targets in the survey, pi N.

The interval is the wider of two on each side it says:
    * Bootstrap. Each replicate draws the calibration set again within each class (smoothed for the positives, as
      they may be a handful: Silverman & Young 1987, Biometrika 74, 469), fits the sigmoid again with 0 to 1 times
      Platt's smoothing (which makes purity too low where positives are few), draws the survey's prevalence from its
      likelihood (flat prior; at the boundary zero, where resampling counts is known to fail, it still gives an upper
      limit), and throws a coin for every candidate: the finite list differs from its mean.
    * Counts that know no sigmoid. Of n calibration negatives, k score at least as high as the candidate: the
      Clopper-Pearson upper limit of that rate times the survey's negatives may be false positives (3.7 N / n at 95 %
      two-sided when k = 0; the "rule of three" one-sided). Purity's lower bound never exceeds what this leaves.
      Likewise the calibration positives at or above the score bound completeness from both sides.

All of it assumes that targets and others look in the survey as they do in the calibration set (label shift); a
Kolmogorov-Smirnov comparison of the survey's scores with the mixture adds a note where they plainly do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta, kstwobign

from galscan.classify.calibrate import Calibration, fit_sigmoid
from galscan.errors import InputError

_EDGE, _STEP = 40.0, 0.05
_BINS = round(2 * _EDGE / _STEP)
RANKS = (10, 100, 1000)  # where a summary tells the purity
METHOD = "Platt sigmoid, label-shift maximum likelihood, bootstrap and Clopper-Pearson"


@dataclass
class ScoreHistogram:
    """Counts of scores in fixed bins of 0.05 over -40 to 40 (outer scores go to the outer bins)."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))

    @classmethod
    def empty(cls) -> ScoreHistogram:
        return cls()

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(_BINS) + 0.5) * _STEP - _EDGE

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, scores: np.ndarray, times: int = 1) -> None:
        """Count `scores` (finite, any shape), each for `times` objects."""
        position = np.floor((np.asarray(scores, dtype=np.float64).ravel() + _EDGE) / _STEP)
        self.counts += times * np.bincount(np.clip(position, 0, _BINS - 1).astype(np.int64), minlength=_BINS)

    def to_list(self) -> list[list[int]]:
        """Return ``[bin, count]`` of every bin that holds something, for JSON."""
        return [[int(k), int(self.counts[k])] for k in np.flatnonzero(self.counts)]

    @classmethod
    def from_list(cls, pairs: Sequence[Sequence[int]]) -> ScoreHistogram:
        """Rebuild what `to_list` gave.

        Raises
        ------
        InputError
            If it is damaged.
        """
        histogram = cls()
        try:
            for k, count in pairs:
                if not (0 <= k < _BINS and count >= 0):
                    raise ValueError(f"bin {k} holds {count}")
                histogram.counts[k] = count
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the run's histogram of scores is damaged ({error}); scan again") from None
        return histogram

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(self.counts + other.counts)


@dataclass(frozen=True, eq=False)
class Purity:
    """What is known about a ranked list of K candidates. Arrays have shape (K,); index r - 1 is rank r.

    `completeness` is NaN where the estimated prevalence is zero (a fraction of nothing).
    """

    prevalence: float
    prevalence_lo: float
    prevalence_hi: float
    probability: np.ndarray
    purity: np.ndarray
    purity_lo: np.ndarray
    purity_hi: np.ndarray
    completeness: np.ndarray
    completeness_lo: np.ndarray
    completeness_hi: np.ndarray
    notes: list[str]
    draws: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    """Slope, offset and prevalence of each bootstrap replicate, shape (R, 3): what `graded` starts from."""


def estimate(
    calibration: Calibration,
    histogram: ScoreHistogram,
    top_scores: np.ndarray,
    *,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Purity:
    """Estimate purity and completeness of the highest scores of a survey.

    Parameters
    ----------
    calibration : Calibration
        With its scores and targets.
    histogram : ScoreHistogram
        Of every score of the survey, the top ones included.
    top_scores : ndarray, shape (K,)
        The K highest scores, descending.
    bootstrap : int
        Replicates for the intervals.
    confidence : float
        Two-sided, within 0 to 1.

    Raises
    ------
    InputError
        If the scores are not descending, more than the histogram counts, or an option is out of range.
    """
    top = np.asarray(top_scores, dtype=np.float64).ravel()
    total = histogram.total
    if bootstrap < 20 or not 0 < confidence < 1:
        raise InputError(f"purity: bootstrap={bootstrap}, confidence={confidence}; use >= 20, and a fraction of 0 to 1")
    if len(top) > total or (np.diff(top) > 0).any() or not np.isfinite(top).all():
        raise InputError(f"purity: {len(top)} top scores of {total} scored; give finite ones, descending, all counted")
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    occupied = histogram.counts > 0
    centres, counts = histogram.centres[occupied], histogram.counts[occupied].astype(np.float64)
    ranks = np.arange(1, len(top) + 1)

    informative = calibration.slope > 0
    pi = _most_likely(calibration.log_ratio(centres), counts) if informative else calibration.prevalence
    probability = calibration.probability(top, pi)
    expected = np.cumsum(probability)
    # The top scores are exact, the rest binned: rounding must not make a list more than complete.
    targets = max(pi * total, expected[-1] if len(top) else 0.0)
    completeness = expected / targets if targets > 0 else np.full(len(top), np.nan)

    draws, purities, completenesses = _replicates(calibration, centres, counts, top, bootstrap, rng)
    prevalences = draws[:, 2]
    prevalence_lo, prevalence_hi = np.quantile(prevalences, tails) if total else (0.0, 1.0)
    if prevalence_lo * total < 1:  # a flat prior never touches zero; less than one object does
        prevalence_lo = 0.0
    purity_lo, purity_hi = np.quantile(purities, tails, axis=0)
    completeness_lo, completeness_hi = np.quantile(completenesses, tails, axis=0)

    negatives = np.sort(calibration.scores[calibration.targets == 0])
    positives = np.sort(calibration.scores[calibration.targets == 1])
    _, false_rate = _rate_limits(len(negatives) - np.searchsorted(negatives, top), len(negatives), tails)
    allowed = np.clip(1 - false_rate * total * (1 - prevalence_lo) / ranks, 0, 1)
    recall_lo, recall_hi = _rate_limits(len(positives) - np.searchsorted(positives, top), len(positives), tails)

    purity = expected / ranks
    notes = _notes(
        calibration,
        centres,
        counts,
        informative,
        (pi, prevalence_lo, prevalence_hi),
        purity,
        purity_lo,
        allowed,
        confidence,
    )
    finite = np.nan_to_num(completeness)
    return Purity(
        float(pi),
        float(min(pi, prevalence_lo)),
        float(max(pi, prevalence_hi)),
        probability,
        purity,
        np.minimum(np.minimum(purity_lo, allowed), purity),
        np.maximum(purity_hi, purity),
        completeness,
        np.minimum(np.minimum(completeness_lo, recall_lo), finite),
        np.maximum(np.maximum(completeness_hi, recall_hi), finite),
        notes,
        draws,
    )


def summary(purity: Purity, confidence: float) -> dict[str, Any]:
    """Return the prevalence and the purity at a few ranks, JSON-able."""
    return {
        "confidence": confidence,
        "prevalence": _interval(purity.prevalence, purity.prevalence_lo, purity.prevalence_hi),
        "at": {
            str(rank): _interval(purity.purity[rank - 1], purity.purity_lo[rank - 1], purity.purity_hi[rank - 1])
            for rank in RANKS
            if rank <= len(purity.purity)
        },
        "notes": list(purity.notes),
    }


def _interval(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}


def _most_likely(log_ratio: np.ndarray, counts: np.ndarray) -> float:
    """Return the prevalence at which L(pi) of the module's text is largest."""
    excess = np.expm1(np.clip(log_ratio, -300, 300))

    def slope(pi: float) -> float:
        return float((counts * excess / (1 + pi * excess)).sum())

    if not len(counts) or slope(0.0) <= 0:
        return 0.0
    if slope(1.0 - 1e-12) >= 0:
        return 1.0
    low, high = 0.0, 1.0 - 1e-12
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def _drawn_prevalence(log_ratio: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> float:
    """Draw a prevalence from its likelihood given all scores, under a flat prior."""
    excess = np.expm1(np.clip(log_ratio, -300, 300))

    def log_likelihood(grid: np.ndarray) -> np.ndarray:
        # Not as a matrix product: threads of BLAS cost far more than they save here.
        return (np.log1p(grid[:, None] * excess) * counts).sum(axis=1)

    total = counts.sum()
    coarse = np.concatenate([[0.0], np.geomspace(1e-3 / total, 1 - 1e-9, 48)])
    for points in (80, 80):  # zoom twice: a large survey's likelihood is narrower than a coarse step
        level = log_likelihood(coarse)
        near = np.flatnonzero(level > level.max() - 12)
        low, high = coarse[max(near[0] - 1, 0)], coarse[min(near[-1] + 1, len(coarse) - 1)]
        coarse = np.linspace(low, high, points)
    level = log_likelihood(coarse)
    density = np.exp(level - level.max())
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return float(np.interp(rng.random() * mass[-1], mass, coarse))


def _replicates(
    calibration: Calibration,
    centres: np.ndarray,
    counts: np.ndarray,
    top: np.ndarray,
    bootstrap: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bootstrap draws of slope, offset and prevalence (R, 3), purity (R, K) and completeness (R, K)."""
    scores = calibration.scores
    positives, negatives = scores[calibration.targets == 1], scores[calibration.targets == 0]
    binned = ScoreHistogram()
    binned.add(negatives)
    share, middles = binned.counts / len(negatives), binned.centres
    middle = positives.mean()
    few = len(positives) <= 2  # too few for a spread of their own: take that of all
    spread = scores.std() if few else positives.std(ddof=1)
    relative = 1.06 * len(positives) ** -0.2  # Silverman's rule of thumb
    width, shrink = relative * spread, 1.0 if few else 1 / np.hypot(1, relative)  # shrinking keeps their variance

    total, ranks = counts.sum(), np.arange(1, len(top) + 1)
    draws = np.empty((bootstrap, 3))
    purities = np.empty((bootstrap, len(top)), dtype=np.float32)
    completenesses = np.empty((bootstrap, len(top)), dtype=np.float32)
    for k in range(bootstrap):
        drawn = ScoreHistogram()
        chosen = rng.choice(positives, len(positives))
        drawn.add(middle + (chosen - middle + width * rng.standard_normal(len(positives))) * shrink)
        others = rng.multinomial(len(negatives), share)
        used = (drawn.counts + others) > 0
        # Platt's smoothing flattens the sigmoid when positives are few; how much of it is right is unknown, so draw it.
        smoothing = max(float(rng.random()), 1e-3)
        slope, intercept, prior = fit_sigmoid(middles[used], drawn.counts[used] * 1.0, others[used] * 1.0, smoothing)
        offset = intercept - float(logit(prior))
        # A flat sigmoid says nothing about the survey: every prevalence is as good.
        pi = _drawn_prevalence(slope * centres + offset, counts, rng) if slope > 0 and total else rng.random()
        probability = expit(slope * top + offset + logit(pi))
        hits = np.cumsum(rng.random(len(top)) < probability)
        beyond = rng.poisson(max(pi * total - probability.sum(), 0.0))
        everything = (hits[-1] if len(top) else 0) + beyond
        draws[k] = slope, offset, pi
        purities[k] = hits / ranks
        completenesses[k] = hits / everything if everything else 1.0  # nothing to miss
    return draws, purities, completenesses


def _rate_limits(successes: np.ndarray, trials: int, tails: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two-sided Clopper-Pearson limits of ``successes / trials``."""
    some, all_ = successes > 0, successes >= trials
    low = np.where(some, beta.ppf(tails[0], np.maximum(successes, 1), trials - successes + 1), 0.0)
    high = np.where(all_, 1.0, beta.ppf(tails[1], successes + 1, np.maximum(trials - successes, 1)))
    return low, high


def _notes(
    calibration: Calibration,
    centres: np.ndarray,
    counts: np.ndarray,
    informative: bool,
    prevalence: tuple[float, float, float],
    purity: np.ndarray,
    modelled: np.ndarray,
    allowed: np.ndarray,
    confidence: float,
) -> list[str]:
    """Say in plain words what the numbers rest on, and what they cannot tell."""
    positives = int((calibration.targets == 1).sum())
    negatives = len(calibration.targets) - positives
    total = int(counts.sum())
    notes = [
        f"The calibration rests on {positives:,} positives and {negatives:,} negatives: real objects, none trained on.",
        "It is assumed that targets and others look in the survey as they do in the calibration set.",
    ]
    if not informative:
        notes.append("The scores do not separate the calibration set: no purity can be claimed, ranks say nothing.")
    if positives < 20:
        notes.append(f"With {positives} calibration positives the intervals are wide and rough; grade more candidates.")
    pi, low, high = prevalence
    if low == 0:
        notes.append(
            f"The prevalence is not distinguishable from zero; at {confidence:.0%} confidence it is below {high:.3g} "
            f"({high * total:,.0f} of {total:,})."
        )
    binding = allowed < modelled - 0.005
    if len(allowed) and binding.any():
        # Tell it where people will cut the list, if it matters there.
        pure = int((purity >= 0.8).sum())
        rank = pure if pure and binding[pure - 1] else int(np.argmax(modelled - allowed)) + 1
        notes.append(
            f"{negatives:,} calibration negatives cannot exclude up to {3 / negatives * total:,.0f} false positives "
            f"among {total:,} (three over n); the sigmoid alone puts the lower bound of purity at rank {rank:,} at "
            f"{modelled[rank - 1]:.2f}, the count of negatives allows {allowed[rank - 1]:.2f}. "
            "More labelled negatives tighten it."
        )
    if total and (p_value := _mixture_p_value(calibration, centres, counts, pi)) < 0.01:
        notes.append(
            "The survey's scores do not look like a mixture of the calibration's two classes "
            f"(Kolmogorov-Smirnov p = {p_value:.1g}): images or classes differ between them, "
            "and purity may be wrong by more than its interval; grade a sample."
        )
    return notes


def _mixture_p_value(calibration: Calibration, centres: np.ndarray, counts: np.ndarray, pi: float) -> float:
    """Compare the survey's scores with the calibration classes mixed at `pi` (two-sample Kolmogorov-Smirnov)."""
    edges = centres + 0.5 * _STEP
    positives = np.sort(calibration.scores[calibration.targets == 1])
    negatives = np.sort(calibration.scores[calibration.targets == 0])
    found, other = (np.searchsorted(s, edges) / len(s) for s in (positives, negatives))
    mixture = pi * found + (1 - pi) * other
    distance = np.abs(mixture - np.cumsum(counts) / counts.sum())[(np.abs(edges) < _EDGE - _STEP)].max(initial=0.0)
    size = 1 / (pi**2 / len(positives) + (1 - pi) ** 2 / len(negatives) + 1 / counts.sum())
    return float(kstwobign.sf(distance * np.sqrt(size)))
