"""Purity and completeness of a ranked list, with intervals that own up to what they rest on.

What is drawn
    `classify.ratio` draws curves of the log odds that an object of the survey with some score is a target: smooth
    rising curves between Platt's line and isotonic steps, as the calibrated positives, the calibrated negatives and
    the histogram of the whole survey together allow (label shift: targets and others look alike in both). A curve
    holds the prevalence: the correction of Saerens, Latinne & Decaestecker (2002, Neural Computation 14, 21) and the
    maximum that their EM climbs to are inside the likelihood. Then a coin is thrown for every candidate, and for what
    lies below the list: purity at rank r is the share of heads among ranks <= r, completeness their share of all heads.
    So the interval, quantiles of these draws, carries three uncertainties at once: few calibrated objects, an unknown
    prevalence, finite counts. The estimate is the mean of the probabilities.

What the width is
    Nothing is assumed of how the others are distributed. Who knew even the shape of the ratio, and fitted its offset
    and slope alone, would have intervals about as wide: what is wide is that n negatives say little of the highest
    scores, where one in a thousand matters. Only the law of the scores itself would tell more, and a survey follows
    none: a shoulder of look-alikes below the resolution of the negatives would pass for targets. Grades tell more.

    Beyond the last of n calibrated objects of a kind lies a fraction g / n of that kind, g of Jeffreys' prior for a
    rate, Gamma(1/2). So every curve has a floor and a ceiling: the prevalence's odds times g / (n + 1) of the targets,
    and divided by such a fraction of the negatives. No odds are extrapolated further than the calibration set reaches.

Known labels
    Objects whose label the model was trained, calibrated or tested with are data: they are left out of the histogram,
    as a network scores what it was trained on higher than the like of it, and added back as what they are.

What it cannot know
    If the survey's objects do not score as the calibration's do, nothing here holds. Two chi-square tests are made
    every time: of the negatives and the survey without its likeliest targets, with cells that are fine where scores are
    high, and of the calibrated targets and those that the survey would have to hold. Where the first gives less than
    5 %, the negatives count for less, as many times as the statistic exceeds its expectation (a power prior: Ibrahim &
    Chen 2000, Statistical Science 15, 46; the factor is that of quasi-likelihood), and a note says so. Where either
    gives less than 0.1 %, or the survey is none that the calibration set is from, purity is unknown (`Purity.unknown`):
    no number of this module is published, and only grades tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit, logit

from galscan.core.errors import InputError
from galscan.stats.calibration import Calibration
from galscan.stats.density_ratio import Curves, Departure, Evidence

_EDGE, _STEP = 40.0, 0.05
_BINS = round(2 * _EDGE / _STEP)
RANKS = (10, 100, 1000)  # where a summary tells the purity
DENSE = 1000  # ranks reckoned one by one; below them every 200th part of a rank
WIDEN = 0.05  # probability of so large a departure from label shift, below which negatives count for less
FEW = 10
DEPARTED = 0.001  # probability of so large a departure, below which purity is unknown
AT_ONCE, DRAWS_AT_ONCE = 256, 250  # nodes of which quantiles are taken together, and draws of the targets among them
UNSEEN = 0.5  # objects
AMBIGUOUS = -1.0  # a known label that is neither target (1) nor negative (0)
AMBIGUITY = 500  # draws of what is ambiguous
METHOD = "semi-parametric density ratio under label shift, posterior draws"


@dataclass
class ScoreHistogram:
    """Counts of scores in fixed bins of 0.05 over -40 to 40 (outer scores go to the outer bins).

    `seen` is how many were scored to know it: less than `counts` where one stands for many.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))
    seen: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))

    @classmethod
    def empty(cls) -> ScoreHistogram:
        return cls()

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(_BINS) + 0.5) * _STEP - _EDGE

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, scores: np.ndarray) -> None:
        """Count `scores` (finite, any shape)."""
        found = np.bincount(_bins(scores), minlength=_BINS)
        self.counts += found
        self.seen += found

    def standing_for(self, total: int) -> ScoreHistogram:
        """Return the histogram of `total` objects of which this one has a random sample; empty if nothing was sampled.

        Counts are whole and add up to `total`: the largest remainders are rounded up.
        """
        if not self.total:
            return ScoreHistogram.empty()
        exact = self.counts * (total / self.total)
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
        return ScoreHistogram(counts, self.seen.copy())

    def to_list(self) -> list[list[int]]:
        """Return ``[bin, count]`` of every bin that holds something, for JSON; then `seen` where it is less."""
        rows = [[int(k), int(self.counts[k]), int(self.seen[k])] for k in np.flatnonzero(self.counts)]
        return [row[:2] if row[1] == row[2] else row for row in rows]

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
            for k, count, *rest in pairs:
                seen = rest[0] if rest else count
                if not (0 <= k < _BINS and 0 <= seen <= count and len(rest) < 2 and (seen or not count)):
                    raise ValueError(f"bin {k} holds {count}")
                histogram.counts[k], histogram.seen[k] = count, seen
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the run's histogram of scores is damaged ({error}); remove its candidates.parquet, and run its scan "
                "command again: what was scored is ranked anew"
            ) from None
        return histogram

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(self.counts + other.counts, self.seen + other.seen)


def _bins(scores: np.ndarray) -> np.ndarray:
    position = np.floor((np.asarray(scores, dtype=np.float64).ravel() + _EDGE) / _STEP)
    return np.clip(position, 0, _BINS - 1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Purity:
    """What is known about a ranked list of K candidates. Arrays have shape (K,); index r - 1 is rank r."""

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
    """Expected fraction of ambiguous objects down to each rank; NaN where the calibration does not know which are."""
    ambiguous_lo: np.ndarray
    ambiguous_hi: np.ndarray
    notes: list[str]
    draws: Curves = field(default_factory=lambda: Curves(np.zeros(2), np.empty((0, 2)), np.empty(0)))
    """Curves of an object's log odds to be a target by its score: what `graded` starts from."""
    expected: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Targets without a known label in the whole survey, by each of them."""
    unknown: str = ""
    """Why no number may be published, in words; empty where purity is known."""

    def published(self, name: str) -> np.ndarray:
        """Return an attribute as tables show it: NaN where purity is unknown."""
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
    calibration : Calibration
        With its scores and targets.
    histogram : ScoreHistogram
        Of every score of the survey, the top ones included, but for objects of known label.
    top_scores : ndarray, shape (K,)
        The K highest scores, descending.
    beyond : ScoreHistogram, optional
        That part of `histogram` of which only a sample was scored: what a first look discarded, as its audit has it.
    known : ndarray, shape (K,), optional
        Labels of the top ones: NaN where it is not known, 1 for targets, 0 for negatives, `AMBIGUOUS`.
    known_beyond : (int, int)
        Objects of known label below the top ones, and targets among them.
    unknown : str
        Why the calibration set cannot tell anything of this survey, if that is known beforehand.
    bootstrap : int
        Draws for the intervals.
    confidence : float
        Two-sided, within 0 to 1.

    Raises
    ------
    InputError
        If the scores are not descending, more than the histogram counts, or an option is out of range.
    """
    top = np.asarray(top_scores, dtype=np.float64).ravel()
    known = np.full(len(top), np.nan) if known is None else np.asarray(known, np.float64)
    free, target, unclear_ones = np.isnan(known), known == 1, known == AMBIGUOUS
    total = histogram.total + int((~free).sum()) + known_beyond[0]
    if bootstrap < 20 or not 0 < confidence < 1:
        raise InputError(f"purity: bootstrap={bootstrap}, confidence={confidence}; use >= 20, and a fraction of 0 to 1")
    if free.sum() > histogram.total or (np.diff(top) > 0).any() or not np.isfinite(top).all():
        raise InputError(f"purity: {len(top)} top scores of {total} scored; give finite ones, descending, all counted")
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    occupied = histogram.counts > 0
    centres, counts = histogram.centres[occupied], histogram.counts[occupied]
    top = np.clip(top, -_EDGE, _EDGE)

    draws, departure = _draws(calibration, histogram, bootstrap, rng)
    unknown = unknown or _departed(departure)
    everywhere = expit(draws(centres))
    ranks, at = np.arange(1, len(top) + 1), nodes(len(top))

    def by_block(some: np.ndarray) -> np.ndarray:
        return np.diff(np.cumsum(some)[at - 1], prepend=0)

    blocks, known_hits = by_block(free), by_block(target)
    # Of a long list all that has a row a draw and a column a node is large: some draws at a time.
    hits = np.empty((bootstrap, len(at)), np.int32)
    at_nodes, in_list = np.zeros(len(at)), np.zeros(bootstrap)
    for first in range(0, bootstrap, DRAWS_AT_ONCE):
        rows = slice(first, first + DRAWS_AT_ONCE)
        each = expit(draws.some(rows)(top[at - 1]))
        at_nodes += each.sum(axis=0) / bootstrap
        in_list[rows] = np.einsum("dn,n->d", each, blocks)
        hits[rows] = (rng.binomial(blocks, each) + known_hits).cumsum(axis=1)
    # Scores that say nothing leave the calibration's own prevalence, though every other is as good.
    chances = everywhere.mean(axis=0)
    if not calibration.slope > 0:
        chances, at_nodes = (np.full(len(p), calibration.prevalence) for p in (chances, at_nodes))
    probability = np.where(free, np.interp(ranks, at, at_nodes) if len(top) else np.empty(0), target)
    expected = np.cumsum(probability)
    # The top scores are exact, the rest binned: rounding must not make a list more than complete.
    targets = max(chances @ counts + target.sum(), expected[-1] if len(top) else 0.0) + known_beyond[1]
    in_full = counts if beyond is None else counts - beyond.counts[occupied]
    in_all = (everywhere * in_full).sum(axis=1)
    if beyond is not None and beyond.total:
        in_all += beyond.total * _sampled(everywhere, beyond.seen[occupied], expit(draws(top[-1:])), rng)
    rest = histogram.total - int(free.sum())
    below = rng.binomial(rest, np.clip((in_all - in_list) / max(rest, 1), 0, 1))
    found = below + known_beyond[1] + (hits[:, -1] if len(top) else 0)
    prevalence_lo, prevalence_hi = np.quantile(found / total, tails) if total else (0.0, 1.0)

    def between(draws: Callable[[slice], np.ndarray], value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval at each rank from what `draws` gives of some nodes, a few hundred at a time."""
        starts = range(0, len(at), AT_ONCE)
        ends = np.concatenate([np.empty((2, 0)), *(
            np.quantile(draws(slice(k, k + AT_ONCE)), tails, axis=0) for k in starts
        )], axis=1)  # fmt: skip
        low, high = (np.interp(ranks, at, end) if len(top) else end for end in ends)
        return np.minimum(low, value), np.maximum(high, value)

    def recalls(some: slice) -> np.ndarray:  # a survey without a target misses none
        return np.where(found[:, None] > 0, hits[:, some] / np.maximum(found, 1)[:, None], 1.0)

    purity = expected / ranks
    completeness = expected / max(targets, 1e-300)
    purity_lo, purity_hi = between(lambda some: hits[:, some] / at[some], purity)
    ambiguous = unclear_lo = unclear_hi = np.full(len(top), np.nan)
    some = min(bootstrap, AMBIGUITY)
    if (unclear := calibration.ambiguity(top[at - 1], some, rng)) is not None:
        no_targets = blocks + known_hits - np.diff(hits[:some], axis=1, prepend=0)
        others = (rng.binomial(no_targets, unclear) + by_block(unclear_ones)).cumsum(axis=1) / at
        ambiguous = np.interp(ranks, at, others.mean(axis=0)) if len(top) else np.empty(0)
        unclear_lo, unclear_hi = between(lambda some: others[:, some], ambiguous)
    completeness_lo, completeness_hi = between(recalls, completeness)
    pi = targets / total if total else calibration.prevalence
    limits = float(min(pi, prevalence_lo)), float(max(pi, prevalence_hi))
    return Purity(
        float(pi), *limits, probability, purity, purity_lo, purity_hi, completeness, completeness_lo, completeness_hi,
        ambiguous, unclear_lo, unclear_hi,
        _notes(calibration, total, top, limits, purity, departure, confidence, unknown), draws, in_all, unknown,
    )  # fmt: skip


def of_scan(
    calibration: Calibration, info: Mapping[str, Any], scores: np.ndarray, known: np.ndarray | None, *,
    bootstrap: int, confidence: float,
) -> Purity:  # fmt: skip
    """Estimate again what a finished scan estimated, from what its ``run.json`` keeps.

    Parameters
    ----------
    info : mapping
        Of ``run.json``.
    scores, known
        Of its candidates; as of `estimate`.

    Raises
    ------
    InputError
        If the run keeps no histogram, or a damaged one.
    """
    if "histogram" not in info:
        raise InputError("the run was scanned by a version that kept no histogram of its scores; scan it again")
    objects, targets = info.get("known_beyond", (0, 0))
    return estimate(
        calibration, ScoreHistogram.from_list(info["histogram"]), scores,
        beyond=ScoreHistogram.from_list(info.get("histogram_discarded", [])), known=known,
        known_beyond=(objects, targets), unknown=(info.get("purity") or {}).get("unknown", ""), bootstrap=bootstrap,
        confidence=confidence, seed=int(info["seed"]),
    )  # fmt: skip


def _departed(departure: Departure | None) -> str:
    """Return why purity is unknown where a survey plainly does not score as the calibration set does."""
    if departure is None or min(departure.p_value, departure.targets_p_value) >= DEPARTED:
        return ""
    negatives = departure.p_value < departure.targets_p_value
    kind, p = ("negatives", departure.p_value) if negatives else ("targets", departure.targets_p_value)
    return f"the survey does not score as the calibration set does (chi-square test of the {kind}, p = {p:.1g})"


def _sampled(chances: np.ndarray, seen: np.ndarray, best: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the fraction of targets among objects of which a random sample was scored, shape (draws,).

    Parameters
    ----------
    chances : ndarray, shape (draws, bins)
        Of being a target, by score.
    seen : ndarray of int, shape (bins,)
        How many of the sample have each score: the fractions of all are Dirichlet, as in a Bayesian bootstrap, with
        half an object more that the sample might have missed, as good as the last of the candidates.
    best : ndarray, shape (draws, 1)
        Of being a target there; no column where there is no candidate.
    """
    some = seen > 0
    counts = np.append(seen[some], np.full(best.shape[1], UNSEEN))
    weights = rng.standard_gamma(counts, (len(chances), len(counts)))
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    return (weights * np.concatenate([chances[:, some], best], axis=1)).sum(axis=1)


def fitted_mixture(
    calibration: Calibration, histogram: ScoreHistogram, prevalence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the calibration set leads one to expect of a survey with this share of targets.

    The calibrated objects, as others or as targets by their log ratio, spread by a Gaussian kernel of the width of
    Silverman (1986), scaled to the survey: where they do not add up to its counts, label shift does not hold.

    Returns
    -------
    centres, negatives, targets : ndarray
        Middles of the histogram's bins from the first to the last that holds something, and expected counts.
    """
    used = np.flatnonzero(histogram.counts)
    span = slice(used[0], used[-1] + 1) if len(used) else slice(0)
    labelled = ScoreHistogram.empty()
    labelled.add(calibration.scores)
    held = labelled.counts > 0
    at, count = labelled.centres[held], labelled.counts[held]
    ratio = np.exp(np.clip(calibration.log_ratio(at), -300, 300))
    positives = calibration.targets.sum()
    others = count / (len(calibration.targets) - positives + positives * ratio)
    kinds = []
    for weight, size in ((others, len(calibration.targets) - positives), (others * ratio, positives)):
        share = weight / weight.sum()
        spread = np.sqrt(share @ (at - share @ at) ** 2)
        width = max(0.9 * spread * size**-0.2, _STEP)
        far = (histogram.centres[span, None] - at) / width
        kinds.append((np.exp(-0.5 * far**2) * share).sum(axis=1) * _STEP / (width * np.sqrt(2 * np.pi)))
    total = histogram.total
    return histogram.centres[span], total * (1 - prevalence) * kinds[0], total * prevalence * kinds[1]


def summary(purity: Purity, confidence: float) -> dict[str, Any]:
    """Return the prevalence and the purity at a few ranks, JSON-able."""
    ranks = [rank for rank in RANKS if rank <= len(purity.purity)]

    def at(name: str) -> dict[str, Any]:
        value, low, high = (purity.published(f"{name}{end}") for end in ("", "_lo", "_hi"))
        return {str(rank): _interval(value[rank - 1], low[rank - 1], high[rank - 1]) for rank in ranks}

    prevalence = (np.nan,) * 3 if purity.unknown else (purity.prevalence, purity.prevalence_lo, purity.prevalence_hi)
    return {
        "confidence": confidence, "unknown": purity.unknown, "prevalence": _interval(*prevalence),
        "at": at("purity"), "ambiguous_at": at("ambiguous"), "notes": list(purity.notes),
    }  # fmt: skip


def _interval(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}


def nodes(count: int) -> np.ndarray:
    """Return the ranks at which a list of `count` is reckoned: all of a short one, ever fewer of a long one."""
    if count <= DENSE:
        return np.arange(1, count + 1)
    sparse = np.geomspace(DENSE, count, 2 + int(np.log(count / DENSE) / 0.005)).round().astype(int)
    return np.unique(np.concatenate([np.arange(1, DENSE + 1), sparse]))


def _draws(
    calibration: Calibration, histogram: ScoreHistogram, draws: int, rng: np.random.Generator
) -> tuple[Curves, Departure | None]:
    """Draw curves of the log odds in the survey; say how far its others are from the calibration's negatives."""
    if not (calibration.slope > 0 and histogram.total):  # then scores say nothing, and every prevalence is as good
        level = logit(rng.random((draws, 1))).repeat(2, axis=1)
        return Curves(np.array([-_EDGE, _EDGE]), level, np.full(draws, np.inf)), None
    used = histogram.counts > 0
    positives, negatives = ((calibration.targets == kind).sum() for kind in (1, 0))
    # In the same bins as the survey: a bin that straddles the edge of a group would look like a departure.
    scores = histogram.centres[_bins(calibration.scores)]
    given = (
        scores[calibration.targets == 0], scores[calibration.targets == 1],
        histogram.centres[used], histogram.counts[used], histogram.seen[used],
    )  # fmt: skip
    evidence = Evidence(*given)
    departure = evidence.departure()
    if departure.p_value < WIDEN:
        evidence = Evidence(*given, trust=departure.trust)
        negatives = departure.trust * negatives
    curves = evidence.draw(draws, rng)[0]
    prevalence = expit(curves(histogram.centres[used])) @ (histogram.counts[used] / histogram.total)
    prior = logit(np.clip(prevalence, 1e-12, 1 - 1e-12))
    # Beyond the last of n calibrated objects lies a fraction g / n of their kind, g of Jeffreys' prior: Gamma(1/2).
    floors, ceilings = (np.log(rng.standard_gamma(0.5, draws) / (n + 1)) for n in (positives, negatives))
    return curves.bounded(prior + floors, prior - ceilings), departure


def _notes(
    calibration: Calibration,
    total: int,
    top: np.ndarray,
    prevalence: tuple[float, float],
    purity: np.ndarray,
    departure: Departure | None,
    confidence: float,
    unknown: str,
) -> list[str]:
    """Say in plain words what the numbers rest on, and what they cannot tell."""
    found = calibration.targets == 1
    positives, negatives = int(found.sum()), int((~found).sum())
    unclear = 0 if calibration.ambiguous is None else int(calibration.ambiguous.sum())
    notes = [
        f"The calibration rests on {positives:,} positives, {negatives - unclear:,} negatives and {unclear:,} "
        "ambiguous objects, which count as no targets: real objects, none scored by a network trained on it.",
    ]
    if unknown:
        return [
            *notes,
            f"Purity, completeness and prevalence are unknown: {unknown}. Grades of a random sample tell them: galscan "
            "vet, then galscan purity.",
        ]
    notes.append("It is assumed that targets and negatives look in the survey as they do in the calibration set.")
    if calibration.slope <= 0:
        notes.append("The scores do not separate the calibration set: no purity can be claimed, ranks say nothing.")
    if positives < 20:
        notes.append(f"With {positives} calibration positives the intervals are wide and rough; grade more candidates.")
    low, high = prevalence
    if low == 0:
        notes.append(
            f"The prevalence is not distinguishable from zero; at {confidence:.0%} confidence it is below {high:.3g} "
            f"({high * total:,.0f} of {total:,})."
        )
    if len(top) and calibration.slope > 0:
        rank = max(int((purity >= 0.5).sum()), min(10, len(top)))  # about where people cut the list
        above = calibration.scores >= top[rank - 1]
        if (above & ~found).sum() < FEW:
            notes.append(
                f"As high as rank {rank:,} score {(above & found).sum():,} of the calibration's positives and "
                f"{(above & ~found).sum():,} of its negatives: more labelled negatives tighten the interval of purity."
            )
    if departure is not None and departure.p_value < WIDEN:
        notes.append(
            "The survey's negatives do not score as the calibration's do (chi-square of two samples, "
            f"p = {departure.p_value:.1g}): images or classes differ between them. The calibration's were counted as "
            f"{departure.trust * negatives:,.0f}, which widens the intervals; purity may still be wrong by more: "
            "grade a sample."
        )
    return notes
