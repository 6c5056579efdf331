from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from galscan.core.errors import InputError
from galscan.stats import purity
from galscan.stats.calibration import fit
from galscan.stats.density_ratio import Curves
from galscan.stats.histogram import ScoreHistogram
from galscan.stats.purity import Purity, estimate, fitted_mixture


def _calibration(rng, positives=40, negatives=2000, distance=3.0):
    scores = np.concatenate([rng.normal(distance, 1, positives), rng.normal(0, 1, negatives)])
    return fit(scores, np.repeat([1, 0], [positives, negatives]))


def _survey(rng, prevalence, count=20_000, distance=3.0, keep=1000):
    truth = rng.random(count) < prevalence
    scores = rng.normal(np.where(truth, distance, 0.0), 1.0)
    histogram = ScoreHistogram.of(scores)
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
    assert not any("two samples" in note for note in result.notes)


def test_where_no_negative_scores_as_high_look_alikes_are_not_excluded():
    """None of 207 negatives scores as high: look-alikes at 1 %, as many as the high scores, cannot be excluded."""
    rng = np.random.default_rng(2)
    histogram, top, *_ = _survey(rng, 0.01, distance=8.0)
    result = estimate(_calibration(rng, 40, 207, distance=8.0), histogram, top, seed=1)
    assert result.purity[99] > 0.7 and result.purity_lo[99] < 0.6
    assert any("0 of its negatives: more labelled negatives tighten" in note for note in result.notes)
    many = estimate(_calibration(rng, 40, 200_000, distance=8.0), histogram, top, seed=1)
    assert many.purity_lo[99] > 0.9


def test_a_ratio_that_levels_off_is_not_extended():
    """One in fifty non-targets scores like a target: Platt's line would be overconfident at the top."""
    pure = []
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def scores(truth, rng=rng):
            return rng.normal(np.where(truth | (rng.random(len(truth)) < 0.02), 4.0, 0.0), 1.0)

        calibrated = np.repeat([True, False], [60, 1500])
        truth = rng.random(20_000) < 0.02
        drawn = scores(truth)
        histogram = ScoreHistogram.of(drawn)
        best = np.argsort(-drawn)[:300]
        result = estimate(fit(scores(calibrated), calibrated), histogram, drawn[best], bootstrap=600, seed=seed)
        pure.append(result.purity_lo[99] <= truth[best[:100]].mean() <= result.purity_hi[99])
    assert np.mean(pure) >= 0.85


def test_a_survey_without_targets_claims_nothing():
    rng = np.random.default_rng(5)
    histogram, top, *_ = _survey(rng, 0.0)
    result = estimate(_calibration(rng), histogram, top, seed=1)
    assert result.prevalence_lo == 0 and result.prevalence_hi > 0
    assert result.purity_lo.max() == 0
    assert any("not distinguishable from zero" in note for note in result.notes)


def test_a_survey_that_is_no_mixture_of_the_two_classes_is_called_so():
    rng = np.random.default_rng(5)
    calibration = _calibration(rng, 200, 2000)
    scores = np.sort(rng.normal(-1.0, 0.5, 5000))[::-1]  # lower than most negatives
    histogram = ScoreHistogram.of(scores)
    result = estimate(calibration, histogram, scores[:50], seed=1)
    assert "negatives" in result.unknown and np.isnan(result.published("purity")).all()
    told = purity.summary(result, 0.95)
    assert told["unknown"] and told["at"]["10"]["value"] is None and told["prevalence"]["low"] is None
    assert np.isfinite(result.purity_hi).all()  # grades start from these


def test_targets_that_score_otherwise_make_purity_unknown():
    """A survey with all scores raised looks like one with more targets; only the targets' test shows it."""
    rng = np.random.default_rng(7)
    histogram, top, *_ = _survey(rng, 0.002, count=50_000)
    calibration = _calibration(rng, 100, 20_000)
    moved = ScoreHistogram(np.roll(histogram.counts, 15), np.roll(histogram.counts, 15))
    assert "targets" in estimate(calibration, moved, top + 0.75, bootstrap=100).unknown
    assert not estimate(calibration, histogram, top, bootstrap=100).unknown


def test_what_is_said_beforehand_makes_purity_unknown():
    rng = np.random.default_rng(2)
    histogram, top, *_ = _survey(rng, 0.01)
    result = estimate(_calibration(rng), histogram, top, unknown="another survey", bootstrap=50)
    assert result.unknown == "another survey" and any("galscan vet" in note for note in result.notes)


def test_known_labels_are_counted_as_they_are():
    """Objects of known label score two logits higher: they cause no bias only if left out of the histogram."""
    rng = np.random.default_rng(3)
    calibration = _calibration(rng, 200, 5000)
    truth = rng.random(20_000) < 0.01
    scores = rng.normal(np.where(truth, 3.0, 0.0), 1.0)
    labelled = rng.random(20_000) < 0.2
    scores[labelled & truth] += 2
    order = np.argsort(-scores)
    top, rest = order[:300], order[300:]
    histogram = ScoreHistogram.of(scores[~labelled])
    known = np.where(labelled[top], truth[top], np.nan)
    beyond = int(labelled[rest].sum()), int((labelled & truth)[rest].sum())
    result = estimate(calibration, histogram, scores[top], known=known, known_beyond=beyond, bootstrap=500)
    assert not result.unknown
    np.testing.assert_array_equal(result.probability[labelled[top]], truth[top][labelled[top]])
    assert result.purity_lo[99] <= truth[top][:100].mean() <= result.purity_hi[99]
    assert result.completeness_lo[-1] <= truth[top].sum() / truth.sum() <= result.completeness_hi[-1]
    assert result.prevalence_lo <= truth.mean() <= result.prevalence_hi
    every = estimate(calibration, histogram, scores[top], known=truth[top].astype(float), bootstrap=50)
    assert every.purity[-1] == every.purity_lo[-1] == every.purity_hi[-1] == truth[top].mean()


def test_odds_reach_no_further_than_the_calibration_set():
    """Two dozen objects of a class do not constrain the rarest 1 in 10,000 of it, far from all their scores."""
    rng = np.random.default_rng(11)
    calibration = fit(np.concatenate([rng.normal(8, 1, 24), rng.normal(0, 1, 24)]), np.repeat([1, 0], 24))
    histogram, top, *_ = _survey(rng, 0.01, distance=8.0)
    odds = estimate(calibration, histogram, top, bootstrap=400).draws(np.array([-20.0, 20.0]))
    assert np.median(odds[:, 0]) > np.log(0.01 / 25 / 100) and np.median(odds[:, 1]) < np.log(0.01 * 25 * 100)


def test_others_that_score_otherwise_are_noticed_and_widen_the_interval():
    widths, warned = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        calibration = _calibration(rng, 300, 6000)
        histogram, top, *_ = _survey(rng, 0.01)
        moved = ScoreHistogram(np.roll(histogram.counts, 3), np.roll(histogram.counts, 3))  # by 0.15
        pair = [
            estimate(calibration, h, t, bootstrap=600, seed=seed) for h, t in ((histogram, top), (moved, top + 0.15))
        ]
        widths.append([r.purity_hi[299] - r.purity_lo[299] for r in pair])
        warned.append([any("chi-square" in note for note in r.notes) for r in pair])
    assert np.sum(warned, axis=0).tolist() == [0, 6] and np.diff(widths).mean() > 0


def _posteriors(calibration, scores):
    p = calibration.probability(scores)
    return np.column_stack([1 - p, p])


def _expectation_maximization(prior, posteriors):
    """Saerens, Latinne & Decaestecker (2002), equations 2.9."""
    now, before = prior, np.zeros(2)
    while np.abs(now - before).max() > 1e-8:
        new = posteriors * (now / prior)
        now, before = (new / new.sum(axis=1, keepdims=True)).mean(axis=0), now
    return now[1]


@pytest.mark.parametrize("prevalence", [0.003, 0.03, 0.3])
def test_the_prevalence_is_the_one_that_expectation_maximization_climbs_to(prevalence):
    rng = np.random.default_rng(4)
    calibration = _calibration(rng, 4000, 40_000)
    truth = rng.random(30_000) < prevalence
    scores = rng.normal(3.0 * truth, 1.0)
    histogram = ScoreHistogram.of(scores)
    found = estimate(calibration, histogram, np.sort(scores)[::-1][:100], bootstrap=600, seed=0)
    prior = np.array([1 - calibration.prevalence, calibration.prevalence])
    reference = _expectation_maximization(prior, _posteriors(calibration, scores))
    assert found.prevalence == pytest.approx(reference, rel=0.05)
    assert found.prevalence_lo <= truth.mean() <= found.prevalence_hi


def test_the_prevalence_is_that_of_quapy():
    aggregative = pytest.importorskip("quapy.method.aggregative", reason="pip install quapy to compare with it")
    rng = np.random.default_rng(6)
    calibration = _calibration(rng, 4000, 40_000)
    scores = rng.normal(3.0 * (rng.random(30_000) < 0.1), 1.0)
    histogram = ScoreHistogram.of(scores)
    found = estimate(calibration, histogram, np.sort(scores)[::-1][:100], bootstrap=600, seed=0)
    prior = np.array([1 - calibration.prevalence, calibration.prevalence])
    quapy = aggregative.EMQ.EM(prior, _posteriors(calibration, scores), epsilon=1e-9)[0][1]
    assert found.prevalence == pytest.approx(quapy, rel=0.05)


def test_the_fitted_mixture_adds_up_to_the_survey_where_label_shift_holds():
    rng = np.random.default_rng(7)
    histogram, *_ = _survey(rng, 0.05, count=50_000)
    centres, negatives, targets = fitted_mixture(_calibration(rng, 2000, 20_000), histogram, 0.05)
    assert negatives.sum() == pytest.approx(47_500, rel=0.01) and targets.sum() == pytest.approx(2500, rel=0.02)
    seen = histogram.counts[np.searchsorted(histogram.centres, centres)]
    many = seen > 400
    assert np.abs((negatives + targets)[many] / seen[many] - 1).max() < 0.15
    assert (targets > negatives)[centres > 3.5].all() and (negatives > targets)[centres < 1].all()
    assert [len(part) for part in fitted_mixture(_calibration(rng), ScoreHistogram(), 0.1)] == [0, 0, 0]


def test_a_long_list_takes_no_longer_than_a_short_one():
    rng = np.random.default_rng(9)
    calibration = _calibration(rng, 100, 3000)
    histogram, top, truth, _ = _survey(rng, 0.02, count=200_000, keep=100_000)
    long, short = (estimate(calibration, histogram, top[:keep], seed=0) for keep in (100_000, 1000))
    np.testing.assert_allclose(long.purity[:1000], short.purity)
    assert np.abs(long.purity_lo[100:1000] - short.purity_lo[100:]).max() < 0.03
    assert (np.diff(long.purity) <= 1e-12).all() and (np.diff(long.completeness) >= -1e-12).all()
    assert long.purity_lo[-1] <= truth.mean() <= long.purity_hi[-1]


def test_useless_scores_claim_nothing():
    calibration = fit(np.zeros(50), np.repeat([1, 0], [10, 40]))
    histogram = ScoreHistogram.of(np.zeros(1000))
    result = estimate(calibration, histogram, np.zeros(100), seed=1)
    assert result.purity_lo.max() < 0.05 and result.purity_hi.min() > 0.9
    assert result.purity[-1] == pytest.approx(calibration.prevalence)
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
        if name == "draws":
            assert np.array_equal(a.draws.values, b.draws.values) and np.array_equal(a.draws.ceilings, b.draws.ceilings)
        else:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert not np.array_equal(a.purity_hi, c.purity_hi)


def test_is_quick_whatever_the_size_of_the_survey():
    rng = np.random.default_rng(9)
    calibration = _calibration(rng, 300, 30_000)
    histogram, top, *_ = _survey(rng, 0.01)
    histogram.counts *= 50_000  # 10^9 objects
    histogram.n_scored *= 50_000
    began = time.process_time()
    result = estimate(calibration, histogram, top, bootstrap=200, seed=0)
    assert time.process_time() - began < 6  # under a second alone; the machine may be busy
    assert result.prevalence == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_interval_has_the_level_it_is_asked_for(monkeypatch, confidence):
    """With uninformative scores, the number of targets among the top 100 is binomial."""
    coins = Curves(np.array([-40.0, 40.0]), np.zeros((20_000, 2)), np.full(20_000, np.inf))
    monkeypatch.setattr(purity, "_draws", lambda *_: (coins, None))
    histogram = ScoreHistogram.of(np.zeros(1000))
    calibration = _calibration(np.random.default_rng(0))
    result = estimate(calibration, histogram, np.zeros(100), bootstrap=20_000, confidence=confidence)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = binom.ppf(tails, 100, 0.5) / 100
    assert (result.purity_lo[99], result.purity_hi[99]) == pytest.approx((low, high), abs=1e-9)
    few, many = binom.ppf(tails, 1000, 0.5) / 1000
    assert (result.prevalence_lo, result.prevalence_hi) == pytest.approx((few, many), abs=0.0015)


def test_ambiguous_objects_are_counted_as_no_targets_and_stand_beside_purity():
    """With as many ambiguous objects as targets: left out of the calibration they are taken for targets."""
    covered, beside, left_out = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(100 + seed)

        def draw(count, prevalence, rng=rng):
            kind = rng.choice(3, count, p=[1 - 2 * prevalence, prevalence, prevalence])
            return kind, rng.normal(np.array([0.0, 3.0, 2.0])[kind], 1.0)

        kind, scores = draw(8000, 0.01)
        everything, of_survey = draw(20_000, 0.01)
        best = np.argsort(-of_survey)[:400]
        histogram = ScoreHistogram.of(of_survey)
        result = estimate(fit(scores, kind == 1, kind == 2), histogram, of_survey[best], bootstrap=400, seed=seed)
        true, unclear = ((everything[best] == k).mean() for k in (1, 2))
        covered.append(result.purity_lo[399] <= true <= result.purity_hi[399])
        beside.append(result.ambiguous_lo[399] <= unclear <= result.ambiguous_hi[399])
        assert result.ambiguous[399] + result.purity[399] <= 1 + 1e-9
        sure = kind < 2
        naive = estimate(fit(scores[sure], kind[sure] == 1), histogram, of_survey[best], bootstrap=400, seed=seed)
        left_out.append(naive.purity[399] - true)
        assert np.isnan(naive.ambiguous).all()
    assert np.mean(covered) >= 0.85 and np.mean(beside) >= 0.75
    assert np.mean(left_out) > 0.05


def test_empty_survey_and_wrong_input():
    calibration = _calibration(np.random.default_rng(0))
    result = estimate(calibration, ScoreHistogram(), np.array([]), bootstrap=20)
    assert len(result.purity) == 0 and (result.prevalence_lo, result.prevalence_hi) == (0.0, 1.0)
    histogram = ScoreHistogram.of(np.array([1.0, 2.0]))
    for scores, options, words in (
        ([1.0, 2.0], {}, "descending"),
        ([3.0, 2.0, 1.0], {}, "3 top scores of 2"),
        ([np.nan], {}, "finite"),
        ([1.0], {"bootstrap": 1}, "bootstrap=1"),
        ([1.0], {"confidence": 95}, "confidence=95"),
    ):
        with pytest.raises(InputError, match=words):
            estimate(calibration, histogram, np.array(scores), **options)


def test_one_that_stands_for_many_weighs_as_one():
    """1 % of the objects that the prefilter rejects are rescored: their scatter is no departure from label shift."""
    rng = np.random.default_rng(3)
    calibration = _calibration(rng, 60, 4000)
    whole, top, *_ = _survey(rng, 0.01, count=100_000)
    below = whole.centres < 0.5
    scored = ScoreHistogram(*[np.where(below, 0, whole.counts)] * 2)
    audited = ScoreHistogram.of(np.repeat(whole.centres[below], rng.binomial(whole.counts[below], 0.01)))
    beyond = audited.scaled_to(int(whole.counts[below].sum()))
    thinned = scored + beyond
    assert thinned.total == whole.total and (beyond.n_scored == audited.counts).all()
    again = ScoreHistogram.from_list(json.loads(json.dumps(thinned.to_list())))
    assert (again.counts == thinned.counts).all() and (again.n_scored == thinned.n_scored).all()
    results = [estimate(calibration, h, top, beyond=b, seed=1) for h, b in ((whole, None), (again, beyond))]
    assert not any("two samples" in note for r in results for note in r.notes)
    assert abs(results[0].purity[299] - results[1].purity[299]) < 0.05
    # Who scored a hundredth is less sure of how many targets are there.
    widths = [r.completeness_hi[299] - r.completeness_lo[299] for r in results]
    assert widths[1] > 0.98 * widths[0]
    believed = ScoreHistogram(thinned.counts, thinned.counts)
    assert any("two samples" in note for note in estimate(calibration, believed, top, seed=1).notes)


@given(st.lists(st.integers(-50, 50), max_size=300), st.integers(0, 10**6))
def test_a_sample_stands_for_all_of_them(scores, total):
    sample = ScoreHistogram.of(np.array(scores, float) / 7)
    whole = sample.scaled_to(total)
    assert whole.total == (total if scores else 0) and (whole.n_scored == sample.counts).all()
    if scores:
        assert np.abs(whole.counts - sample.counts * total / len(scores)).max() <= 1


@pytest.mark.parametrize(
    "pairs", [[[1]], [[1, 2, 3]], [[1, 2, 0]], [[1, 2, 1, 1]], [[-1, 2]], [[1600, 2]], [["a", 2]], 5]
)
def test_a_damaged_histogram_is_refused(pairs):
    with pytest.raises(InputError, match="damaged"):
        ScoreHistogram.from_list(pairs)


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.lists(st.floats(-50, 50), max_size=50))
def test_histograms_merge_to_the_whole(left, right):
    parts = [ScoreHistogram.of(np.array(scores, float)) for scores in (left, right, left + right)]
    whole = parts[0] + parts[1]
    assert (whole.counts == parts[2].counts).all() and whole.total == len(left) + len(right)
    inside = [s for s in left if abs(s) < 40]
    single = ScoreHistogram.of(np.array(inside))
    assert single.counts @ single.centres == pytest.approx(sum(inside), abs=0.026 * max(len(inside), 1))
