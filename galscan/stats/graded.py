"""Purity and completeness from a graded, stratified sample of a scan.

Each stratum of the sample (`galscan.vetting.sampling`) holds N objects, of which n were drawn at random and graded, k
of them as targets. Its fraction of targets has a prior and a likelihood:

    * The likelihood follows from the sampling design: k of n, binomial, independent of the scores. Graded objects count
      with their grade, and only the N - n others are uncertain: exactly the finite-population correction.
    * The prior follows from the model: the stratum's fraction in each draw of `purity.estimate`, widened to a Beta
      distribution with half a pseudo-count of the rarer class; plus, with weight 1/20, a vague Beta(1/2, 1/2), which
      dominates where grades contradict the model: a robust prior (Schmidli et al. 2014, Biometrics 70, 1023).

Draws of the model are resampled by their likelihood of the grades of all strata together. Each stratum's posterior is
then a mixture of two Beta distributions, which is sampled directly. Within a stratum the ungraded targets are
distributed over ranks by the scores, as log odds b logit p + c: c makes the mean equal the drawn fraction, and b, how
steeply the fraction falls with rank, is drawn from its posterior given the graded objects of that stratum. Intervals
are quantiles of the draws; estimates are their means (of purity) and medians (of quantities with outlying draws).

Objects whose label was known before, because they trained, calibrated or tested the model, belong to no stratum's
population, are not graded, and count in purity and completeness with their known label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit
from scipy.stats import betabinom

from galscan.core.errors import InputError
from galscan.stats.histogram import ScoreHistogram
from galscan.stats.purity import Purity, nodes

VAGUE, VAGUE_SHAPE = 0.05, 0.5
# Pseudo-count of the rarer class. A larger one narrows little, and fails where targets score otherwise than calibrated.
PSEUDO_COUNT = 0.5
STEEPNESS = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
_SHIFTS = np.linspace(-60.0, 60.0, 481)


@dataclass(frozen=True)
class Stratum:
    """A stratum of a scan, of which a random sample is graded."""

    name: str
    population: int
    """Number of objects in it, without those of known label."""
    first: int = 0
    last: int = 0
    """Its ranks among the candidates, from 1; both 0 for objects that are not candidates."""
    discarded: bool = False
    """Whether it is the objects that the prefilter rejected."""


def combine(
    purity: Purity,
    top_scores: np.ndarray,
    strata: Sequence[Stratum],
    grades: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    beyond: ScoreHistogram | None = None,
    known: np.ndarray | None = None,
    known_beyond: tuple[int, int] = (0, 0),
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Purity:
    """Return purity and completeness of a ranked list, updated with grades.

    Parameters
    ----------
    purity : Purity
        Estimate from the scores alone (`purity.estimate`), whose other arguments have the same meaning here.
    strata : sequence of Stratum
        A partition of all scanned objects.
    grades : dict
        By stratum: ranks of the graded objects (0 for objects that are not candidates) and whether each is a target.
    known : ndarray, shape (K,), optional
        Known labels: 1 for a target, 0 for a non-target (also if ambiguous), NaN where there is no label.

    Raises
    ------
    InputError
        If strata, grades, labels and candidates do not fit together.
    """
    top = np.asarray(top_scores, np.float64)
    label = _labels(known, known_beyond, len(top))
    _check(strata, grades, label)
    unlabelled = np.isnan(label)
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    total = sum(s.population for s in strata) + int((~unlabelled).sum()) + known_beyond[0]
    prior = prior_fractions(purity, top, strata, beyond, known=label)
    graded = {s.name: grades.get(s.name, (np.empty(0, int), np.empty(0, bool))) for s in strata}
    counts = {name: (int(is_target.sum()), len(ranks)) for name, (ranks, is_target) in graded.items()}

    first, edges = _blocks(len(top), strata)

    def block_sums(values: np.ndarray) -> np.ndarray:
        dtype = np.float64 if values.dtype.kind == "f" else np.int64
        return np.add.reduceat(values, first - 1, dtype=dtype) if len(top) else np.empty(0, values.dtype)

    odds = logit(np.clip(purity.probability, 1e-9, 1 - 1e-9))
    unknown, known_targets = block_sums(unlabelled), block_sums(np.where(unlabelled, 0, label))
    # Known objects contribute their scores only to blocks without other objects.
    used = np.where(np.repeat(unknown > 0, edges - first + 1), unlabelled, True)
    mean_odds = block_sums(odds * used) / np.maximum(block_sums(used), 1)
    del odds, used
    hits = np.tile(known_targets.astype(np.int64), (draws, 1))
    mean_chance = np.zeros(len(edges))  # of ungraded objects
    probability = np.zeros(len(top))
    all_targets = np.full(draws, float(known_beyond[1]))
    fractions = posterior_fractions(prior, counts, draws, rng, widened=False)
    for stratum in strata:
        ranks, is_target = graded[stratum.name]
        fraction = fractions[stratum.name]
        if not stratum.last:
            all_targets += is_target.sum() + rng.binomial(stratum.population - len(ranks), fraction)
            continue
        within = np.flatnonzero((edges >= stratum.first) & (edges <= stratum.last))
        at = np.searchsorted(edges[within], ranks)  # block of each graded object
        size = unknown[within]
        ungraded = size - np.bincount(at, minlength=len(within))
        hits[:, within] += np.bincount(at, is_target, len(within)).astype(np.int64)
        if ungraded.any():
            relative_odds = mean_odds[within] - mean_odds[within] @ size / size.sum()
            steepness = _draw_steepness(relative_odds, size, at, is_target, draws, rng)
            for b in np.unique(steepness):
                rows = np.flatnonzero(steepness == b)
                chances = _shift_to_mean(b * relative_odds, ungraded, fraction[rows])
                hits[np.ix_(rows, within)] += rng.binomial(ungraded, chances)
                mean_chance[within] += chances.sum(axis=0) / draws
        middles = (first[within] + edges[within]) / 2
        stratum_ranks = np.arange(stratum.first, stratum.last + 1)
        probability[stratum_ranks - 1] = np.interp(stratum_ranks, middles, mean_chance[within])
        probability[ranks - 1] = is_target
    probability[~unlabelled] = label[~unlabelled]
    found = np.cumsum(hits, axis=1, out=hits)
    all_targets += found[:, -1] if len(top) else 0
    purities = found / edges
    low, high = np.quantile(purities, tails, axis=0)
    mean = purities.mean(axis=0)
    del hits, purities  # large for a long list: one row per draw
    # Completeness is 1 in a survey without targets.
    recalls = np.where(all_targets[:, None] > 0, found / np.maximum(all_targets, 1)[:, None], 1.0)
    recall_low, recall_high = np.quantile(recalls, tails, axis=0)
    recall = np.median(recalls, axis=0)
    del found, recalls

    def by_rank(values: np.ndarray) -> np.ndarray:
        return np.interp(np.arange(1, len(top) + 1), edges, values) if len(top) else np.empty(0)

    prevalence = all_targets / total
    mean_purity = by_rank(mean)
    # The ambiguous fraction of the non-targets is still estimated from the scores.
    non_target_ratio = (1 - mean_purity) / np.maximum(1 - purity.purity, 1e-9)
    ambiguous = {
        name: np.clip(purity.published(name) * non_target_ratio, 0, 1 - mean_purity)
        for name in ("ambiguous", "ambiguous_lo", "ambiguous_hi")
    }
    return replace(
        purity,
        prevalence=float(np.median(prevalence)),
        prevalence_lo=float(np.quantile(prevalence, tails[0])), prevalence_hi=float(np.quantile(prevalence, tails[1])),
        probability=probability, purity=mean_purity, purity_lo=by_rank(low), purity_hi=by_rank(high),
        completeness=by_rank(recall), completeness_lo=by_rank(recall_low),
        completeness_hi=by_rank(recall_high),
        unknown="", notes=_notes(strata, counts, prior, int((~unlabelled).sum()) + known_beyond[0]),
        **ambiguous,
    )  # fmt: skip


def _labels(known: np.ndarray | None, beyond: tuple[int, int], candidates: int) -> np.ndarray:
    """Return the known label of each candidate: 1, 0, or NaN."""
    label = np.full(candidates, np.nan) if known is None else np.asarray(known, np.float64)
    if label.shape != (candidates,) or not np.isin(label[~np.isnan(label)], (0.0, 1.0)).all():
        raise InputError(f"labels of shape {label.shape} for {candidates:,} candidates: give 1, 0 or NaN for each")
    if not 0 <= beyond[1] <= beyond[0]:
        raise InputError(f"{beyond[1]:,} targets among {beyond[0]:,} objects of known label; give at most as many")
    return label


def _check(strata: Sequence[Stratum], grades: dict[str, tuple[np.ndarray, np.ndarray]], label: np.ndarray) -> None:
    candidates = len(label)
    if unknown := set(grades) - {s.name for s in strata}:
        raise InputError(f"grades of the stratum '{sorted(unknown)[0]}', which is not in the sample")
    at = 1
    for first, last in sorted((s.first, s.last) for s in strata if s.last):
        if first != at or last < first:
            raise InputError(f"the strata do not cover the candidates: ranks {at} to {first - 1} are in no stratum")
        at = last + 1
    if at != candidates + 1:
        raise InputError(f"the strata cover {at - 1:,} candidates, the run has {candidates:,}; was it scanned again?")
    for s in strata:
        ranks, is_target = grades.get(s.name, (np.empty(0, int), np.empty(0, bool)))
        if len(ranks) != len(is_target) or len(ranks) > s.population:
            raise InputError(f"stratum '{s.name}': {len(ranks)} graded of {s.population}")
        if s.last and len(ranks) and not (ranks.min() >= s.first and ranks.max() <= s.last):
            raise InputError(f"stratum '{s.name}': a graded rank lies outside {s.first} to {s.last}")
        if s.last and (free := int(np.isnan(label[s.first - 1 : s.last]).sum())) != s.population:
            raise InputError(f"stratum '{s.name}' has {s.population:,} objects, but {free:,} ranks without known label")
        if s.last and not np.isnan(label[ranks - 1]).all():
            raise InputError(f"stratum '{s.name}': a graded object has a known label")


def _blocks(count: int, strata: Sequence[Stratum]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last ranks of blocks that are evaluated together: single ranks at the top, longer below."""
    last = np.union1d(nodes(count), [s.last for s in strata if s.last]).astype(int)
    return np.concatenate([[1], last[:-1] + 1])[: len(last)].astype(int), last


def prior_fractions(
    purity: Purity, top: np.ndarray, strata: Sequence[Stratum], beyond: ScoreHistogram | None = None,
    *, known: np.ndarray | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return each stratum's fraction of targets among objects without a known label, in every draw of the model."""
    fractions: dict[str, np.ndarray] = {}
    if purity.unknown:  # then only grades are used
        rng = np.random.default_rng(0)
        return {s.name: rng.beta(VAGUE_SHAPE, VAGUE_SHAPE, max(len(purity.draws), 1000)) for s in strata}
    remaining = purity.expected
    unlabelled = np.ones(len(top), bool) if known is None else np.isnan(known)
    for s in strata:
        if s.last:
            scores = top[s.first - 1 : s.last][unlabelled[s.first - 1 : s.last]]
            if len(scores):  # up to 500, evenly spaced in rank
                scores = scores[np.unique(np.linspace(0, len(scores) - 1, 500).round().astype(int))]
                fractions[s.name] = expit(purity.draws(scores)).mean(axis=1)
            else:
                fractions[s.name] = np.zeros(len(purity.draws))
        elif s.discarded and beyond is not None and beyond.total:
            occupied = beyond.counts > 0
            fractions[s.name] = expit(purity.draws(beyond.centres[occupied])) @ (beyond.counts[occupied] / beyond.total)
        else:
            continue
        remaining = remaining - fractions[s.name] * s.population
    for s in strata:  # the remaining targets are among objects that were fully scored and are no candidates
        fractions.setdefault(s.name, np.clip(remaining / max(s.population, 1), 0.0, 1.0))
    return fractions


def posterior_fractions(
    prior: Mapping[str, np.ndarray], counts: Mapping[str, tuple[int, int]], draws: int, rng: np.random.Generator,
    *, widened: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Draw the fractions of targets of all strata, given the numbers of targets and of grades.

    Strata without grades keep the model's draws, or, if `widened`, get draws of their widened prior.
    """
    counts = {name: counts.get(name, (0, 0)) for name in prior}
    evidence = {name: _log_evidence(prior[name], k, n) for name, (k, n) in counts.items() if n or widened}
    weight = sum((np.logaddexp(*each) for each in evidence.values()), np.zeros(len(next(iter(prior.values())))))
    chosen = _weighted_choice(weight, draws, rng)
    fractions = {name: fraction[chosen] for name, fraction in prior.items()}
    for name, (model, vague) in evidence.items():
        k, n = counts[name]
        a, b = _beta_parameters(fractions[name])
        from_model = rng.random(draws) < expit(model[chosen] - vague)
        fractions[name] = rng.beta(
            np.where(from_model, a, VAGUE_SHAPE) + k, np.where(from_model, b, VAGUE_SHAPE) + n - k
        )
    return fractions


def _log_evidence(prior: np.ndarray, k: int, n: int) -> tuple[np.ndarray, float]:
    """Return the log evidence of k of n under each draw of the model and under the vague prior, with prior weights."""
    model = betabinom.logpmf(k, n, *_beta_parameters(prior))
    return np.log(1 - VAGUE) + model, float(np.log(VAGUE) + betabinom.logpmf(k, n, VAGUE_SHAPE, VAGUE_SHAPE))


def _beta_parameters(fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of a Beta distribution around each fraction."""
    mean = np.clip(fractions, 1e-9, 1 - 1e-9)
    size = PSEUDO_COUNT / np.minimum(mean, 1 - mean)
    return mean * size, (1 - mean) * size


def _weighted_choice(log_weight: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices with probabilities proportional to these weights."""
    weight = np.exp(log_weight - log_weight.max())
    return rng.choice(len(weight), draws, p=weight / weight.sum())


def _draw_steepness(
    odds: np.ndarray, size: np.ndarray, at: np.ndarray, is_target: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the steepness b of the module docstring, with a uniform prior on `STEEPNESS`.

    `odds` are of blocks of `size` ranks; `at` are the blocks of the graded objects.
    """
    fraction = np.array([(is_target.sum() + VAGUE_SHAPE) / (len(at) + 2 * VAGUE_SHAPE)])
    log_likelihood = np.zeros(len(STEEPNESS))
    for k, b in enumerate(STEEPNESS):
        chance = np.clip(_shift_to_mean(b * odds, size, fraction)[0, at], 1e-6, 1 - 1e-6)
        log_likelihood[k] = np.log(np.where(is_target, chance, 1 - chance)).sum()
    return STEEPNESS[_weighted_choice(log_likelihood, draws, rng)]


def _shift_to_mean(odds: np.ndarray, size: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Return probabilities (draws, n) of log odds + c, where c makes each row's mean over the blocks its fraction."""
    # einsum: a matrix product would start BLAS threads, which cost far more than they save.
    means = np.einsum("cn,n->c", expit(odds + _SHIFTS[:, None]), size / size.sum())
    return expit(odds + np.interp(fraction, means, _SHIFTS)[:, None])


def _notes(
    strata: Sequence[Stratum], counts: dict[str, tuple[int, int]], prior: dict[str, np.ndarray], known: int
) -> list[str]:
    """Return notes on the data behind the numbers and on strata where grades and scores disagree."""
    targets, count = (sum(column) for column in zip(*counts.values(), strict=True))
    notes = [
        f"{count:,} objects of {len(strata)} strata were graded, {targets:,} of them as targets; grades are "
        "taken as true."
    ]
    if known:
        notes.append(f"{known:,} objects whose label was known before count with that label.")
    for s in strata:
        k, n = counts[s.name]
        if not s.population:
            continue
        if not n:
            notes.append(f"Nothing of '{s.name}' ({s.population:,} objects) was graded: only scores are used there.")
            continue
        model, vague = _log_evidence(prior[s.name], k, n)
        if np.logaddexp.reduce(model) - np.log(len(model)) < vague:
            notes.append(
                f"In '{s.name}' {k} of {n} graded are targets where the scores expect {n * prior[s.name].mean():.1f}: "
                "only grades are used there."
            )
    return notes
