from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.stats import density_ratio
from galscan.stats.density_ratio import Curves, Evidence


def binned(scores):
    counts, edges = np.histogram(scores, np.arange(-9, 12, 0.05))
    return 0.5 * (edges[1:] + edges[:-1])[counts > 0], counts[counts > 0]


def middles(scores):
    return np.floor(scores / 0.05) * 0.05 + 0.025


def evidence(rng, negatives=2000, targets=60, survey=50_000, prevalence=0.01, distance=3.0, shift=0.0):
    truth = rng.random(survey) < prevalence
    return Evidence(
        middles(rng.normal(0, 1, negatives)), middles(rng.normal(distance, 1, targets)),
        *binned(rng.normal(distance * truth, 1) + shift * ~truth),
    )  # fmt: skip


def parameters(data, rng, count=5):
    return np.column_stack([0.3 * rng.standard_normal((count, data.size - 1)), rng.normal(0.5, 0.5, count)])


@pytest.mark.parametrize("surveyed", [True, False])
def test_gradient_is_that_of_the_density(surveyed):
    rng = np.random.default_rng(0)
    known = evidence(rng) if surveyed else Evidence(rng.normal(0, 1, 300), rng.normal(2, 1, 20))
    p, prior_scale = parameters(known, rng), np.full(5, 0.7)
    exact = known._density(p, prior_scale, True)[1]
    for k, step in enumerate(1e-5 * np.eye(known.size)):
        slope = (known.log_density(p + step, prior_scale) - known.log_density(p - step, prior_scale)) / 2e-5
        np.testing.assert_allclose(slope, exact[:, k], rtol=1e-4, atol=1e-2)


def test_draws_recover_the_log_odds_of_a_simulated_survey():
    curves, _ = evidence(np.random.default_rng(1), 100_000, 3000, 200_000).draw(300, np.random.default_rng(0))
    at = np.array([1.5, 2.5, 3.5])
    truth = 3.0 * at - 4.5 + np.log(0.01 / 0.99)
    drawn = curves(at)
    assert (np.abs(drawn.mean(axis=0) - truth) < 4 * drawn.std(axis=0)).all() and drawn.std(axis=0).max() < 0.4


def test_mode_without_a_survey_is_the_log_ratio():
    rng = np.random.default_rng(2)
    known = Evidence(rng.normal(0, 1, 60_000), rng.normal(2, 1, 20_000))
    curve = known.curves(known.mode(1.0)[0][None], start=0)
    at = np.array([-0.5, 1.0, 2.5])
    np.testing.assert_allclose(curve(at)[0], 2 * at - 2, atol=0.15)


def test_draws_agree_with_long_differential_evolution(monkeypatch):
    monkeypatch.setattr(density_ratio, "PRIOR_SCALES", (1.0,))
    known, rng = evidence(np.random.default_rng(3)), np.random.default_rng(1)
    short, _ = known.draw(1000, np.random.default_rng(0))
    mode, spread = known.mode(1.0)
    p = mode + np.einsum("rj,ij->ri", rng.standard_normal((1000, known.size)), spread)
    for _ in range(10):
        p = known._differential_evolution(p, np.ones(1000), rng)
    at = np.array([1.5, 3.0, 4.0])
    limits, reference = (np.quantile(curves(at), [0.025, 0.5, 0.975], axis=0) for curves in (short, known.curves(p)))
    assert (np.abs(limits - reference) < 0.2 * (reference[2] - reference[0])).all()


def test_prior_scale_is_small_for_a_straight_ratio_and_large_for_a_bent_one():
    rng = np.random.default_rng(4)
    straight = evidence(rng, 50_000, 2000, 100_000).draw(50, rng)[1]
    truth = rng.random(100_000) < 0.01
    uniform = lambda high: middles(np.where(high, rng.uniform(0, 6, len(high)), rng.uniform(-6, 0.5, len(high))))  # noqa: E731
    bent = Evidence(uniform(np.zeros(50_000, bool)), uniform(np.ones(2000, bool)), *binned(uniform(truth)))
    bent = bent.draw(50, rng)[1]
    assert straight.sum() == pytest.approx(1) and bent.sum() == pytest.approx(1)
    assert straight[2] < 0.4 and bent[0] < 0.01


def test_departure_of_negatives_is_detected_and_chance_is_not():
    values = [evidence(np.random.default_rng(seed)).departure().p_value for seed in range(25)]
    assert np.mean(np.array(values) < 0.1) < 0.25 and np.median(values) > 0.25
    far = evidence(np.random.default_rng(0), shift=0.3).departure()
    assert far.p_value < 1e-4 and far.negative_weight < 0.5


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 30), st.integers(1, 200),
    st.sampled_from([1e-6, 0.01, 1.0, 30.0]), st.booleans(),
)  # fmt: skip
def test_curves_rise_and_are_finite_for_any_data(seed, targets, negatives, survey, scale, constant):
    rng = np.random.default_rng(seed)
    drawn = [np.full(n, scale) if constant else scale * rng.normal(0, 1, n) for n in (negatives, targets, survey)]
    known = Evidence(*drawn, np.ones(survey))
    curves, weights = known.draw(40, rng)
    values = curves(np.sort(np.concatenate([*drawn, [-50, 50]])))
    assert np.isfinite(values).all() and (np.diff(values) >= -1e-9).all() and weights.sum() == pytest.approx(1)


def test_curves_are_straight_then_flat():
    curves = Curves(np.array([0.0, 1.0, 3.0]), np.array([[0.0, 1.0, 5.0]]), np.array([np.inf]))
    np.testing.assert_allclose(curves(np.array([-1.0, 0.5, 2.0, 4.0]))[0], [-1, 0.5, 3, 7])
    flat = Curves(curves.knots, curves.values, np.array([2.0]))
    np.testing.assert_allclose(flat(np.array([50.0, -9.0]))[0], [2, -9], atol=1e-4)
