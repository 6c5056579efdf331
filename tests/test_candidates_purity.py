from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.candidates.purity import Purity, ScoreHistogram, estimate
from galscan.classify.calibrate import fit
from galscan.errors import InputError


def _calibration(rng, positives=40, negatives=2000, distance=3.0):
    scores = np.concatenate([rng.normal(distance, 1, positives), rng.normal(0, 1, negatives)])
    return fit(scores, np.repeat([1, 0], [positives, negatives]))


def _survey(rng, prevalence, count=20_000, distance=3.0, keep=1000):
    truth = rng.random(count) < prevalence
    scores = rng.normal(np.where(truth, distance, 0.0), 1.0)
    histogram = ScoreHistogram.empty()
    histogram.add(scores)
    best = np.argsort(-scores)[:keep]
    return histogram, scores[best], truth[best], truth


def _covered(runs, prevalence, *, positives=40, negatives=2000, rank=100):
    """Return the fraction of simulated surveys whose true purity and completeness are inside the interval at `rank`."""
    pure = complete = 0
    for seed in range(runs):
        rng = np.random.default_rng(1000 + seed)
        histogram, top, truth, everything = _survey(rng, prevalence)
        result = estimate(_calibration(rng, positives, negatives), histogram, top, seed=seed)
        hits = truth[:rank].sum()
        pure += result.purity_lo[rank - 1] - 1e-6 <= hits / rank <= result.purity_hi[rank - 1] + 1e-6
        found = hits / everything.sum()
        complete += result.completeness_lo[rank - 1] - 1e-6 <= found <= result.completeness_hi[rank - 1] + 1e-6
    return pure / runs, complete / runs


def test_interval_covers_the_truth_in_a_few_surveys():
    pure, complete = _covered(8, 0.01)
    assert pure >= 0.85 and complete >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.002, 0.01, 0.05])
@pytest.mark.parametrize(("positives", "negatives"), [(40, 2000), (13, 207)])
def test_interval_covers_the_truth(prevalence, positives, negatives):
    pure, complete = _covered(60, prevalence, positives=positives, negatives=negatives)
    assert pure >= 0.87 and complete >= 0.87


def test_with_plenty_of_calibration_the_point_is_right_and_the_interval_narrow():
    rng = np.random.default_rng(0)
    histogram, top, truth, everything = _survey(rng, 0.02, count=50_000)
    result = estimate(_calibration(rng, 3000, 100_000), histogram, top, seed=1)
    true = np.cumsum(truth) / np.arange(1, 1001)
    assert result.prevalence == pytest.approx(everything.mean(), rel=0.1)
    assert abs(result.purity[99:] - true[99:]).max() < 0.08
    assert abs(result.completeness[499] - truth[:500].sum() / everything.sum()) < 0.05
    assert result.purity_hi[499] - result.purity_lo[499] < 0.3
    assert not any("Kolmogorov" in note for note in result.notes)


def test_few_negatives_forbid_a_high_lower_bound():
    """Rule of three: 207 negatives, none as high, still allow 3/207 of 20,000 false positives."""
    rng = np.random.default_rng(2)
    histogram, top, *_ = _survey(rng, 0.01, distance=8.0)
    result = estimate(_calibration(rng, 40, 207, distance=8.0), histogram, top, seed=1)
    assert result.purity[99] > 0.8
    assert (result.purity_lo <= np.clip(1 - 3 / 207 * 20_000 * 0.98 / np.arange(1, 1001), 0, 1)).all()
    assert any("cannot exclude" in note for note in result.notes)
    many = estimate(_calibration(rng, 40, 200_000, distance=8.0), histogram, top, seed=1)
    assert many.purity_lo[99] > 0.9


def test_a_survey_without_targets_claims_nothing():
    rng = np.random.default_rng(5)
    histogram, top, *_ = _survey(rng, 0.0)
    result = estimate(_calibration(rng), histogram, top, seed=1)
    assert result.prevalence_lo == 0 and result.prevalence_hi > 0
    assert result.purity_lo.max() == 0
    assert any("not distinguishable from zero" in note for note in result.notes)


def test_prevalence_of_exactly_zero_has_no_completeness():
    rng = np.random.default_rng(5)
    calibration = _calibration(rng, 200, 2000)
    histogram = ScoreHistogram.empty()
    scores = np.sort(rng.normal(-1.0, 0.5, 5000))[::-1]  # lower than any negative: the likelihood falls from zero on
    histogram.add(scores)
    result = estimate(calibration, histogram, scores[:50], seed=1)
    assert result.prevalence == 0 and (result.purity == 0).all() and np.isnan(result.completeness).all()
    assert np.isfinite(result.purity_hi).all() and np.isfinite(result.completeness_hi).all()
    assert any("do not look like a mixture" in note for note in result.notes)


def test_useless_scores_claim_nothing():
    calibration = fit(np.zeros(50), np.repeat([1, 0], [10, 40]))
    histogram = ScoreHistogram.empty()
    histogram.add(np.zeros(1000))
    result = estimate(calibration, histogram, np.zeros(100), seed=1)
    assert result.purity_lo.max() < 0.05 and result.purity_hi.min() > 0.9
    assert any("do not separate" in note for note in result.notes)


@pytest.mark.parametrize("positives", [1, 2, 3])
def test_a_handful_of_positives_stays_wide(positives):
    rng = np.random.default_rng(7)
    histogram, top, *_ = _survey(rng, 0.01)
    result = estimate(_calibration(rng, positives, 500), histogram, top, seed=1)
    assert result.purity_hi[99] - result.purity_lo[99] > 0.5
    assert any(f"{positives} positives" in note for note in result.notes)


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 2**31),
    st.integers(1, 30),
    st.integers(1, 300),
    st.integers(1, 400),
    st.floats(0, 1),
    st.floats(-3, 12),
)
def test_always_ordered_and_within_bounds(seed, positives, negatives, count, prevalence, distance):
    rng = np.random.default_rng(seed)
    histogram, top, *_ = _survey(rng, prevalence, count=count, distance=distance)
    r = estimate(_calibration(rng, positives, negatives, distance), histogram, top, bootstrap=20, seed=seed)
    assert 0 <= r.prevalence_lo <= r.prevalence <= r.prevalence_hi <= 1
    for low, value, high in (
        (r.purity_lo, r.purity, r.purity_hi),
        (r.completeness_lo, np.nan_to_num(r.completeness), r.completeness_hi),
    ):
        assert (low >= 0).all() and (low <= value).all() and (value <= high).all() and (high <= 1 + 1e-9).all()
    assert (np.diff(r.purity) <= 1e-12).all() and (np.diff(np.nan_to_num(r.completeness)) >= -1e-12).all()
    assert len(r.purity) == len(top) == len(r.probability)


def test_same_seed_same_result_and_other_seed_another():
    rng = np.random.default_rng(8)
    calibration = _calibration(rng)
    histogram, top, *_ = _survey(rng, 0.01)
    a, b, c = (estimate(calibration, histogram, top, bootstrap=40, seed=s) for s in (1, 1, 2))
    for name in Purity.__dataclass_fields__:
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name.startswith("comp")), name
    assert not np.array_equal(a.purity_hi, c.purity_hi)


def test_is_quick_whatever_the_size_of_the_survey():
    rng = np.random.default_rng(9)
    calibration = _calibration(rng, 300, 30_000)
    histogram, top, *_ = _survey(rng, 0.01)
    histogram.counts *= 50_000  # 10^9 objects
    began = time.process_time()
    result = estimate(calibration, histogram, top, bootstrap=200, seed=0)
    assert time.process_time() - began < 6  # under a second alone; the machine may be busy
    assert result.prevalence == pytest.approx(0.01, rel=0.3)


def test_empty_survey_and_wrong_input():
    calibration = _calibration(np.random.default_rng(0))
    result = estimate(calibration, ScoreHistogram.empty(), np.array([]), bootstrap=20)
    assert len(result.purity) == 0 and (result.prevalence_lo, result.prevalence_hi) == (0.0, 1.0)
    histogram = ScoreHistogram.empty()
    histogram.add(np.array([1.0, 2.0]))
    for scores, options, words in (
        ([1.0, 2.0], {}, "descending"),
        ([3.0, 2.0, 1.0], {}, "3 top scores of 2"),
        ([np.nan], {}, "finite"),
        ([1.0], {"bootstrap": 1}, "bootstrap=1"),
        ([1.0], {"confidence": 95}, "confidence=95"),
    ):
        with pytest.raises(InputError, match=words):
            estimate(calibration, histogram, np.array(scores), **options)


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.lists(st.floats(-50, 50), max_size=50))
def test_histograms_merge_to_the_whole(left, right):
    parts = [ScoreHistogram.empty(), ScoreHistogram.empty(), ScoreHistogram.empty()]
    for part, scores in zip(parts, (left, right, left + right), strict=True):
        part.add(np.array(scores, dtype=np.float64))
    whole = parts[0] + parts[1]
    assert (whole.counts == parts[2].counts).all() and whole.total == len(left) + len(right)
    inside = [s for s in left if abs(s) < 40]
    single = ScoreHistogram.empty()
    single.add(np.array(inside))
    assert single.counts @ single.centres == pytest.approx(sum(inside), abs=0.026 * max(len(inside), 1))
