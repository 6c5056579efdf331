"""Votes along a decision tree: Dirichlet-multinomial likelihood, and coverage of its intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, dirichlet_multinomial

from galscan.models import votes

GROUPS = [[0, 1, 2], [3, 4]]


def loss(z, fractions, count):
    arrays = (np.atleast_2d(np.asarray(a, float)) for a in (z, fractions, count))
    return float(votes.negative_log_likelihood(*(torch.tensor(a) for a in arrays), GROUPS))


@given(
    st.lists(st.floats(-3, 3), min_size=5, max_size=5),
    st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any),
    st.lists(st.integers(0, 20), min_size=2, max_size=2).filter(any),
)
def test_it_is_scipys(z, first, second):
    counts = [np.array(first), np.array(second)]
    fractions = np.concatenate([c / c.sum() for c in counts])
    of = [dirichlet_multinomial.logpmf(c, np.exp(np.array(z)[g]), c.sum()) for c, g in zip(counts, GROUPS, strict=True)]
    assert loss(z, fractions, [c.sum() for c in counts]) == pytest.approx(-np.mean(of), abs=1e-6)


def test_a_question_that_was_not_asked_teaches_nothing():
    z = torch.zeros(2, 5, requires_grad=True)
    fractions = torch.tensor([[0.5, 0.5, 0.0, float("nan"), float("nan")], [0.2, 0.2, 0.6, 1.0, 0.0]])
    votes.negative_log_likelihood(z, fractions, torch.tensor([[10.0, float("nan")], [0.0, 8.0]]), GROUPS).backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad[0, :3] != 0).any() and not z.grad[0, 3:].any()
    assert not z.grad[1, :3].any() and (z.grad[1, 3:] != 0).all()
    nothing = votes.negative_log_likelihood(z, torch.full((2, 5), float("nan")), torch.zeros(2, 2), GROUPS)
    assert nothing == 0


def test_forty_votes_say_more_than_four():
    """The best z for the same fraction is the same, and more votes make it worth more to be near it."""
    near, far = np.log([3, 1, 1, 9, 3.0]), np.log([1, 1, 3, 3, 9.0])
    fractions = [0.6, 0.2, 0.2, 0.75, 0.25]
    few, many = (loss(far, fractions, [n, n]) - loss(near, fractions, [n, n]) for n in (4, 40))
    assert many > few > 0


def test_members_that_disagree_are_worth_fewer_votes():
    agree = np.log(np.array([[[8, 1, 1, 5, 5.0], [8, 1, 1, 5, 5.0]]]))
    fractions, worth = votes.expected(agree, GROUPS)
    np.testing.assert_allclose(fractions[0], [0.8, 0.1, 0.1, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(worth[0], [10, 10], rtol=1e-5)
    torn = np.log(np.array([[[8, 1, 1, 9, 1.0], [1, 8, 1, 1, 9.0]]]))
    fractions, less = votes.expected(torn, GROUPS)
    np.testing.assert_allclose(fractions[0, 3:], [0.5, 0.5])
    assert (less < 3).all() and (less > 0).all()


@given(st.floats(0.02, 0.98), st.floats(0.5, 100), st.integers(1, 60))
def test_intervals_of_votes_hold_at_least_what_they_say(fraction, worth, count):
    arrays = (np.array([x]) for x in (fraction, worth, count))
    low, high = votes.vote_interval(*arrays)
    law = betabinom(count, fraction * worth, (1 - fraction) * worth)
    inside = law.cdf(round(high[0] * count)) - law.cdf(round(low[0] * count) - 1)
    assert 0 <= low[0] <= high[0] <= 1 and inside >= 0.9 - 1e-9
    tails = law.cdf(round(low[0] * count) - 1), 1 - law.cdf(round(high[0] * count))
    assert max(tails) <= 0.05 + 1e-9


def test_intervals_of_fractions_are_those_of_the_beta_distribution():
    rng = np.random.default_rng(0)
    drawn = rng.beta(0.3 * 12, 0.7 * 12, 20_000)
    low, high = votes.interval(np.array([0.3]), np.array([12.0]))
    assert ((drawn >= low) & (drawn <= high)).mean() == pytest.approx(0.9, abs=0.01)
