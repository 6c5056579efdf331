"""Purity and completeness of a ranked list, with posterior intervals.

Posterior draws
    `galscan.stats.density_ratio` draws curves of the log odds that a survey object with a given score is a target:
    smooth monotone curves between Platt's line and isotonic regression that fit the calibrated positives, the
    calibrated negatives and the histogram of the whole survey together (label shift: targets and non-targets have the
    same score distributions in both). A curve includes the prevalence: the correction of Saerens, Latinne &
    Decaestecker (2002, Neural Computation 14, 21) and the maximum of their EM algorithm are part of the likelihood. For
    each curve, every candidate and the objects below the list are drawn as target or not (Bernoulli). Purity at rank r
    is the fraction of targets among ranks <= r, completeness their fraction of all targets. So the interval, quantiles
    of these draws, contains three uncertainties: the small calibration set, the unknown prevalence, and finite counts.
    The estimate is the mean of the probabilities.

Width of the intervals
    No distribution is assumed for the non-targets, so few negatives constrain the highest scores poorly, where one in a
    thousand matters. A parametric distribution would constrain more, but a shoulder of look-alikes below the resolution
    of the negatives would pass for targets. Grades narrow the intervals.

    Beyond the last of n calibrated objects of a class lies a fraction g / n of that class, with g from Jeffreys' prior
    for a rate, Gamma(1/2). So every curve has a floor and a ceiling: the prevalence's odds times g / (n + 1) of the
    targets, and divided by such a fraction of the negatives. Odds are not extrapolated beyond the calibration set.

Known labels
    Objects that trained, calibrated or tested the model are left out of the histogram, as a network gives its training
    objects higher scores than others like them, and are added back with their known label.

Limits
    If the survey's objects do not have the score distributions of the calibration set, the estimates are invalid. Two
    chi-square tests are made (`density_ratio.Evidence.departure`). Where that of the negatives has p < 5 %, they are
    down-weighted by the factor by which the statistic exceeds its expectation (a power prior: Ibrahim & Chen 2000,
    Statistical Science 15, 46; the factor is that of quasi-likelihood), and a note reports it. Where either has p <
    0.1 %, or the calibration set is not from this survey, purity is unknown (`Purity.unknown`): no number is published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from galscan.core.errors import InputError
from galscan.stats.calibration import Calibration
from galscan.stats.density_ratio import Curves, Departure, Evidence
from galscan.stats.histogram import EDGE, STEP, ScoreHistogram, bins

RANKS = (10, 100, 1000)  # ranks at which a summary lists the purity
DENSE = 1000  # ranks evaluated one by one; below them every 200th part of a rank
WIDEN = 0.05  # p-value of label shift below which negatives are down-weighted
FEW = 10  # negatives above the cut-off, below which a note recommends more
DEPARTED = 0.001  # p-value below which purity is unknown
AT_ONCE, DRAWS_AT_ONCE = 256, 250  # nodes per block of quantiles, and draws of the targets per block
UNSEEN = 0.5  # objects that a sample may have missed
AMBIGUOUS = -1.0  # a known label that is neither target (1) nor negative (0)
AMBIGUITY = 500  # draws of the ambiguous fraction
METHOD = "semi-parametric density ratio under label shift, posterior draws"


@dataclass(frozen=True, eq=False)
class Purity:
    """Estimates for a ranked list of K candidates. Arrays have shape (K,); index r - 1 is rank r."""

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
    ambiguous: np.ndarray
    """Expected fraction of ambiguous objects down to each rank; NaN if the calibration set has no ambiguous labels."""
    ambiguous_lo: np.ndarray
    ambiguous_hi: np.ndarray
    notes: list[str]
    draws: Curves = field(default_factory=lambda: Curves(np.zeros(2), np.empty((0, 2)), np.empty(0)))
    """Posterior draws of the log odds to be a target by score; the prior of `galscan.stats.graded`."""
    expected: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Number of targets without a known label in the whole survey, for each draw."""
    unknown: str = ""
    """Why no number may be published, as text; empty where purity is known."""

    def published(self, name: str) -> np.ndarray:
        """Return an attribute for a table: NaN where purity is unknown."""
        values: np.ndarray = getattr(self, name)
        return np.full(len(values), np.nan) if self.unknown else values


def estimate(
    calibration: Calibration,
    histogram: ScoreHistogram,
    top_scores: np.ndarray,
    *,
    beyond: ScoreHistogram | None = None,
    known: np.ndarray | None = None,
    known_beyond: tuple[int, int] = (0, 0),
    unknown: str = "",
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Purity:
    """Estimate purity and completeness of the highest scores of a survey.

    Parameters
    ----------
    histogram : ScoreHistogram
        Of all scores of the survey, including the top ones, without objects of known label.
    top_scores : ndarray, shape (K,)
        The K highest scores, descending.
    beyond : ScoreHistogram, optional
        The part of `histogram` of which only a sample was scored: objects rejected by the prefilter, estimated from the
        random sample of them that was rescored.
    known : ndarray, shape (K,), optional
        Known labels of the top objects: NaN where unknown, 1 for targets, 0 for negatives, `AMBIGUOUS`.
    known_beyond : (int, int)
        Number of objects of known label below the top ones, and of targets among them.
    unknown : str
        Why the calibration set does not apply to this survey, if that is known beforehand.
    bootstrap : int
        Number of posterior draws.
    confidence : float
        Of two-sided intervals.

    Raises
    ------
    InputError
        If the scores are not descending, more than the histogram counts, or an option is out of range.
    """
    from scipy.special import expit

    top = np.asarray(top_scores, dtype=np.float64).ravel()
    known = np.full(len(top), np.nan) if known is None else np.asarray(known, np.float64)
    unlabelled, target, known_ambiguous = np.isnan(known), known == 1, known == AMBIGUOUS
    total = histogram.total + int((~unlabelled).sum()) + known_beyond[0]
    if bootstrap < 20 or not 0 < confidence < 1:
        raise InputError(f"purity: bootstrap={bootstrap}, confidence={confidence}; use >= 20, and a fraction of 0 to 1")
    if unlabelled.sum() > histogram.total or (np.diff(top) > 0).any() or not np.isfinite(top).all():
        raise InputError(f"purity: {len(top)} top scores of {total} scored; give finite ones, descending, all counted")
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    occupied = histogram.counts > 0
    counts, beyond = histogram.counts[occupied], beyond or ScoreHistogram()
    top = np.clip(top, -EDGE, EDGE)

    draws, departure = _draws(calibration, histogram, bootstrap, rng)
    unknown = unknown or _departed(departure)
    bin_probability = expit(draws(histogram.centres[occupied]))
    ranks, node_ranks = np.arange(1, len(top) + 1), nodes(len(top))

    def by_rank(values: np.ndarray) -> np.ndarray:
        return np.interp(ranks, node_ranks, values) if len(top) else np.empty(0)

    def by_block(per_rank: np.ndarray) -> np.ndarray:
        return np.diff(np.cumsum(per_rank)[node_ranks - 1], prepend=0)

    blocks, known_hits = by_block(unlabelled), by_block(target)
    # An array with a row per draw and a column per node is large for a long list: it is computed in blocks.
    hits = np.empty((bootstrap, len(node_ranks)), np.int32)
    at_nodes, listed_targets = np.zeros(len(node_ranks)), np.zeros(bootstrap)
    for first in range(0, bootstrap, DRAWS_AT_ONCE):
        rows = slice(first, first + DRAWS_AT_ONCE)
        node_probability = expit(draws.subset(rows)(top[node_ranks - 1]))
        at_nodes += node_probability.sum(axis=0) / bootstrap
        listed_targets[rows] = np.einsum("dn,n->d", node_probability, blocks)
        hits[rows] = (rng.binomial(blocks, node_probability) + known_hits).cumsum(axis=1)
    # If the scores carry no information, the calibration's own prevalence is used.
    mean_probability = bin_probability.mean(axis=0)
    if not calibration.slope > 0:
        mean_probability, at_nodes = (np.full(len(p), calibration.prevalence) for p in (mean_probability, at_nodes))
    probability = np.where(unlabelled, by_rank(at_nodes), target)
    expected = np.cumsum(probability)
    # The top scores are exact, the others binned: rounding must not make completeness exceed 1.
    targets = max(mean_probability @ counts + target.sum(), expected[-1] if len(top) else 0.0) + known_beyond[1]
    survey_targets = (bin_probability * (counts - beyond.counts[occupied])).sum(axis=1)
    if beyond.total:
        survey_targets += beyond.total * _sampled_fraction(
            bin_probability, beyond.n_scored[occupied], expit(draws(top[-1:])), rng
        )
    n_below = histogram.total - int(unlabelled.sum())
    below = rng.binomial(n_below, np.clip((survey_targets - listed_targets) / max(n_below, 1), 0, 1))
    target_counts = below + known_beyond[1] + (hits[:, -1] if len(top) else 0)
    prevalence_lo, prevalence_hi = np.quantile(target_counts / total, tails) if total else (0.0, 1.0)

    def between(draws: Callable[[slice], np.ndarray], value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval at each rank of quantities that `draws` returns for a slice of nodes."""
        starts = range(0, len(node_ranks), AT_ONCE)
        ends = np.concatenate([np.empty((2, 0)), *(
            np.quantile(draws(slice(k, k + AT_ONCE)), tails, axis=0) for k in starts
        )], axis=1)  # fmt: skip
        low, high = map(by_rank, ends)
        return np.minimum(low, value), np.maximum(high, value)

    def recalls(columns: slice) -> np.ndarray:  # 1 in a survey without targets
        return np.where(target_counts[:, None] > 0, hits[:, columns] / np.maximum(target_counts, 1)[:, None], 1.0)

    purity = expected / ranks
    completeness = expected / max(targets, 1e-300)
    purity_lo, purity_hi = between(lambda columns: hits[:, columns] / node_ranks[columns], purity)
    ambiguous = ambiguous_lo = ambiguous_hi = np.full(len(top), np.nan)
    n_draws = min(bootstrap, AMBIGUITY)
    if (ambiguity := calibration.ambiguity(top[node_ranks - 1], n_draws, rng)) is not None:
        non_targets = blocks + known_hits - np.diff(hits[:n_draws], axis=1, prepend=0)
        unclear = (rng.binomial(non_targets, ambiguity) + by_block(known_ambiguous)).cumsum(axis=1) / node_ranks
        ambiguous = by_rank(unclear.mean(axis=0))
        ambiguous_lo, ambiguous_hi = between(lambda columns: unclear[:, columns], ambiguous)
    completeness_lo, completeness_hi = between(recalls, completeness)
    pi = targets / total if total else calibration.prevalence
    limits = float(min(pi, prevalence_lo)), float(max(pi, prevalence_hi))
    return Purity(
        float(pi), *limits, probability, purity, purity_lo, purity_hi, completeness, completeness_lo, completeness_hi,
        ambiguous, ambiguous_lo, ambiguous_hi,
        _notes(calibration, total, top, limits, purity, departure, confidence, unknown), draws, survey_targets, unknown,
    )  # fmt: skip


def _departed(departure: Departure | None) -> str:
    """Return why purity is unknown, if the survey's scores disagree with the calibration set; else ""."""
    if departure is None or min(departure.p_value, departure.targets_p_value) >= DEPARTED:
        return ""
    negatives = departure.p_value < departure.targets_p_value
    label, p = ("negatives", departure.p_value) if negatives else ("targets", departure.targets_p_value)
    return f"the survey does not score as the calibration set does (chi-square test of the {label}, p = {p:.1g})"


def _sampled_fraction(
    probability: np.ndarray, n_scored: np.ndarray, best: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the fraction of targets among objects of which a random sample was scored, shape (draws,).

    Of `probability`, shape (draws, bins), the weights are Dirichlet, as in a Bayesian bootstrap, from the number
    `n_scored` with each score and `UNSEEN` objects that the sample may have missed, as probable as the last candidate:
    `best`, shape (draws, 1), or (draws, 0) where there is no candidate.
    """
    occupied = n_scored > 0
    counts = np.append(n_scored[occupied], np.full(best.shape[1], UNSEEN))
    weights = rng.standard_gamma(counts, (len(probability), len(counts)))
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    return (weights * np.concatenate([probability[:, occupied], best], axis=1)).sum(axis=1)


def fitted_mixture(
    calibration: Calibration, histogram: ScoreHistogram, prevalence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the score distribution that the calibration set predicts for a survey of this prevalence.

    That is, the centres of the histogram's bins from the first to the last occupied one, and the expected counts of
    non-targets and targets: the calibrated objects weighted by their density ratio, smoothed by a Gaussian kernel of
    the width of Silverman (1986). Where the sum differs from the survey's counts, label shift does not hold.
    """
    used = np.flatnonzero(histogram.counts)
    span = slice(used[0], used[-1] + 1) if len(used) else slice(0)
    labelled = ScoreHistogram.of(calibration.scores)
    occupied = labelled.counts > 0
    scores, count = labelled.centres[occupied], labelled.counts[occupied]
    ratio = np.exp(np.clip(calibration.log_ratio(scores), -300, 300))
    positives = calibration.targets.sum()
    non_targets = count / (len(calibration.targets) - positives + positives * ratio)
    densities = []
    for weight, size in ((non_targets, len(calibration.targets) - positives), (non_targets * ratio, positives)):
        fraction = weight / weight.sum()
        spread = np.sqrt(fraction @ (scores - fraction @ scores) ** 2)
        width = max(0.9 * spread * size**-0.2, STEP)
        distance = (histogram.centres[span, None] - scores) / width
        densities.append((np.exp(-0.5 * distance**2) * fraction).sum(axis=1) * STEP / (width * np.sqrt(2 * np.pi)))
    total = histogram.total
    return histogram.centres[span], total * (1 - prevalence) * densities[0], total * prevalence * densities[1]


def summary(purity: Purity, confidence: float) -> dict[str, Any]:
    """Return prevalence, purity and ambiguous fraction at `RANKS`, JSON-able."""
    ranks = [rank for rank in RANKS if rank <= len(purity.purity)]

    def at(name: str) -> dict[str, Any]:
        value, low, high = (purity.published(f"{name}{end}") for end in ("", "_lo", "_hi"))
        return {str(rank): _interval(value[rank - 1], low[rank - 1], high[rank - 1]) for rank in ranks}

    prevalence = (np.nan,) * 3 if purity.unknown else (purity.prevalence, purity.prevalence_lo, purity.prevalence_hi)
    return {
        "confidence": confidence, "unknown": purity.unknown, "prevalence": _interval(*prevalence),
        "at": at("purity"), "ambiguous_at": at("ambiguous"), "notes": list(purity.notes),
    }  # fmt: skip


def completeness_limits(purity: Purity) -> dict[str, list[float | None]]:
    """Return the interval limits of completeness at selected ranks, for the report; the tables have no such columns."""
    count = len(purity.purity)
    ranks = np.unique(np.geomspace(1, max(count, 1), 200).round().astype(int))[:count]
    ends = {end: purity.published(f"completeness_{name}")[ranks - 1] for end, name in (("low", "lo"), ("high", "hi"))}
    return {"rank": ranks.tolist()} | {
        end: [float(x) if np.isfinite(x) else None for x in values] for end, values in ends.items()
    }


def _interval(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}


def nodes(count: int) -> np.ndarray:
    """Return the ranks at which a list of `count` is evaluated: all of a short list, a sparse set of a long one."""
    if count <= DENSE:
        return np.arange(1, count + 1)
    sparse = np.geomspace(DENSE, count, 2 + int(np.log(count / DENSE) / 0.005)).round().astype(int)
    return np.unique(np.concatenate([np.arange(1, DENSE + 1), sparse]))


def _draws(
    calibration: Calibration, histogram: ScoreHistogram, draws: int, rng: np.random.Generator
) -> tuple[Curves, Departure | None]:
    """Draw curves of the log odds in the survey; also return the test of label shift."""
    from scipy.special import expit, logit

    if not (calibration.slope > 0 and histogram.total):  # scores without information: any prevalence is possible
        level = logit(rng.random((draws, 1))).repeat(2, axis=1)
        return Curves(np.array([-EDGE, EDGE]), level, np.full(draws, np.inf)), None
    used = histogram.counts > 0
    positives, negatives = ((calibration.targets == label).sum() for label in (1, 0))
    # In the bins of the survey: a bin across the edge of a group would look like a departure from label shift.
    scores, centres = histogram.centres[bins(calibration.scores)], histogram.centres[used]
    non_target_scores, target_scores = (scores[calibration.targets == label] for label in (0, 1))
    data = (non_target_scores, target_scores, centres, histogram.counts[used], histogram.n_scored[used])
    evidence = Evidence(*data)
    departure = evidence.departure()
    if departure.p_value < WIDEN:
        evidence = Evidence(*data, negative_weight=departure.negative_weight)
        negatives = departure.negative_weight * negatives
    curves = evidence.draw(draws, rng)[0]
    prevalence = expit(curves(centres)) @ (histogram.counts[used] / histogram.total)
    prior = logit(np.clip(prevalence, 1e-12, 1 - 1e-12))
    # Fraction of a class beyond the last of its n calibrated objects: g / n, g from Gamma(1/2), Jeffreys' prior.
    floors, ceilings = (np.log(rng.standard_gamma(0.5, draws) / (n + 1)) for n in (positives, negatives))
    return curves.bounded(prior + floors, prior - ceilings), departure


def _notes(
    calibration: Calibration, total: int, top: np.ndarray, prevalence: tuple[float, float], purity: np.ndarray,
    departure: Departure | None, confidence: float, unknown: str,
) -> list[str]:  # fmt: skip
    """Return notes for people on the data behind the numbers and on their limits."""
    is_target = calibration.targets == 1
    positives, negatives = int(is_target.sum()), int((~is_target).sum())
    ambiguous = 0 if calibration.ambiguous is None else int(calibration.ambiguous.sum())
    notes = [
        f"The calibration rests on {positives:,} positives, {negatives - ambiguous:,} negatives and {ambiguous:,} "
        "ambiguous objects, which count as no targets: real objects, each scored by networks not trained on it.",
    ]
    if unknown:
        remedy = "Grade a random sample: galscan vet, then galscan purity."
        return [*notes, f"Purity, completeness and prevalence are unknown: {unknown}. {remedy}"]
    notes.append("It is assumed that targets and negatives score alike in the survey and in the calibration set.")
    if calibration.slope <= 0:
        notes.append("The scores do not separate the calibration set: purity cannot be estimated.")
    if positives < 20:
        notes.append(f"With {positives} calibration positives intervals are wide and uncertain; grade more candidates.")
    low, high = prevalence
    if low == 0:
        notes.append(
            f"The prevalence is not distinguishable from zero; at {confidence:.0%} confidence it is below {high:.3g} "
            f"({high * total:,.0f} of {total:,})."
        )
    if len(top) and calibration.slope > 0:
        rank = max(int((purity >= 0.5).sum()), min(10, len(top)))  # about where a list is usually cut
        above = calibration.scores >= top[rank - 1]
        n_targets, n_others = (above & is_target).sum(), (above & ~is_target).sum()
        if n_others < FEW:
            notes.append(
                f"As high as rank {rank:,} there are {n_targets:,} of the calibration's positives and "
                f"{n_others:,} of its negatives: more labelled negatives tighten the interval."
            )
    if departure is not None and departure.p_value < WIDEN:
        notes.append(
            "The survey's negatives have other scores than the calibration's (chi-square test of two samples, "
            f"p = {departure.p_value:.1g}): images or classes differ between them. The calibration's were weighted "
            f"as {departure.negative_weight * negatives:,.0f}, which widens the intervals; purity may still be off: "
            "grade a sample."
        )
    return notes
