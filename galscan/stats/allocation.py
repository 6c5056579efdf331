"""Sample-size planning: how many objects of each stratum to grade for the narrowest interval of purity.

Neyman allocation (Cochran 1977, Sampling Techniques, 5.5) draws n_h of the N_h objects of a stratum in proportion to
N_h S_h, where S_h is the standard deviation of the measured quantity in it. S_h is unknown before grading, but the
model predicts it: posterior draws of each stratum's fraction of targets (`graded.posterior_fractions`). Their mean
gives the binomial variance of one object, and their covariance how much the grades of one stratum constrain another.
Together they give the variance of the number of targets down to the requested rank after one more grade (linear Bayes,
which is exact for a Beta distribution), with the finite-population correction. Each grade is allocated where it reduces
that variance most; existing grades are included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from galscan.core.errors import InputError
from galscan.stats.graded import Stratum, posterior_fractions, prior_fractions
from galscan.stats.purity import Purity

MIN_GRADES = 3  # grades per stratum at least, so that no stratum relies on the scores alone
BELOW, BEYOND = 0.1, 0.1  # fractions of the grades for candidates below the requested rank, and for non-candidates
DRAWS = 1000
STEPS = 200  # a large sample is allocated in at most so many steps, not grade by grade


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
    prior : mapping of str to ndarray
        Draws of each stratum's fraction of targets before grading (`graded.prior_fractions`).
    counts : mapping of str to (int, int)
        By stratum: number of targets among the graded objects, and number of graded objects.
    size : int
        Number of additional grades; fewer only if fewer objects are left.
    rank : int
        Rank down to which the purity is to be measured.
    entire : sequence of str
        Strata that are graded completely.
    available : mapping of str to int, optional
        Maximum number of grades of each stratum, existing ones included; by default its population.
    """
    graded = np.array([counts.get(s.name, (0, 0))[1] for s in strata], int)
    most = np.array([min(s.population, (available or {}).get(s.name, s.population)) for s in strata], int)
    more = np.zeros(len(strata), int)
    size = min(size, int((most - graded).sum()))

    def add(k: int, wanted: int) -> None:
        """Raise the grades of stratum k to `wanted` in all, as far as sample and stratum allow."""
        more[k] += max(min(wanted - graded[k] - more[k], most[k] - graded[k] - more[k], size - more.sum()), 0)

    for k, s in enumerate(strata):
        if s.name in entire:
            add(k, s.population)
    for minimum in range(1, MIN_GRADES + 1):  # one of each stratum first, then a second
        for k in range(len(strata)):
            add(k, minimum)
    if more.sum() < size:
        fractions = posterior_fractions(prior, counts, DRAWS, np.random.default_rng(seed))
        within = np.array([bool(s.last) and s.first <= rank for s in strata])
        below = np.array([bool(s.last) for s in strata]) & ~within
        total = int(graded.sum()) + size
        for group, fraction in ((below, BELOW), (~within & ~below, BEYOND), (within, 1.0), (~within, 1.0)):
            at = np.flatnonzero(group)
            if not len(at) or (fraction < 1 and not within.any()):
                continue
            wanted = round(fraction * total) - int((graded + more)[at].sum()) if fraction < 1 else size
            model = _VarianceModel.of(np.array([fractions[strata[k].name] for k in at.tolist()]),
                              np.array([strata[k].population for k in at.tolist()]) - graded[at])  # fmt: skip
            more[at] += model.spend(more[at], (most - graded)[at], min(wanted, size - int(more.sum())))
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
    """Return how many objects to grade for an interval of the given width of purity at `rank`.

    It is a prediction from draws of the model: half of all surveys need a little more.

    Parameters
    ----------
    purity, top_scores, strata, known
        As for `graded.combine`.
    plan : callable
        Maps a total number of grades to the number in each stratum, as `allocate` does.

    Raises
    ------
    InputError
        If rank or width are out of range.
    """
    top = np.asarray(top_scores, np.float64)
    if not (1 <= rank <= len(top) and 0 < width < 1 and 0 < confidence < 1):
        raise InputError(f"rank {rank:,}, width {width:g}: use a rank of 1 to {len(top):,}, and a width within 0 to 1")
    unlabelled = np.ones(len(top), bool) if known is None else np.isnan(known)
    clipped = [
        replace(s, last=min(s.last, rank), population=population)
        for s in strata
        if s.last and s.first <= rank and (population := int(unlabelled[s.first - 1 : min(s.last, rank)].sum()))
    ]
    prior = prior_fractions(purity, top, clipped, known=known)
    fractions = posterior_fractions(prior, {}, DRAWS, np.random.default_rng(0))
    initial = _VarianceModel.of(
        np.array([fractions[s.name] for s in clipped]), np.array([s.population for s in clipped])
    )
    populations = {s.name: s.population for s in strata}
    z = 2 * float(ndtri(0.5 * (1 + confidence))) / rank

    def predicted_width(size: int) -> float:
        graded, model = plan(size), initial
        for k, s in enumerate(clipped):
            if n := graded.get(s.name, 0):
                model = model.after(k, min(n * s.population / populations[s.name], s.population))
        return z * float(model.variance) ** 0.5

    population = sum(populations.values())
    low, high = 0, 1
    while high < population and predicted_width(high) > width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if predicted_width(middle) > width else (low, middle)
    return min(high, population)


@dataclass(frozen=True)
class _VarianceModel:
    """Linear-Bayes model of a group of strata: covariance of their fractions, variance per object, objects left."""

    covariance: np.ndarray
    noise: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray, left: np.ndarray) -> _VarianceModel:
        """Return the model of posterior draws of the fractions, shape (strata, draws)."""
        covariance = np.atleast_2d(np.cov(draws)) + 1e-12 * np.eye(len(draws))
        return cls(covariance, (draws * (1 - draws)).mean(axis=1) + 1e-12, left.astype(float))

    @property
    def variance(self) -> float:
        """Variance of the number of targets among the ungraded objects."""
        return float(np.einsum("k,kl,l", self.left, self.covariance, self.left) + (self.left * self.noise).sum())

    def after(self, k: int, count: float) -> _VarianceModel:
        """Return the model after `count` more grades in stratum k."""
        column, left = self.covariance[:, k], self.left.copy()
        left[k] -= count
        gain = np.outer(column, column) / (column[k] + self.noise[k] / count)
        return _VarianceModel(self.covariance - gain, self.noise, left)

    def gains(self, counts: np.ndarray) -> np.ndarray:
        """Return the reduction of the variance per grade for `counts` grades in one stratum; -inf where that is 0."""
        left = self.left - np.diag(counts)  # one row for each stratum that is graded
        # einsum: a matrix product would start BLAS threads, which cost more than they save.
        product = np.einsum("kh,hl->kl", left, self.covariance)
        diagonal, n_grades = np.diag(product), np.maximum(counts, 1)
        reduction = diagonal**2 / (np.diag(self.covariance) + self.noise / n_grades)
        after = (product * left).sum(axis=1) - reduction + (left * self.noise).sum(axis=1)
        return np.where(counts > 0, (self.variance - after) / n_grades, -np.inf)

    def spend(self, fixed: np.ndarray, limit: np.ndarray, count: int) -> np.ndarray:
        """Allocate `count` grades in addition to the `fixed` ones; `limit` limits the sum of both."""
        model, allocated = self, np.zeros(len(fixed), int)
        for k in np.flatnonzero(fixed).tolist():
            model = model.after(k, int(fixed[k]))
        while count > 0 and (room := limit - fixed - allocated).any():
            steps = np.minimum(room, max(count // STEPS, 1))
            best = int(np.argmax(model.gains(steps)))
            model, count = model.after(best, int(steps[best])), count - int(steps[best])
            allocated[best] += steps[best]
        return allocated
