"""Volunteer votes along a decision tree: Dirichlet-multinomial likelihood, expected vote fractions, intervals.

A network gives one number z for each answer; exp(z) are the parameters of a Dirichlet distribution over the answers of
a question, and votes follow the Dirichlet-multinomial likelihood of Walmsley et al. 2020 (MNRAS 491, 1554) and 2022
(MNRAS 509, 3966). Three of four votes and thirty of forty are the same fraction but different evidence, which a loss
on fractions ignores; a question without votes contributes nothing to the loss.

The expected fractions of a question are the softmax of its z; the sum of exp(z) is their concentration, the
equivalent number of votes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import betaincinv, betaln, gammaln

from galscan.core.errors import InputError
from galscan.labels.schema import Schema

Groups = Sequence[Sequence[int]]
"""Column indices of the answers of each question."""

LIMIT = 8.0  # of |z|: from a negligible answer to one that is worth three thousand unanimous votes


def negative_log_likelihood(
    z: torch.Tensor, fractions: torch.Tensor, votes: torch.Tensor, groups: Groups
) -> torch.Tensor:
    """Return the mean over answered questions of -ln p(votes), the Dirichlet-multinomial.

    Parameters
    ----------
    z : Tensor, shape (n, answers)
    fractions : Tensor, shape (n, answers)
        Vote fractions of each question; NaN = not asked.
    votes : Tensor, shape (n, questions)
        Votes on each question; need not be integers. A question with 0 votes is ignored.
    """
    total, answered = z.new_zeros(()), z.new_zeros(())
    for k, columns in enumerate(groups):
        fraction, count = fractions[:, columns], votes[:, k]
        known = fraction.isfinite().all(1) & (count > 0)
        n = torch.where(known, count, 1.0)
        answer_votes = torch.nan_to_num(fraction) * n[:, None] * known[:, None]
        alpha = z[:, columns].clamp(-LIMIT, LIMIT).exp()
        concentration = alpha.sum(1)
        log_p = torch.lgamma(n + 1) + torch.lgamma(concentration) - torch.lgamma(n + concentration)
        log_p = log_p + (torch.lgamma(answer_votes + alpha) - torch.lgamma(alpha) - torch.lgamma(answer_votes + 1)).sum(
            1
        )
        total = total - (log_p * known).sum()
        answered = answered + known.sum()
    return total / answered.clamp(min=1)


def expected_fractions(z: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Return the expected fraction of each answer, (n, answers) in 0..1: by question where there are `groups`."""
    if not groups:
        return z.sigmoid()
    out = torch.empty_like(z)
    for columns in groups:
        out[:, columns] = z[:, columns].clamp(-LIMIT, LIMIT).softmax(1)
    return out


def groups_of(answers: Sequence[str], schema: Schema) -> list[list[int]]:
    """Return the indices within `answers` of the answers of each question; empty if the answers are not votes.

    Raises `InputError` if an answer of a question is missing.
    """
    questions = [group for group in schema.groups if set(group) & set(answers)]
    if missing := [name for group in questions for name in group if name not in answers]:
        raise InputError(f"'{missing[0]}' is missing among the answers of its question")
    return [[list(answers).index(name) for name in group] for group in questions]


def expected(z: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Return the fractions that several networks expect together, and their concentration.

    The mixture of the members' Dirichlet distributions is approximated by the Dirichlet with its mean and, summed over
    a question's answers, its variance: where members disagree, the concentration is lower.

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
        member_concentration = alpha[:, :, columns].sum(2)
        member_fractions = alpha[:, :, columns] / member_concentration[:, :, None]
        mean = member_fractions.mean(1)
        variance = (member_fractions * (1 - member_fractions) / (1 + member_concentration[:, :, None])).mean(
            1
        ) + member_fractions.var(1)
        fractions[:, columns] = mean
        concentration[:, k] = (mean * (1 - mean)).sum(1) / np.maximum(variance.sum(1), 1e-12) - 1
    return fractions, np.maximum(concentration, 1e-3)


def interval(fraction: np.ndarray, concentration: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of the credible interval of an answer's fraction: quantiles of its Beta distribution."""
    fraction = np.clip(fraction, 1e-6, 1 - 1e-6)
    a, b = fraction * concentration, (1 - fraction) * concentration
    return betaincinv(a, b, 0.5 * (1 - level)), betaincinv(a, b, 0.5 * (1 + level))


def vote_interval(
    fraction: np.ndarray, concentration: np.ndarray, votes: np.ndarray, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of the fraction that `votes` volunteers will give: quantiles of the beta-binomial
    distribution.

    It is the smallest that holds at least `level`, with tails as equal as integer votes allow.

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
