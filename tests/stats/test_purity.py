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


def calibrated(rng, positives=40, negatives=2000, distance=3.0):
    scores = np.concatenate([rng.normal(distance, 1, positives), rng.normal(0, 1, negatives)])
    return fit(scores, np.repeat([1, 0], [positives, negatives]))


def survey(rng, prevalence, count=20_000, distance=3.0, keep=1000):
    """Return histogram, best scores, and truth of the best and of all."""
    truth = rng.random(count) < prevalence
    scores = rng.normal(np.where(truth, distance, 0.0), 1.0)
    best = np.argsort(-scores)[:keep]
    return ScoreHistogram.of(scores), scores[best], truth[best], truth


def shifted(histogram, bins):
    return ScoreHistogram(*[np.roll(histogram.counts, bins)] * 2)


def covers(result, name, rank, value):
    return getattr(result, f"{name}_lo")[rank - 1] - 1e-6 <= value <= getattr(result, f"{name}_hi")[rank - 1] + 1e-6


def coverage(runs, prevalence, positives=40, negatives=2000, rank=100, bootstrap=2000):
    """Return the fraction of simulated surveys whose true purity and completeness are inside the interval at `rank`."""
    covered = []
    for seed in range(runs):
        rng = np.random.default_rng(1000 + seed)
        histogram, top, truth, everything = survey(rng, prevalence)
        result = estimate(calibrated(rng, positives, negatives), histogram, top, seed=seed, bootstrap=bootstrap)
        hits = truth[:rank].sum()
        recall = hits / everything.sum()
        covered.append([covers(result, "purity", rank, hits / rank), covers(result, "completeness", rank, recall)])
    return np.mean(covered, axis=0)


def test_intervals_cover_the_truth_in_a_few_surveys():
    assert (coverage(8, 0.01, bootstrap=500) >= 0.85).all()


@pytest.mark.slow
@pytest.mark.parametrize("prevalence", [0.002, 0.01, 0.05])
@pytest.mark.parametrize(("positives", "negatives"), [(40, 2000), (13, 207)])
def test_intervals_cover_the_truth(prevalence, positives, negatives):
    assert (coverage(60, prevalence, positives, negatives) >= 0.87).all()


def test_estimate_is_right_and_intervals_are_narrow_with_a_large_calibration_set():
    rng = np.random.default_rng(0)
    histogram, top, truth, everything = survey(rng, 0.02, count=50_000)
    result = estimate(calibrated(rng, 3000, 100_000), histogram, top, seed=1, bootstrap=500)
    true = np.cumsum(truth) / np.arange(1, 1001)
    assert result.prevalence == pytest.approx(everything.mean(), rel=0.1)
    assert abs(result.purity[99:] - true[99:]).max() < 0.08
    assert abs(result.completeness[499] - truth[:500].sum() / everything.sum()) < 0.05
    assert result.purity_hi[499] - result.purity_lo[499] < 0.3
    assert not any("two samples" in note for note in result.notes)


def test_look_alikes_are_not_excluded_where_no_negative_scores_as_high():
    """None of 207 negatives scores as high: look-alikes at 1 %, as many as the high scores, cannot be excluded."""
    rng = np.random.default_rng(2)
    histogram, top, *_ = survey(rng, 0.01, distance=8.0)
    result = estimate(calibrated(rng, 40, 207, distance=8.0), histogram, top, seed=1, bootstrap=500)
    assert result.purity[99] > 0.7 and result.purity_lo[99] < 0.6
    assert any("0 of its negatives" in note for note in result.notes)
    many = estimate(calibrated(rng, 40, 200_000, distance=8.0), histogram, top, seed=1, bootstrap=300)
    assert many.purity_lo[99] > 0.9


def test_density_ratio_that_levels_off_is_not_extrapolated():
    """One in fifty non-targets scores like a target: Platt's line would be overconfident at the top."""
    covered = []
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def scores(truth, rng=rng):
            return rng.normal(np.where(truth | (rng.random(len(truth)) < 0.02), 4.0, 0.0), 1.0)

        classes = np.repeat([True, False], [60, 1500])
        truth = rng.random(20_000) < 0.02
        drawn = scores(truth)
        best, calibration = np.argsort(-drawn)[:300], fit(scores(classes), classes)
        result = estimate(calibration, ScoreHistogram.of(drawn), drawn[best], bootstrap=400, seed=seed)
        covered.append(covers(result, "purity", 100, truth[best[:100]].mean()))
    assert np.mean(covered) >= 0.8


def test_prevalence_of_a_survey_without_targets_is_not_distinguishable_from_zero():
    rng = np.random.default_rng(5)
    histogram, top, *_ = survey(rng, 0.0)
    result = estimate(calibrated(rng), histogram, top, seed=1, bootstrap=500)
    assert result.prevalence_lo == 0 < result.prevalence_hi and result.purity_lo.max() == 0
    assert any("not distinguishable from zero" in note for note in result.notes)


def test_purity_is_unknown_if_the_survey_is_no_mixture_of_the_two_classes():
    rng = np.random.default_rng(5)
    scores = np.sort(rng.normal(-1.0, 0.5, 5000))[::-1]  # lower than most negatives
    result = estimate(calibrated(rng, 200, 2000), ScoreHistogram.of(scores), scores[:50], seed=1, bootstrap=100)
    assert "negatives" in result.unknown and np.isnan(result.published("purity")).all()
    summary = purity.summary(result, 0.95)
    assert summary["unknown"] and summary["at"]["10"]["value"] is None and summary["prevalence"]["low"] is None
    assert np.isfinite(result.purity_hi).all()  # grades start from these


def test_purity_is_unknown_if_targets_score_otherwise():
    """A survey with all scores raised looks like one with more targets; only the targets' test shows it."""
    rng = np.random.default_rng(7)
    histogram, top, *_ = survey(rng, 0.002, count=50_000)
    calibration = calibrated(rng, 100, 20_000)
    assert "targets" in estimate(calibration, shifted(histogram, 15), top + 0.75, bootstrap=100).unknown
    assert not estimate(calibration, histogram, top, bootstrap=100).unknown
    result = estimate(calibration, histogram, top, unknown="another survey", bootstrap=50)
    assert result.unknown == "another survey" and any("galscan vet" in note for note in result.notes)


def test_known_labels_count_as_they_are():
    """Objects of known label score two logits higher: they cause no bias only if left out of the histogram."""
    rng = np.random.default_rng(3)
    calibration = calibrated(rng, 200, 5000)
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
    assert covers(result, "purity", 100, truth[top][:100].mean())
    assert covers(result, "completeness", 300, truth[top].sum() / truth.sum())
    assert result.prevalence_lo <= truth.mean() <= result.prevalence_hi
    result = estimate(calibration, histogram, scores[top], known=truth[top].astype(float), bootstrap=50)
    assert result.purity[-1] == result.purity_lo[-1] == result.purity_hi[-1] == truth[top].mean()


def test_odds_are_not_extrapolated_beyond_the_calibration_set():
    """Two dozen objects of a class do not constrain the rarest 1 in 10,000 of it, far from all their scores."""
    rng = np.random.default_rng(11)
    histogram, top, *_ = survey(rng, 0.01, distance=8.0)
    odds = estimate(calibrated(rng, 24, 24, 8.0), histogram, top, bootstrap=300).draws(np.array([-20.0, 20.0]))
    assert np.median(odds[:, 0]) > np.log(0.01 / 25 / 100) and np.median(odds[:, 1]) < np.log(0.01 * 25 * 100)


def test_negatives_that_score_otherwise_widen_the_interval():
    widths, warned = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        calibration = calibrated(rng, 300, 6000)
        histogram, top, *_ = survey(rng, 0.01)
        for h, t in ((histogram, top), (shifted(histogram, 3), top + 0.15)):
            result = estimate(calibration, h, t, bootstrap=400, seed=seed)
            widths.append(result.purity_hi[299] - result.purity_lo[299])
            warned.append(any("chi-square" in note for note in result.notes))
    assert warned == [False, True] * 4 and np.mean(widths[1::2]) > np.mean(widths[::2])


def expectation_maximization(calibration, scores):
    """Return the prevalence of Saerens, Latinne & Decaestecker (2002), equations 2.9."""
    prior, p = calibration.prevalence, calibration.probability(scores)
    now, before = prior, 0.0
    while abs(now - before) > 1e-8:
        targets, others = p * now / prior, (1 - p) * (1 - now) / (1 - prior)
        now, before = (targets / (targets + others)).mean(), now
    return now


@pytest.mark.parametrize("prevalence", [0.003, 0.03, 0.3])
def test_prevalence_is_that_of_expectation_maximization(prevalence):
    rng = np.random.default_rng(4)
    calibration = calibrated(rng, 4000, 40_000)
    truth = rng.random(30_000) < prevalence
    scores = rng.normal(3.0 * truth, 1.0)
    found = estimate(calibration, ScoreHistogram.of(scores), np.sort(scores)[::-1][:100], bootstrap=400, seed=0)
    assert found.prevalence == pytest.approx(expectation_maximization(calibration, scores), rel=0.05)
    assert found.prevalence_lo <= truth.mean() <= found.prevalence_hi


def test_fitted_mixture_is_the_survey_where_label_shift_holds():
    rng = np.random.default_rng(7)
    histogram, *_ = survey(rng, 0.05, count=50_000)
    centres, negatives, targets = fitted_mixture(calibrated(rng, 2000, 20_000), histogram, 0.05)
    assert negatives.sum() == pytest.approx(47_500, rel=0.01) and targets.sum() == pytest.approx(2500, rel=0.02)
    counts = histogram.counts[np.searchsorted(histogram.centres, centres)]
    many = counts > 400
    assert np.abs((negatives + targets)[many] / counts[many] - 1).max() < 0.15
    assert (targets > negatives)[centres > 3.5].all() and (negatives > targets)[centres < 1].all()
    assert [len(part) for part in fitted_mixture(calibrated(rng), ScoreHistogram(), 0.1)] == [0, 0, 0]


def test_long_list_is_evaluated_at_few_ranks():
    rng = np.random.default_rng(9)
    histogram, top, truth, _ = survey(rng, 0.02, count=200_000, keep=100_000)
    calibration = calibrated(rng, 100, 3000)
    long, short = (estimate(calibration, histogram, top[:keep], seed=0, bootstrap=500) for keep in (100_000, 1000))
    assert len(purity.nodes(100_000)) < 2500
    np.testing.assert_allclose(long.purity[:1000], short.purity)
    assert np.abs(long.purity_lo[100:1000] - short.purity_lo[100:]).max() < 0.06
    assert (np.diff(long.purity) <= 1e-12).all() and (np.diff(long.completeness) >= -1e-12).all()
    assert covers(long, "purity", 100_000, truth.mean())


def test_nothing_is_inferred_from_useless_scores():
    calibration = fit(np.zeros(50), np.repeat([1, 0], [10, 40]))
    result = estimate(calibration, ScoreHistogram.of(np.zeros(1000)), np.zeros(100), seed=1)
    assert result.purity_lo.max() < 0.05 and result.purity_hi.min() > 0.9
    assert result.purity[-1] == pytest.approx(calibration.prevalence)
    assert any("do not separate" in note for note in result.notes)


@pytest.mark.parametrize("positives", [1, 3])
def test_intervals_are_wide_with_few_positives(positives):
    rng = np.random.default_rng(7)
    histogram, top, *_ = survey(rng, 0.01)
    result = estimate(calibrated(rng, positives, 500), histogram, top, seed=1, bootstrap=500)
    assert result.purity_hi[99] - result.purity_lo[99] > 0.5
    assert any(f"{positives} positives" in note for note in result.notes)


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 300), st.integers(1, 400), st.floats(0, 1),
    st.floats(-3, 12),
)  # fmt: skip
def test_estimates_are_ordered_and_within_bounds(seed, positives, negatives, count, prevalence, distance):
    rng = np.random.default_rng(seed)
    histogram, top, *_ = survey(rng, prevalence, count=count, distance=distance)
    r = estimate(calibrated(rng, positives, negatives, distance), histogram, top, bootstrap=20, seed=seed)
    assert 0 <= r.prevalence_lo <= r.prevalence <= r.prevalence_hi <= 1
    for low, value, high in (
        (r.purity_lo, r.purity, r.purity_hi), (r.completeness_lo, np.nan_to_num(r.completeness), r.completeness_hi),
    ):  # fmt: skip
        assert (low >= 0).all() and (low <= value).all() and (value <= high).all() and (high <= 1 + 1e-9).all()
    assert (np.diff(r.purity) <= 1e-12).all() and (np.diff(np.nan_to_num(r.completeness)) >= -1e-12).all()
    assert len(r.purity) == len(top) == len(r.probability)


def test_equal_seeds_give_equal_results():
    rng = np.random.default_rng(8)
    calibration = calibrated(rng)
    histogram, top, *_ = survey(rng, 0.01)
    first, again, other = (estimate(calibration, histogram, top, bootstrap=40, seed=s) for s in (1, 1, 2))
    for name in set(Purity.__dataclass_fields__) - {"draws"}:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), name)
    np.testing.assert_array_equal(first.draws(top), again.draws(top))
    assert not np.array_equal(first.purity_hi, other.purity_hi)


def test_time_does_not_depend_on_the_size_of_the_survey():
    rng = np.random.default_rng(9)
    histogram, top, *_ = survey(rng, 0.01)
    histogram.counts *= 50_000  # 10^9 objects
    histogram.n_scored *= 50_000
    calibration = calibrated(rng, 300, 30_000)
    began = time.process_time()
    result = estimate(calibration, histogram, top, bootstrap=200, seed=0)
    assert time.process_time() - began < 6  # under a second alone; the machine may be busy
    assert result.prevalence == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_interval_has_the_requested_confidence(monkeypatch, confidence):
    """With uninformative scores, the number of targets among the top 100 is binomial."""
    coins = Curves(np.array([-40.0, 40.0]), np.zeros((20_000, 2)), np.full(20_000, np.inf))
    monkeypatch.setattr(purity, "_draws", lambda *_: (coins, None))
    histogram, calibration = ScoreHistogram.of(np.zeros(1000)), calibrated(np.random.default_rng(0))
    result = estimate(calibration, histogram, np.zeros(100), bootstrap=20_000, confidence=confidence)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    limits = binom.ppf(tails, 100, 0.5) / 100
    assert [result.purity_lo[99], result.purity_hi[99]] == pytest.approx(limits, abs=1e-9)
    limits = binom.ppf(tails, 1000, 0.5) / 1000
    assert [result.prevalence_lo, result.prevalence_hi] == pytest.approx(limits, abs=0.0015)


def test_ambiguous_objects_count_as_no_targets_and_their_fraction_is_estimated():
    """With as many ambiguous objects as targets: left out of the calibration they are taken for targets."""
    covered, ambiguous_covered, bias = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)

        def draw(count, prevalence, rng=rng):
            kind = rng.choice(3, count, p=[1 - 2 * prevalence, prevalence, prevalence])
            return kind, rng.normal(np.array([0.0, 3.0, 2.0])[kind], 1.0)

        kind, scores = draw(8000, 0.01)
        truth, surveyed = draw(20_000, 0.01)
        best, histogram = np.argsort(-surveyed)[:400], ScoreHistogram.of(surveyed)
        result = estimate(fit(scores, kind == 1, kind == 2), histogram, surveyed[best], bootstrap=300, seed=seed)
        targets, ambiguous = ((truth[best] == k).mean() for k in (1, 2))
        covered.append(covers(result, "purity", 400, targets))
        ambiguous_covered.append(covers(result, "ambiguous", 400, ambiguous))
        assert result.ambiguous[399] + result.purity[399] <= 1 + 1e-9
        sure = kind < 2
        naive = estimate(fit(scores[sure], kind[sure] == 1), histogram, surveyed[best], bootstrap=100, seed=seed)
        bias.append(naive.purity[399] - targets)
        assert np.isnan(naive.ambiguous).all()
    assert np.mean(covered) >= 0.8 and np.mean(ambiguous_covered) >= 0.66 and np.mean(bias) > 0.05


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([1.0, 2.0], {}, "2 top scores of 2"), ([3.0, 2.0, 1.0], {}, "3 top scores of 2"), ([np.nan], {}, "1 top"),
        ([1.0], {"bootstrap": 1}, "bootstrap=1"), ([1.0], {"confidence": 95}, "confidence=95"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_and_an_empty_survey_accepted(scores, options, message):
    calibration = calibrated(np.random.default_rng(0), 10, 50)
    with pytest.raises(InputError, match=message):
        estimate(calibration, ScoreHistogram.of(np.array([1.0, 2.0])), np.array(scores), **options)
    result = estimate(calibration, ScoreHistogram(), np.array([]), bootstrap=20)
    assert len(result.purity) == 0 and (result.prevalence_lo, result.prevalence_hi) == (0.0, 1.0)


def test_scaled_sample_counts_as_the_objects_that_were_scored():
    """1 % of the objects that the prefilter rejects are rescored: their scatter is no departure from label shift."""
    rng = np.random.default_rng(3)
    calibration = calibrated(rng, 60, 4000)
    whole, top, *_ = survey(rng, 0.01, count=100_000)
    below = whole.centres < 0.5
    rescored = ScoreHistogram.of(np.repeat(whole.centres[below], rng.binomial(whole.counts[below], 0.01)))
    beyond = rescored.scaled_to(int(whole.counts[below].sum()))
    thinned = ScoreHistogram(*[np.where(below, 0, whole.counts)] * 2) + beyond
    assert thinned.total == whole.total and (beyond.n_scored == rescored.counts).all()
    again = ScoreHistogram.from_list(json.loads(json.dumps(thinned.to_list())))
    assert (again.counts == thinned.counts).all() and (again.n_scored == thinned.n_scored).all()
    exact, sampled = (
        estimate(calibration, h, top, beyond=b, seed=1, bootstrap=500) for h, b in ((whole, None), (again, beyond))
    )
    assert not any("two samples" in note for note in exact.notes + sampled.notes)
    assert abs(exact.purity[299] - sampled.purity[299]) < 0.05
    # The sample leaves more doubt about the number of targets below the list.
    exact_width, sampled_width = (r.completeness_hi[299] - r.completeness_lo[299] for r in (exact, sampled))
    assert sampled_width > 0.95 * exact_width
    trusted = ScoreHistogram(thinned.counts, thinned.counts)
    assert any("two samples" in n for n in estimate(calibration, trusted, top, seed=1, bootstrap=100).notes)
