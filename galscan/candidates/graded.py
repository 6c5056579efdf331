"""Purity and completeness once people have graded a sample of what was scanned.

Each stratum of the sample (`galscan.vetting.design`) holds N objects, of which n were drawn at random and graded, k of
them as targets. Its share of targets has a prior and a likelihood:

    * The likelihood is of the design: k of n, binomial, whatever the scores say. What was graded counts as it is, and
      only the N - n others are uncertain: the finite-population correction, exactly.
    * The prior is of the model: the stratum's share in each bootstrap replicate of `purity.estimate`, each blurred to a
      Beta distribution that weighs half a count of the rarer kind; and one part in twenty of a vague Beta(1/2, 1/2),
      which takes over where grades contradict the model: a robust prior (Schmidli et al. 2014, Biometrics 70, 1023).

The posterior is a mixture of Beta distributions and is drawn from directly. Within a stratum the others' targets are
placed by the scores, as log odds b logit p + c: c makes their mean the share that was drawn, and b, how steeply the
share falls with rank, is drawn from what the graded ones of that stratum say of it. Intervals are quantiles of the
draws, estimates their means (of purity) and medians (of what a few draws far off would spoil).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaln, expit, logit

from galscan.candidates.purity import Purity, ScoreHistogram
from galscan.errors import InputError

VAGUE, VAGUE_SHAPE = 0.05, 0.5
LARGEST = 20_000_000  # draws times candidates held in memory; of a longer list fewer are drawn
BLUR = 0.5  # pseudo-count of the rarer kind in each replicate's Beta distribution, as in that of Jeffreys
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
        Objects in it.
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
        Of the scores of what the first look discarded.

    Raises
    ------
    InputError
        If strata, grades and candidates do not fit together.
    """
    top = np.asarray(top_scores, np.float64)
    _check(strata, grades, len(top))
    rng = np.random.default_rng(seed)
    tails = (0.5 * (1 - confidence), 0.5 * (1 + confidence))
    total = sum(s.population for s in strata)
    chance = expit(purity.draws[:, :1] * top + purity.draws[:, 1:2] + logit(purity.draws[:, 2:]))  # (R, K)
    prior = _prior_shares(purity, chance, strata, total, beyond)

    draws = min(draws, max(200, LARGEST // max(len(top), 1)))
    hits = np.zeros((draws, len(top)), np.float32)
    everything = np.zeros(draws)
    odds = logit(np.clip(purity.probability, 1e-9, 1 - 1e-9))
    for stratum in strata:
        ranks, is_target = grades.get(stratum.name, (np.empty(0, int), np.empty(0, bool)))
        share = _posterior(prior[stratum.name], int(is_target.sum()), len(ranks), draws, rng)
        if not stratum.last:
            everything += is_target.sum() + rng.binomial(stratum.population - len(ranks), share)
            continue
        inside = np.arange(stratum.first - 1, stratum.last)
        known = np.isin(inside + 1, ranks)
        hits[:, ranks - 1] = is_target
        rest = inside[~known]
        if len(rest):
            within = odds - odds[inside].mean()
            steep = _steepness(within[inside], np.searchsorted(inside, ranks - 1), is_target, draws, rng)
            for b in np.unique(steep):
                drawn = np.flatnonzero(steep == b)
                chances = _shifted(b * within[rest], share[drawn])
                hits[np.ix_(drawn, rest)] = rng.random(chances.shape) < chances
    found = hits.cumsum(axis=1)
    everything += found[:, -1] if len(top) else 0.0
    purities = found / np.arange(1, len(top) + 1)
    # A survey without a target misses none.
    recalls = np.where(everything[:, None] > 0, found / np.maximum(everything, 1)[:, None], 1.0)
    low, high = np.quantile(purities, tails, axis=0)
    recall_low, recall_high = np.quantile(recalls, tails, axis=0)
    prevalence = everything / total
    return replace(
        purity,
        prevalence=float(np.median(prevalence)),
        prevalence_lo=float(np.quantile(prevalence, tails[0])), prevalence_hi=float(np.quantile(prevalence, tails[1])),
        probability=hits.mean(axis=0), purity=purities.mean(axis=0), purity_lo=low, purity_hi=high,
        completeness=np.median(recalls, axis=0), completeness_lo=recall_low, completeness_hi=recall_high,
        notes=_notes(purity, strata, grades, prior),
    )  # fmt: skip


def _check(strata: Sequence[Stratum], grades: dict[str, tuple[np.ndarray, np.ndarray]], candidates: int) -> None:
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


def _prior_shares(
    purity: Purity, chance: np.ndarray, strata: Sequence[Stratum], total: int, beyond: ScoreHistogram | None
) -> dict[str, np.ndarray]:
    """Return each stratum's share of targets in every replicate."""
    shares: dict[str, np.ndarray] = {}
    expected = purity.draws[:, 2] * total
    left = np.maximum(expected - chance.sum(axis=1), 0.0)
    for s in strata:
        if s.last:
            shares[s.name] = chance[:, s.first - 1 : s.last].mean(axis=1)
        elif s.discarded and beyond is not None and beyond.total:
            slope, offset, prevalence = purity.draws.T[:, :, None]
            used = beyond.counts > 0
            each = expit(slope * beyond.centres[used] + offset + logit(prevalence))
            shares[s.name] = each @ (beyond.counts[used] / beyond.total)
            left = np.maximum(left - shares[s.name] * s.population, 0.0)
    for s in strata:  # what is left of the targets is in what was scored in full and is no candidate
        shares.setdefault(s.name, np.clip(left / max(s.population, 1), 0.0, 1.0))
    return shares


def _posterior(prior: np.ndarray, k: int, n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the share of a stratum, given its share in each replicate and k targets among n graded."""
    if not n:
        return rng.choice(prior, draws)
    a, b = _blurred(prior)
    a, b = np.append(a, VAGUE_SHAPE), np.append(b, VAGUE_SHAPE)
    weight = np.append(np.full(len(prior), (1 - VAGUE) / len(prior)), VAGUE)
    chosen = _drawn(np.log(weight) + betaln(a + k, b + n - k) - betaln(a, b), draws, rng)
    return rng.beta(a[chosen] + k, b[chosen] + n - k)


def _blurred(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of a Beta distribution around each share."""
    mean = np.clip(shares, 1e-9, 1 - 1e-9)
    size = BLUR / np.minimum(mean, 1 - mean)
    return mean * size, (1 - mean) * size


def _drawn(log_weight: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices with chances proportional to these weights."""
    weight = np.exp(log_weight - log_weight.max())
    return rng.choice(len(weight), draws, p=weight / weight.sum())


def _support(prior: np.ndarray, k: int, n: int) -> float:
    """Return the logarithm of how much better k of n suit the model's prior than the vague one."""
    a, b = _blurred(prior)
    c = VAGUE_SHAPE
    model = float(np.exp(betaln(a + k, b + n - k) - betaln(a, b)).mean())
    return float(np.log(max(model, 1e-300)) - betaln(c + k, c + n - k) + betaln(c, c))


def _steepness(
    odds: np.ndarray, at: np.ndarray, is_target: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the b of the module's text, all of `STEEPNESS` being as likely before the graded (at `at`) are seen."""
    share = np.array([(is_target.sum() + VAGUE_SHAPE) / (len(at) + 2 * VAGUE_SHAPE)])
    told = np.zeros(len(STEEPNESS))
    for k, b in enumerate(STEEPNESS):
        chance = np.clip(_shifted(b * odds, share)[0, at], 1e-6, 1 - 1e-6)
        told[k] = np.log(np.where(is_target, chance, 1 - chance)).sum()
    return STEEPNESS[_drawn(told, draws, rng)]


def _shifted(odds: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return probabilities (draws, n) of log odds + c, with each row's mean its share."""
    means = expit(odds + _SHIFTS[:, None]).mean(axis=1)
    return expit(odds + np.interp(share, means, _SHIFTS)[:, None])


def _notes(
    purity: Purity, strata: Sequence[Stratum], grades: dict[str, tuple[np.ndarray, np.ndarray]],
    prior: dict[str, np.ndarray],
) -> list[str]:  # fmt: skip
    """Say what the numbers rest on now, and where grades and scores disagree."""
    count = sum(len(ranks) for ranks, _ in grades.values())
    found = sum(int(is_target.sum()) for _, is_target in grades.values())
    notes = [
        f"{count:,} objects of {len(strata)} strata were graded, {found:,} of them as targets; a grade is taken "
        "for the truth."
    ]
    for s in strata:
        ranks, is_target = grades.get(s.name, (np.empty(0, int), np.empty(0, bool)))
        if not len(ranks):
            notes.append(f"Nothing of '{s.name}' ({s.population:,} objects) was graded: there the scores speak alone.")
            continue
        k, n = int(is_target.sum()), len(ranks)
        if _support(prior[s.name], k, n) < np.log(VAGUE):
            notes.append(
                f"In '{s.name}' {k} of {n} graded are targets where the scores expect {n * prior[s.name].mean():.1f}: "
                "there the grades speak alone."
            )
    return notes + [note for note in purity.notes if note.startswith("A first look")]
