"""Votes along a decision tree: what volunteers would say of a galaxy, and how sure that is.

A network gives one number z for each answer; exp(z) are the parameters of a Dirichlet distribution over the answers of
a question, and votes are drawn from it: the Dirichlet-multinomial likelihood of Walmsley et al. 2020 (MNRAS 491, 1554)
and 2022 (MNRAS 509, 3966). Three of four votes and thirty of forty are the same fraction and not the same evidence,
which a loss of fractions cannot know; and a question that nobody was asked teaches nothing.

What is expected of a question is the softmax of its z, and the sum of exp(z) says how many votes that is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import betaincinv, betaln, gammaln

from galscan.core.errors import InputError
from galscan.labels.schema import Schema

Groups = Sequence[Sequence[int]]
"""Columns of the answers of each question."""

LIMIT = 8.0  # of |z|: from a hopeless answer to one that three thousand volunteers agree on


def negative_log_likelihood(
    z: torch.Tensor, fractions: torch.Tensor, votes: torch.Tensor, groups: Groups
) -> torch.Tensor:
    """Return the mean over answered questions of -ln p(votes), the Dirichlet-multinomial.

    Parameters
    ----------
    z : Tensor, shape (n, answers)
    fractions : Tensor, shape (n, answers)
        Of the votes on each question; NaN = not asked.
    votes : Tensor, shape (n, questions)
        On each question; need not be whole. None, and the question teaches nothing.
    """
    total, asked = z.new_zeros(()), z.new_zeros(())
    for k, columns in enumerate(groups):
        share, count = fractions[:, columns], votes[:, k]
        known = share.isfinite().all(1) & (count > 0)
        n = torch.where(known, count, 1.0)
        of_each = torch.nan_to_num(share) * n[:, None] * known[:, None]
        alpha = z[:, columns].clamp(-LIMIT, LIMIT).exp()
        whole = alpha.sum(1)
        log_p = torch.lgamma(n + 1) + torch.lgamma(whole) - torch.lgamma(n + whole)
        log_p = log_p + (torch.lgamma(of_each + alpha) - torch.lgamma(alpha) - torch.lgamma(of_each + 1)).sum(1)
        total = total - (log_p * known).sum()
        asked = asked + known.sum()
    return total / asked.clamp(min=1)


def shares(z: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Return what a network expects of each answer, (n, answers) in 0..1: by question where there are `groups`."""
    if not groups:
        return z.sigmoid()
    out = torch.empty_like(z)
    for columns in groups:
        out[:, columns] = z[:, columns].clamp(-LIMIT, LIMIT).softmax(1)
    return out


def groups_of(answers: Sequence[str], schema: Schema) -> list[list[int]]:
    """Return where the answers of each question are among `answers`; nothing where they are no votes.

    Raises
    ------
    InputError
        If an answer of a question is missing.
    """
    asked = [group for group in schema.groups if set(group) & set(answers)]
    if missing := [name for group in asked for name in group if name not in answers]:
        raise InputError(f"'{missing[0]}' is missing among the answers of its question")
    return [[list(answers).index(name) for name in group] for group in asked]


def expected(z: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Return what some networks together expect: fractions, and how many votes they are worth.

    The mixture of the members' Dirichlets is told by the Dirichlet with its mean and, summed over a question's answers,
    its variance: where members disagree, it is worth fewer votes.

    Parameters
    ----------
    z : ndarray, shape (n, members, answers)

    Returns
    -------
    fractions : ndarray, shape (n, answers)
    concentration : ndarray, shape (n, questions)
    """
    alpha = np.exp(np.clip(z, -LIMIT, LIMIT))
    fractions = np.full((len(z), z.shape[2]), np.nan, np.float32)
    concentration = np.empty((len(z), len(groups)), np.float32)
    for k, columns in enumerate(groups):
        whole = alpha[:, :, columns].sum(2)
        each = alpha[:, :, columns] / whole[:, :, None]
        mean = each.mean(1)
        variance = (each * (1 - each) / (1 + whole[:, :, None])).mean(1) + each.var(1)
        fractions[:, columns] = mean
        concentration[:, k] = (mean * (1 - mean)).sum(1) / np.maximum(variance.sum(1), 1e-12) - 1
    return fractions, np.maximum(concentration, 1e-3)


def interval(fraction: np.ndarray, concentration: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of the credible interval of an answer's fraction: quantiles of its beta distribution."""
    fraction = np.clip(fraction, 1e-6, 1 - 1e-6)
    a, b = fraction * concentration, (1 - fraction) * concentration
    return betaincinv(a, b, 0.5 * (1 - level)), betaincinv(a, b, 0.5 * (1 + level))


def vote_interval(
    fraction: np.ndarray, concentration: np.ndarray, votes: np.ndarray, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits within which the fraction of `votes` volunteers will be: those of the beta-binomial.

    The smallest that hold at least `level`, as equally divided between both tails as whole votes allow.

    Parameters
    ----------
    fraction, concentration, votes : ndarray, shape (n,)
    """
    low, high = np.empty(len(fraction)), np.empty(len(fraction))
    tail = 0.5 * (1 - level)
    for k, (p, s, count) in enumerate(zip(np.clip(fraction, 1e-6, 1 - 1e-6), concentration, votes, strict=True)):
        n = max(round(float(count)), 1)
        of = np.arange(n + 1)
        log_p = gammaln(n + 1) - gammaln(of + 1) - gammaln(n - of + 1)
        below = np.exp(log_p + betaln(of + p * s, n - of + (1 - p) * s) - betaln(p * s, (1 - p) * s)).cumsum()
        low[k], high[k] = np.minimum(np.searchsorted(below, [tail, 1 - tail]), n) / n
    return low, high
