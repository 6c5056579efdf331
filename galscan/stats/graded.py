"""Purity and completeness once people have graded a sample of what was scanned.

Each stratum of the sample (`galscan.vetting.sampling`) holds N objects, of which n were drawn at random and graded, k
of them as targets. Its share of targets has a prior and a likelihood:

    * The likelihood is of the design: k of n, binomial, whatever the scores say. What was graded counts as it is, and
      only the N - n others are uncertain: the finite-population correction, exactly.
    * The prior is of the model: the stratum's share in each draw of `purity.estimate`, blurred to a Beta distribution
      that weighs half a count of the rarer kind; and one part in twenty of a vague Beta(1/2, 1/2), which takes over
      where grades contradict the model: a robust prior (Schmidli et al. 2014, Biometrics 70, 1023).

A draw of the model is kept as often as it foretold the grades of all strata together. Then each stratum's posterior is
a mixture of two Beta distributions and is drawn from directly. Within a stratum the others' targets are placed by the
scores, as log odds b logit p + c: c makes their mean the share that was drawn, and b, how steeply the share falls with
rank, is drawn from what the graded ones of that stratum say of it. Intervals are quantiles of the draws, estimates
their means (of purity) and medians (of what a few draws far off would spoil). How many to grade for a wanted interval,
and of which stratum, is forecast from the same draws (`galscan.stats.allocation`).

Objects whose label was known before, as the model was trained, calibrated or tested on them, are facts: they are in no
stratum's population, nobody grades them, and they count in purity and completeness as what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.special import betaln, expit, logit

from galscan.core.errors import InputError
from galscan.stats.purity import Purity, ScoreHistogram, nodes

VAGUE, VAGUE_SHAPE = 0.05, 0.5
# Pseudo-count of the rarer kind. More narrows little, and fails where targets score otherwise than calibrated.
BLUR = 0.5
STEEPNESS = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
METHOD = "Beta mixture by stratum: grades as likelihood, calibrated scores as robust prior"
_SHIFTS = np.linspace(-60.0, 60.0, 481)


@dataclass(frozen=True)
class Stratum:
    """Some of what was scanned, of which a random part is graded.

    Attributes
    ----------
    name : str
    population : int
        Objects in it, those with a known label not counted.
    first, last : int
        Its ranks among the candidates, from 1; both 0 for what is beyond them.
    discarded : bool
        Whether it is what the first look discarded.
    """

    name: str
    population: int
    first: int = 0
    last: int = 0
    discarded: bool = False


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
    """Return purity and completeness of a ranked list with the grades taken in.

    Parameters
    ----------
    purity : Purity
        What the scores alone say (`purity.estimate`).
    top_scores : ndarray, shape (K,)
        Scores of the candidates, best first.
    strata : sequence of Stratum
        They share out all that was scanned.
    grades : dict
        By stratum: ranks of the graded (0 beyond the candidates) and whether each is a target.
    beyond : ScoreHistogram, optional
        Of the scores of what the prefilter discarded.
    known : ndarray, shape (K,), optional
        Labels that were known before: 1 for a target, 0 for none, NaN where there is no label.
    known_beyond : (int, int)
        Objects with a known label that are no candidates, and how many of them are targets.

    Raises
    ------
    InputError
        If strata, grades, labels and candidates do not fit together.
    """
    top = np.asarray(top_scores, np.float64)
    label = _labels(known, known_beyond, len(top))
    _check(strata, grades, label)
    free = np.isnan(label)
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    total = sum(s.population for s in strata) + int((~free).sum()) + known_beyond[0]
    prior = prior_fractions(purity, top, strata, beyond, known=label)
    none = np.empty(0, int), np.empty(0, bool)
    seen = {s.name: grades.get(s.name, none) for s in strata}
    counts = {name: (int(is_target.sum()), len(ranks)) for name, (ranks, is_target) in seen.items()}

    blocks = _blocks(len(top), strata)
    edges = blocks.last
    odds = logit(np.clip(purity.probability, 1e-9, 1 - 1e-9))
    unknown, facts = _of_blocks(blocks, free), _of_blocks(blocks, np.where(free, 0, label))
    counted = np.where(np.repeat(unknown > 0, blocks.size), free, True)  # scores of the known where there are no others
    mean_odds = _of_blocks(blocks, odds * counted) / np.maximum(_of_blocks(blocks, counted), 1)
    del odds, counted
    hits = np.tile(facts.astype(np.int64), (draws, 1))
    chance = np.zeros(len(edges))  # of what is not graded
    probability = np.zeros(len(top))
    everything = np.full(draws, float(known_beyond[1]))
    shares = _posterior(prior, counts, draws, rng)
    for stratum in strata:
        ranks, is_target = seen[stratum.name]
        share = shares[stratum.name]
        if not stratum.last:
            everything += is_target.sum() + rng.binomial(stratum.population - len(ranks), share)
            continue
        inside = np.flatnonzero((edges >= stratum.first) & (edges <= stratum.last))
        at = np.searchsorted(edges[inside], ranks)  # the block of each graded one
        size = unknown[inside]
        rest = size - np.bincount(at, minlength=len(inside))
        hits[:, inside] += np.bincount(at, is_target, len(inside)).astype(np.int64)
        if rest.any():
            within = mean_odds[inside] - mean_odds[inside] @ size / size.sum()
            steep = _steepness(within, size, at, is_target, draws, rng)
            for b in np.unique(steep):
                drawn = np.flatnonzero(steep == b)
                chances = _shifted(b * within, rest, share[drawn])
                hits[np.ix_(drawn, inside)] += rng.binomial(rest, chances)
                chance[inside] += chances.sum(axis=0) / draws
        middles = (blocks.first[inside] + edges[inside]) / 2
        own = np.arange(stratum.first, stratum.last + 1)
        probability[own - 1] = np.interp(own, middles, chance[inside])
        probability[ranks - 1] = is_target
    probability[~free] = label[~free]
    found = np.cumsum(hits, axis=1, out=hits)
    everything += found[:, -1] if len(top) else 0
    purities = found / edges
    low, high = np.quantile(purities, tails, axis=0)
    mean = purities.mean(axis=0)
    del hits, purities  # of a long list they are large, as all is that has a row a draw
    # A survey without a target misses none.
    recalls = np.where(everything[:, None] > 0, found / np.maximum(everything, 1)[:, None], 1.0)
    recall_low, recall_high = np.quantile(recalls, tails, axis=0)
    recall = np.median(recalls, axis=0)
    del found, recalls

    def by_rank(values: np.ndarray) -> np.ndarray:
        return np.interp(np.arange(1, len(top) + 1), edges, values) if len(top) else np.empty(0)

    prevalence = everything / total
    after = by_rank(mean)
    # Of what is no target the scores still say how much is ambiguous.
    left = (1 - after) / np.maximum(1 - purity.purity, 1e-9)
    unclear = {
        name: np.clip(purity.published(name) * left, 0, 1 - after)
        for name in ("ambiguous", "ambiguous_lo", "ambiguous_hi")
    }
    return replace(
        purity,
        prevalence=float(np.median(prevalence)),
        prevalence_lo=float(np.quantile(prevalence, tails[0])), prevalence_hi=float(np.quantile(prevalence, tails[1])),
        probability=probability, purity=after, purity_lo=by_rank(low), purity_hi=by_rank(high),
        completeness=by_rank(recall), completeness_lo=by_rank(recall_low),
        completeness_hi=by_rank(recall_high),
        unknown="", notes=_notes(purity, strata, grades, prior, int((~free).sum()) + known_beyond[0]), **unclear,
    )  # fmt: skip


def _labels(known: np.ndarray | None, beyond: tuple[int, int], candidates: int) -> np.ndarray:
    """Return what is known of each candidate: 1, 0, or NaN."""
    label = np.full(candidates, np.nan) if known is None else np.asarray(known, np.float64)
    if label.shape != (candidates,) or not np.isin(label[~np.isnan(label)], (0.0, 1.0)).all():
        raise InputError(
            f"known labels of shape {label.shape} for {candidates:,} candidates: give 1, 0 or NaN for each"
        )
    if not 0 <= beyond[1] <= beyond[0]:
        raise InputError(
            f"{beyond[1]:,} targets among {beyond[0]:,} objects of known label; give no more than there are"
        )
    return label


def _check(strata: Sequence[Stratum], grades: dict[str, tuple[np.ndarray, np.ndarray]], label: np.ndarray) -> None:
    candidates = len(label)
    names = {s.name for s in strata}
    if unknown := set(grades) - names:
        raise InputError(f"grades of the stratum '{sorted(unknown)[0]}', which the sample does not have")
    covered = sorted((s.first, s.last) for s in strata if s.last)
    at = 1
    for first, last in covered:
        if first != at or last < first:
            raise InputError(f"the strata do not cover the candidates: ranks {at} to {first - 1} are in none")
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
            raise InputError(
                f"stratum '{s.name}' has {s.population:,} objects, and {free:,} of its ranks have no known label"
            )
        if s.last and not np.isnan(label[ranks - 1]).all():
            raise InputError(f"stratum '{s.name}': a graded object has a known label")


class _Blocks(NamedTuple):
    """Ranks that are reckoned together: single ones at the top, ever more further down, never of two strata."""

    first: np.ndarray
    last: np.ndarray

    @property
    def size(self) -> np.ndarray:
        return self.last - self.first + 1


def _blocks(count: int, strata: Sequence[Stratum]) -> _Blocks:
    last = np.union1d(nodes(count), [s.last for s in strata if s.last]).astype(int)
    return _Blocks(np.concatenate([[1], last[:-1] + 1])[: len(last)].astype(int), last)


def _of_blocks(blocks: _Blocks, values: np.ndarray) -> np.ndarray:
    """Return the sum over each block of what each rank has."""
    return np.add.reduceat(values, blocks.first - 1, dtype=np.float64 if values.dtype.kind == "f" else np.int64) if len(
        values) else np.empty(0, values.dtype)  # fmt: skip


def prior_fractions(
    purity: Purity, top: np.ndarray, strata: Sequence[Stratum], beyond: ScoreHistogram | None = None,
    *, known: np.ndarray | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return each stratum's fraction of targets, of its objects without a known label, in every draw of the model."""
    fractions: dict[str, np.ndarray] = {}
    if purity.unknown:  # then grades speak alone
        rng = np.random.default_rng(0)
        return {s.name: rng.beta(VAGUE_SHAPE, VAGUE_SHAPE, max(len(purity.draws), 1000)) for s in strata}
    left = purity.expected
    free = np.ones(len(top), bool) if known is None else np.isnan(known)
    for s in strata:
        if s.last:
            fractions[s.name] = _expected(purity, some_scores(top, s, free))
        elif s.discarded and beyond is not None and beyond.total:
            used = beyond.counts > 0
            fractions[s.name] = expit(purity.draws(beyond.centres[used])) @ (beyond.counts[used] / beyond.total)
        else:
            continue
        left = left - fractions[s.name] * s.population
    for s in strata:  # what is left of the targets is in what was scored in full and is no candidate
        fractions.setdefault(s.name, np.clip(left / max(s.population, 1), 0.0, 1.0))
    return fractions


def _expected(purity: Purity, scores: np.ndarray) -> np.ndarray:
    return expit(purity.draws(scores)).mean(axis=1) if len(scores) else np.zeros(len(purity.draws))


def some_scores(top: np.ndarray, stratum: Stratum, which: np.ndarray) -> np.ndarray:
    """Return scores of a stratum, of `which` candidates, evenly by rank: some stand for all, as they fall slowly."""
    own = top[stratum.first - 1 : stratum.last][which[stratum.first - 1 : stratum.last]]
    return own[np.unique(np.linspace(0, len(own) - 1, 500).round().astype(int))] if len(own) else own


def posterior_fractions(
    prior: Mapping[str, np.ndarray], counts: Mapping[str, tuple[int, int]], draws: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw the fractions of targets of all strata as they are once something of each is graded: blurred, every one."""
    return _posterior(dict(prior), {name: counts.get(name, (0, 0)) for name in prior}, draws, rng, every=True)


def _posterior(
    prior: dict[str, np.ndarray], counts: dict[str, tuple[int, int]], draws: int, rng: np.random.Generator,
    every: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Draw the fractions of all strata, given those of the model's draws and k targets among n graded of each."""
    told = {name: _told(prior[name], k, n) for name, (k, n) in counts.items() if n or every}
    weight = sum((np.logaddexp(*each) for each in told.values()), np.zeros(len(next(iter(prior.values())))))
    chosen = _drawn(weight, draws, rng)
    shares = {name: share[chosen] for name, share in prior.items()}
    for name, (model, vague) in told.items():
        k, n = counts[name]
        a, b = _blurred(shares[name])
        believed = rng.random(draws) < expit(model[chosen] - vague)
        shares[name] = rng.beta(np.where(believed, a, VAGUE_SHAPE) + k, np.where(believed, b, VAGUE_SHAPE) + n - k)
    return shares


def _told(prior: np.ndarray, k: int, n: int) -> tuple[np.ndarray, float]:
    """Return how likely k of n are by each draw of the model, and by the vague prior, each with its weight (log)."""
    a, b = _blurred(prior)
    c = VAGUE_SHAPE
    return (
        np.log(1 - VAGUE) + betaln(a + k, b + n - k) - betaln(a, b),
        float(np.log(VAGUE) + betaln(c + k, c + n - k) - betaln(c, c)),
    )


def _blurred(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of a Beta distribution around each share."""
    mean = np.clip(shares, 1e-9, 1 - 1e-9)
    size = BLUR / np.minimum(mean, 1 - mean)
    return mean * size, (1 - mean) * size


def _drawn(log_weight: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices with chances proportional to these weights."""
    weight = np.exp(log_weight - log_weight.max())
    return rng.choice(len(weight), draws, p=weight / weight.sum())


def _steepness(
    odds: np.ndarray, size: np.ndarray, at: np.ndarray, is_target: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the b of the module's text, all of `STEEPNESS` being as likely before the graded are seen.

    `odds` are of blocks of so many ranks (`size`), the graded are in the blocks `at`.
    """
    share = np.array([(is_target.sum() + VAGUE_SHAPE) / (len(at) + 2 * VAGUE_SHAPE)])
    told = np.zeros(len(STEEPNESS))
    for k, b in enumerate(STEEPNESS):
        chance = np.clip(_shifted(b * odds, size, share)[0, at], 1e-6, 1 - 1e-6)
        told[k] = np.log(np.where(is_target, chance, 1 - chance)).sum()
    return STEEPNESS[_drawn(told, draws, rng)]


def _shifted(odds: np.ndarray, size: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return probabilities (draws, n) of log odds + c, with each row's mean over blocks of so many its share."""
    # Not a matrix product: threads of BLAS cost far more than they save.
    means = np.einsum("cn,n->c", expit(odds + _SHIFTS[:, None]), size / size.sum())
    return expit(odds + np.interp(share, means, _SHIFTS)[:, None])


def _notes(
    purity: Purity, strata: Sequence[Stratum], grades: dict[str, tuple[np.ndarray, np.ndarray]],
    prior: dict[str, np.ndarray], known: int,
) -> list[str]:  # fmt: skip
    """Say what the numbers rest on now, and where grades and scores disagree."""
    count = sum(len(ranks) for ranks, _ in grades.values())
    found = sum(int(is_target.sum()) for _, is_target in grades.values())
    notes = [
        f"{count:,} objects of {len(strata)} strata were graded, {found:,} of them as targets; a grade is taken "
        "for the truth."
    ]
    if known:
        notes.append(f"{known:,} objects whose label was known before count as what they are.")
    for s in strata:
        ranks, is_target = grades.get(s.name, (np.empty(0, int), np.empty(0, bool)))
        if not s.population:
            continue
        if not len(ranks):
            notes.append(f"Nothing of '{s.name}' ({s.population:,} objects) was graded: there the scores speak alone.")
            continue
        k, n = int(is_target.sum()), len(ranks)
        model, vague = _told(prior[s.name], k, n)
        if np.logaddexp.reduce(model) - np.log(len(model)) < vague:
            notes.append(
                f"In '{s.name}' {k} of {n} graded are targets where the scores expect {n * prior[s.name].mean():.1f}: "
                "there the grades speak alone."
            )
    return notes + [note for note in purity.notes if note.startswith("A first look")]
