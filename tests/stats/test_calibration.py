from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from galscan.core.errors import InputError
from galscan.stats.calibration import Calibration, fit, fit_sigmoid


@st.composite
def labelled_scores(draw):
    count = draw(st.integers(2, 60))
    scale = 10.0 ** draw(st.integers(-6, 5))
    scores = np.array(draw(st.lists(st.floats(-40, 40), min_size=count, max_size=count))) * scale
    targets = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    targets[0], targets[1] = True, False
    return scores, targets


@settings(deadline=None, max_examples=40)
@given(labelled_scores())
def test_probability_is_monotone_bounded_and_centred(data):
    scores, targets = data
    calibration = fit(scores, targets)
    assert calibration.slope >= 0
    grid = np.concatenate([np.linspace(scores.min() - 1, scores.max() + 1, 200), [-1e300, 1e300]])
    p = calibration.probability(np.sort(grid))
    assert np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()
    assert (np.diff(p) >= 0).all()
    assert calibration.probability(scores, targets.mean()).mean() == pytest.approx(targets.mean(), abs=1 / len(targets))
    # Platt's smoothing moves the prevalence by about one object a class at most.
    assert abs(calibration.prevalence - targets.mean()) <= 1 / len(targets)


def test_ratio_of_two_gaussians_is_recovered():
    rng = np.random.default_rng(3)
    targets = rng.random(40_000) < 0.2
    scores = rng.normal(np.where(targets, 2.0, 0.0), 1.0)  # ln ratio = 2 s - 2
    calibration = fit(scores, targets)
    assert calibration.slope == pytest.approx(2.0, rel=0.05)
    assert calibration.intercept == pytest.approx(-2.0 + logit(0.2), abs=0.1)
    grid = np.linspace(-2, 4, 9)
    exact = expit(2 * grid - 2 + logit(0.01))
    assert calibration.probability(grid, prevalence=0.01) == pytest.approx(exact, rel=0.2)


def test_prior_shift_limits():
    calibration = fit(np.array([0.0, 1, 2, 3]), np.array([0, 0, 1, 1]))
    grid = np.linspace(-5, 5, 11)
    assert (calibration.probability(grid, prevalence=0.0) == 0).all()
    assert (calibration.probability(grid, prevalence=1.0) == 1).all()
    assert calibration.probability(grid, calibration.prevalence) == pytest.approx(calibration.probability(grid))
    with pytest.raises(InputError, match=r"1\.5"):
        calibration.probability(grid, prevalence=1.5)


def test_separated_classes_stay_finite():
    calibration = fit(np.array([-30.0] * 50 + [30.0] * 5), np.array([0] * 50 + [1] * 5))
    assert np.isfinite([calibration.slope, calibration.intercept]).all()
    assert 0.8 < calibration.probability(np.array([30.0]))[0] < 0.999


def test_reversed_scores_give_slope_zero_not_reversed_ranks():
    calibration = fit(np.array([3.0, 2, 1, 0]), np.array([0, 0, 1, 1]))
    assert calibration.slope == 0
    assert np.ptp(calibration.probability(np.array([-9.0, 9.0]))) == 0


@pytest.mark.parametrize("levels_off", [False, True])
def test_curve_is_used_where_it_predicts_better_than_the_line(levels_off):
    """One in five non-targets scores like a target, or none: the first makes the ratio level off."""
    rng = np.random.default_rng(1)

    def draw(count):
        targets = (rng.random(count) < 0.2).astype(float)
        alike = (rng.random(count) < 0.2) & levels_off
        return rng.normal(np.where(alike | (targets == 1), 2.0, -2.0), 1.0), targets

    calibration = fit(*draw(4000))
    scores, targets = draw(40_000)
    curve = calibration.log_ratio(scores) + logit(calibration.prevalence)
    line = calibration.slope * scores + calibration.intercept
    loss, line_loss = (np.logaddexp(0, np.where(targets == 1, -odds, odds)).mean() for odds in (curve, line))
    if levels_off:
        assert loss < line_loss - 0.005 and len(calibration.curve.knots) > 2
        assert np.exp(calibration.log_ratio(np.array([4.0])))[0] == pytest.approx(5, rel=0.2)
    else:
        assert loss < line_loss + 0.001


def test_calibration_survives_json():
    calibration = fit(np.array([0.1, 1, 2, 3], dtype=np.float32), np.array([0, 1, 0, 1]))
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    assert again.to_dict() == calibration.to_dict()
    assert (again.log_ratio(np.arange(4.0)) == calibration.log_ratio(np.arange(4.0))).all()
    with pytest.raises(InputError, match="calibration"):
        Calibration.from_dict({"slope": 1})


def test_ambiguous_fraction_depends_on_the_score():
    rng = np.random.default_rng(3)
    kinds = np.repeat([0, 1, 2], [20_000, 50, 2_000])  # negative, target, ambiguous
    scores = rng.normal(size=len(kinds)) + np.array([0.0, 3.0, 1.5])[kinds]
    calibration = fit(scores, kinds == 1, kinds == 2)
    at = np.array([-1.0, 0.0, 1.0, 2.0])
    ratio = 0.1 * np.exp(1.5 * at - 1.5**2 / 2)  # of two normal densities
    drawn = calibration.ambiguity(at, 60, rng)
    assert drawn.shape == (60, 4)
    np.testing.assert_allclose(drawn.mean(0), ratio / (1 + ratio), rtol=0.15)
    assert (drawn.std(0) > 0).all()
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert (again.ambiguous == calibration.ambiguous).all()
    assert fit(scores, kinds == 1).ambiguity(at, 5, rng) is None
    none = fit(scores, kinds == 1, np.zeros(len(kinds), bool)).ambiguity(at, 20, rng)
    assert (none < 1e-3).all()
    both = calibration.to_dict() | {"ambiguous": [1] * len(kinds)}
    with pytest.raises(InputError, match="damaged"):
        Calibration.from_dict(both)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([0.0, 1.0], [0, 0], "0 positives"), ([0.0, 1.0], [1, 1], "0 negatives"), ([0.0, np.nan], [0, 1], "finite"),
        ([0.0, 1.0], [0, np.nan], "0 or 1"), ([0.0, 1.0, 2.0], [0, 1], "3 scores"), ([], [], "0 positives"),
    ],
)  # fmt: skip
def test_unusable_calibration_sets_are_refused(scores, targets, message):
    with pytest.raises(InputError, match=message):
        fit(np.array(scores), np.array(targets))


@pytest.mark.parametrize(("positives", "negatives"), [(3, 10), (1, 1), (40, 800)])
def test_targets_of_platt_are_smoothed_by_one_of_each(positives, negatives):
    """(n+ + 1) / (n+ + 2) and 1 / (n- + 2): where scores carry no information, only their mean remains."""
    counts = np.array([float(positives)]), np.array([float(negatives)])
    slope, intercept, prevalence = fit_sigmoid(np.zeros(1), *counts)
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    wanted = (positives * high + negatives * low) / (positives + negatives)
    assert slope == 0 and prevalence == pytest.approx(wanted) and expit(intercept) == pytest.approx(wanted)
    # Two scores: the sigmoid goes through both smoothed targets.
    slope, intercept, _ = fit_sigmoid(np.array([0.0, 1.0]), np.array([0.0, positives]), np.array([negatives, 0.0]))
    assert expit(intercept) == pytest.approx(low, rel=1e-4)
    assert expit(intercept + slope) == pytest.approx(high, rel=1e-4)
