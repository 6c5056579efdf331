from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import ks_2samp

from galscan.stats import calibration, crossfit, purity
from galscan.stats.histogram import ScoreHistogram

MEMBERS = 3


def simulated(truth: np.ndarray, rng: np.random.Generator, noise: float = 0.9) -> np.ndarray:
    """Return scores of networks, (MEMBERS, n): a signal that they share, and noise that is larger where it is high."""
    signal = rng.normal(size=len(truth)) + 2.5 * truth
    offsets, slopes = np.array([-0.2, 0.1, 0.1]), np.array([0.95, 1.0, 1.05])
    scale = noise * (1 + 0.3 * np.tanh(signal - 1))
    return slopes[:, None] * signal + offsets[:, None] + scale * rng.normal(size=(MEMBERS, len(truth)))


def out_of_fold(scores: np.ndarray) -> np.ndarray:
    return scores[np.arange(scores.shape[1]) % MEMBERS, np.arange(scores.shape[1])]


def test_corrected_scores_are_distributed_as_ensemble_scores():
    rng = np.random.default_rng(1)
    truth = np.repeat([1.0, 0.0], [3000, 9000])
    survey = (rng.random(20_000) < 0.01).astype(float)
    own = out_of_fold(simulated(truth, rng))
    corrected, info = crossfit.committee_scores(own, truth, simulated(survey, rng))
    fresh = simulated(truth, rng).mean(0)
    assert info["objects"] == 20_000 and set(info["factors"]) == {"targets", "negatives"}
    for value in (1, 0):
        of_kind = truth == value
        assert ks_2samp(corrected[of_kind], fresh[of_kind]).pvalue > 0.01
        assert corrected[of_kind].mean() == pytest.approx(own[of_kind].mean(), abs=0.03)
        assert corrected[of_kind].std() == pytest.approx(fresh[of_kind].std(), rel=0.04)
    positive = truth == 1
    assert ks_2samp(own[positive], fresh[positive]).pvalue < 0.01
    slope, expected, uncorrected = (calibration.fit(s, truth).slope for s in (corrected, fresh, own))
    assert slope == pytest.approx(expected, rel=0.1) and uncorrected < 0.85 * expected


def test_intervals_of_purity_contain_the_truth():
    inside = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth, survey = np.repeat([1, 0], [60, 600]), (rng.random(20_000) < 0.01).astype(int)
        scores = simulated(survey, rng)
        corrected, info = crossfit.committee_scores(out_of_fold(simulated(truth, rng)), truth, scores[:, :8000])
        calibrating = crossfit.calibration_set(corrected, truth, info["factors"])
        order, histogram = np.argsort(-scores.mean(0))[:200], ScoreHistogram.of(scores.mean(0))
        fitted, top = calibration.fit(*calibrating), scores.mean(0)[order]
        found = purity.estimate(fitted, histogram, top, bootstrap=500, seed=seed)
        inside += [found.purity_lo[k - 1] <= survey[order[:k]].mean() <= found.purity_hi[k - 1] for k in (50, 200)]
    assert np.mean(inside) > 0.85


def test_ambiguous_objects_are_a_class_of_their_own():
    rng = np.random.default_rng(2)
    targets = np.repeat([1.0, 0.0, np.nan], 200)
    own = rng.normal(np.repeat([2.0, -2.0, 0.0], 200), np.repeat([1.0, 2.0, 3.0], 200))
    factors = crossfit.committee_scores(own, targets, rng.normal(0, 1, (MEMBERS, 1000)))[1]["factors"]
    assert factors["targets"] < factors["negatives"] < factors["ambiguous"] < 1


def test_corrected_scores_count_by_their_effective_number():
    rng = np.random.default_rng(5)
    targets = np.repeat([1.0, 0.0, np.nan], [50, 600, 200])
    scores = rng.normal(np.nan_to_num(targets, nan=0.5), 1)
    found, truth, unclear = crossfit.calibration_set(
        scores, targets, {"targets": 0.8, "negatives": 0.9, "ambiguous": 0.7}
    )
    assert truth.sum() == 32 and unclear.sum() / (truth == 0).sum() == pytest.approx(0.25, abs=0.01)
    assert len(truth) - 32 == pytest.approx(600 * 0.81 + 200 * 0.49, abs=1)
    for kept, all_ in ((truth == 1, targets == 1), (unclear, np.isnan(targets))):
        assert found[kept].mean() == pytest.approx(scores[all_].mean(), abs=0.03)
        assert found[kept].std() == pytest.approx(scores[all_].std(), rel=0.05)
    same, truth, unclear = crossfit.calibration_set(scores, targets, None)
    np.testing.assert_array_equal(same, scores)
    np.testing.assert_array_equal(truth, targets == 1)
    np.testing.assert_array_equal(unclear, np.isnan(targets))
    whole, *_ = crossfit.calibration_set(scores, targets, dict.fromkeys(crossfit.NAMES.values(), 1.0))
    np.testing.assert_allclose(np.sort(whole), np.sort(scores))


def test_scatter_depends_on_the_score():
    rng = np.random.default_rng(3)
    true = rng.normal(size=20_000)
    scores = true + np.where(true > 1, 1.5, 0.5) * rng.normal(size=(MEMBERS, len(true)))
    scatter = crossfit.scatter_of(scores)
    assert (np.diff(scatter.score) > 0).all() and scatter.members == MEMBERS and scatter.objects == 20_000
    # The mean of the networks is noisy, too: by it the variance at 0 would be a mixture of both.
    variances = np.interp([-1.0, 0.0, 2.0], scatter.score, scatter.variance)
    np.testing.assert_allclose(variances, [0.25, 0.25, 2.25], rtol=0.3)


def test_scores_are_not_corrected_with_too_few_unlabelled_objects():
    rng = np.random.default_rng(4)
    own, truth = rng.normal(size=50), np.arange(50) % 2.0
    for count in (0, crossfit.LEAST - 1):
        corrected, info = crossfit.committee_scores(own, truth, rng.normal(size=(MEMBERS, count)))
        np.testing.assert_array_equal(corrected, own)
        assert info == {"objects": count, "factors": None}
    assert "may be underestimated" in crossfit.describe({"folds": 3, **info})
    assert crossfit.describe(None) == ""


@settings(max_examples=30)
@given(
    arrays.arrays(float, st.integers(1, 40), elements=st.floats(-20, 20)), st.floats(0, 30), st.integers(2, 6)
)  # fmt: skip
def test_corrected_scores_keep_their_order_and_scatter_no_less_than_independent_networks_would(own, noise, members):
    scatter = crossfit.Scatter(np.array([-5.0, 5.0]), np.array([noise, noise]), members, 500)
    corrected, factor = crossfit.correct(own, scatter)
    assert np.isfinite(corrected).all() and np.sqrt(1 / members) - 1e-6 <= factor <= 1 + 1e-6
    assert (np.diff(corrected[np.argsort(own, kind="stable")]) >= -1e-9).all()
