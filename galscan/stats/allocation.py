"""How many objects of each stratum to grade, so that an interval becomes as narrow as so many grades can make it.

Neyman allocation (Cochran 1977, Sampling Techniques, 5.5) draws n_h of the N_h objects of a stratum in proportion to
N_h S_h, where S_h is the standard deviation there of what is measured. S_h is not known before anything is graded, but
the model says what to expect: draws of each stratum's fraction of targets (`graded.posterior_fractions`). Their mean
gives the binomial variance of one object; their covariance, how uncertain the fractions are, and how much the grades of
one stratum tell of another. Both together give the variance of the number of targets within the wanted rank
after one more grade (linear Bayes, which is exact for a Beta distribution), with the finite-population correction. Each
grade goes where that variance falls most, and what is graded already counts: so the rest of a sample can be planned
again whenever some of it is graded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from galscan.core.errors import InputError
from galscan.stats.graded import Stratum, posterior_fractions, prior_fractions
from galscan.stats.purity import Purity

FEW = 3  # of each stratum, so that none is left to the scores alone
BELOW, BEYOND = 0.1, 0.1  # fractions of the grades for candidates below the wanted rank, and for what is no candidate
DRAWS = 1000
STEPS = 200  # a large sample is allocated in so many steps, not grade by grade


def allocate(
    strata: Sequence[Stratum],
    prior: Mapping[str, np.ndarray],
    counts: Mapping[str, tuple[int, int]],
    size: int,
    rank: int,
    *,
    entire: Sequence[str] = (),
    available: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Return how many more objects of each stratum to grade.

    Parameters
    ----------
    strata : sequence of Stratum
    prior : mapping of str to ndarray
        Draws of each stratum's fraction of targets before anything was graded (`graded.prior_fractions`).
    counts : mapping of str to (int, int)
        Targets among the graded, and graded, by stratum.
    size : int
        How many more in all; fewer only where no more are left.
    rank : int
        The purity of the candidates down to this rank is wanted.
    entire : sequence of str
        Strata that are to be graded one and all.
    available : mapping of str to int, optional
        How many objects of each stratum can be graded at most, those that are graded included; by default all.
    """
    before = np.array([counts.get(s.name, (0, 0))[1] for s in strata], int)
    most = np.array([min(s.population, (available or {}).get(s.name, s.population)) for s in strata], int)
    more = np.zeros(len(strata), int)
    size = min(size, int((most - before).sum()))

    def give(k: int, wanted: int) -> None:
        """Grade so many of a stratum in all, as far as the sample goes."""
        more[k] += max(min(wanted - before[k] - more[k], most[k] - before[k] - more[k], size - more.sum()), 0)

    for k, s in enumerate(strata):
        if s.name in entire:
            give(k, s.population)
    for least in range(1, FEW + 1):  # one of each first, then a second
        for k in range(len(strata)):
            give(k, least)
    if more.sum() < size:
        fractions = posterior_fractions(prior, counts, DRAWS, np.random.default_rng(seed))
        within = np.array([bool(s.last) and s.first <= rank for s in strata])
        below = np.array([bool(s.last) for s in strata]) & ~within
        total = int(before.sum()) + size
        for group, part in ((below, BELOW), (~within & ~below, BEYOND), (within, 1.0), (~within, 1.0)):
            at = np.flatnonzero(group)
            if not len(at) or (part < 1 and not within.any()):
                continue
            wanted = round(part * total) - int((before + more)[at].sum()) if part < 1 else size
            model = _Model.of(np.array([fractions[strata[k].name] for k in at.tolist()]),
                              np.array([strata[k].population for k in at.tolist()]) - before[at])  # fmt: skip
            more[at] += model.spend(more[at], (most - before)[at], min(wanted, size - int(more.sum())))
    return {s.name: int(n) for s, n in zip(strata, more, strict=True)}


def suggest(
    purity: Purity,
    top_scores: np.ndarray,
    strata: Sequence[Stratum],
    plan: Callable[[int], Mapping[str, int]],
    rank: int,
    width: float,
    *,
    known: np.ndarray | None = None,
    confidence: float = 0.95,
) -> int:
    """Return how many objects to grade for an interval of purity at `rank` that is `width` wide.

    It is a forecast from the draws of the model: half of all surveys need a little more.

    Parameters
    ----------
    purity, top_scores, strata, known
        As for `graded.combine`.
    plan : callable
        Says how many of each stratum are graded where so many are graded in all, as `allocate`.
    rank : int
        Purity of the best so many is meant.
    width : float
        From the lower to the upper end of the interval.

    Raises
    ------
    InputError
        If rank or width are out of range.
    """
    top = np.asarray(top_scores, np.float64)
    if not (1 <= rank <= len(top) and 0 < width < 1 and 0 < confidence < 1):
        raise InputError(f"rank {rank:,}, width {width:g}: use a rank of 1 to {len(top):,}, and a width within 0 to 1")
    free = np.ones(len(top), bool) if known is None else np.isnan(known)
    whole = [s for s in strata if s.last and s.first <= rank and free[s.first - 1 : min(s.last, rank)].any()]
    inside = [
        replace(s, last=min(s.last, rank), population=int(free[s.first - 1 : min(s.last, rank)].sum())) for s in whole
    ]
    prior = prior_fractions(purity, top, inside, known=known)
    fractions = posterior_fractions(prior, {}, DRAWS, np.random.default_rng(0))
    start = _Model.of(np.array([fractions[s.name] for s in inside]), np.array([s.population for s in inside]))
    z = 2 * float(ndtri(0.5 * (1 + confidence))) / rank

    def forecast(size: int) -> float:
        graded, model = plan(size), start
        for k, (s, part) in enumerate(zip(whole, inside, strict=True)):
            if n := graded.get(s.name, 0):
                model = model.after(k, min(n * part.population / s.population, part.population))
        return z * float(model.variance) ** 0.5

    everything = sum(s.population for s in strata)
    low, high = 0, 1
    while high < everything and forecast(high) > width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if forecast(middle) > width else (low, middle)
    return min(high, everything)


@dataclass(frozen=True)
class _Model:
    """What is expected of the strata of a group: covariance of their fractions, variance of an object, objects left."""

    covariance: np.ndarray
    noise: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray, left: np.ndarray) -> _Model:
        """Return it of fractions drawn, shape (strata, draws)."""
        covariance = np.atleast_2d(np.cov(draws)) + 1e-12 * np.eye(len(draws))
        return cls(covariance, (draws * (1 - draws)).mean(axis=1) + 1e-12, left.astype(float))

    @property
    def variance(self) -> float:
        """Of the number of targets among what is left."""
        return float(np.einsum("k,kl,l", self.left, self.covariance, self.left) + (self.left * self.noise).sum())

    def after(self, k: int, count: float) -> _Model:
        """Return it after so many grades in stratum k."""
        column, left = self.covariance[:, k], self.left.copy()
        left[k] -= count
        gain = np.outer(column, column) / (column[k] + self.noise[k] / count)
        return _Model(self.covariance - gain, self.noise, left)

    def gains(self, counts: np.ndarray) -> np.ndarray:
        """Return by how much the variance falls with each grade, if so many are given in one stratum; -inf for none."""
        left = self.left - np.diag(counts)  # a row for each stratum that gets them
        both = np.einsum(
            "kh,hl->kl", left, self.covariance
        )  # no matrix product: threads of BLAS cost more than they save
        own, some = np.diag(both), np.maximum(counts, 1)
        fallen = own**2 / (np.diag(self.covariance) + self.noise / some)
        after = (both * left).sum(axis=1) - fallen + (left * self.noise).sum(axis=1)
        return np.where(counts > 0, (self.variance - after) / some, -np.inf)

    def spend(self, sure: np.ndarray, most: np.ndarray, count: int) -> np.ndarray:
        """Return how many to grade of each beside those that are graded for sure; `most` limits both together."""
        model, given = self, np.zeros(len(sure), int)
        for k in np.flatnonzero(sure).tolist():
            model = model.after(k, int(sure[k]))
        while count > 0 and (room := most - sure - given).any():
            steps = np.minimum(room, max(count // STEPS, 1))
            best = int(np.argmax(model.gains(steps)))
            model, count = model.after(best, int(steps[best])), count - int(steps[best])
            given[best] += steps[best]
        return given
