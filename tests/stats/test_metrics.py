from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from galscan.stats.metrics import Scored, WorkingPoint, bootstrap, gain, measure, rank_targets, summarise

TARGETS = np.repeat([1, 0], [15, 150])
POINT = WorkingPoint(0.05, 0.5, 0.5)


def scores(separation: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(separation * TARGETS, 1.0, (3, len(TARGETS)))


def measured(scores, targets, prevalence, purity=0.5, completeness=0.5) -> np.ndarray:
    """Return average precision, completeness and purity of one ranking."""
    return measure([Scored(targets, targets, {"": scores})], WorkingPoint(prevalence, purity, completeness))[""][0]


def test_average_precision_of_perfect_scores_is_one():
    result = summarise(np.tile(TARGETS, (2, 1)).astype(float), TARGETS, 0)
    assert result["ap_mean"] == result["ap_lo"] == result["ap_hi"] == 1.0


def test_interval_contains_the_mean_and_is_wide_for_few_positives():
    result = summarise(scores(1.5), TARGETS, 0)
    assert result["ap_lo"] < result["ap_mean"] < result["ap_hi"]
    assert result["ap_hi"] - result["ap_lo"] > 0.1
    assert len(result["ap"]) == 3 and len(result["pr_curve"]["recall"]) <= 200


def test_gain_is_zero_for_equal_scores_and_positive_for_better_ones():
    assert gain(scores(1.0), scores(1.0), TARGETS, 0) == {"mean": 0.0, "lo": 0.0, "hi": 0.0}
    better = gain(scores(4.0), scores(0.5), TARGETS, 0)
    assert better["lo"] > 0 and better["mean"] == pytest.approx(-gain(scores(0.5), scores(4.0), TARGETS, 0)["mean"])


@st.composite
def rankings(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and targets with at least one of each class."""
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    targets = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda t: 0 < sum(t) < n))
    return np.array(scores, float), np.array(targets)


@given(rankings(), st.floats(0.001, 0.9), st.floats(0.05, 0.95))
def test_metrics_are_those_of_all_thresholds(ranking, prevalence, limit):
    scores, targets = ranking
    weights = np.where(targets == 1, prevalence / targets.sum(), (1 - prevalence) / (1 - targets).sum())
    inside = scores >= np.unique(scores)[:, None]  # one row per threshold
    completeness = inside[:, targets == 1].mean(axis=1)
    purity = inside[:, targets == 1] @ weights[targets == 1] / (inside @ weights)
    expected = [
        average_precision_score(targets, scores, sample_weight=weights),
        completeness[purity >= limit - 1e-12].max(initial=0.0),
        purity[completeness >= limit - 1e-12].max(),
    ]
    assert measured(scores, targets, prevalence, limit, limit) == pytest.approx(expected)


def test_lower_prevalence_equals_repeated_negatives():
    """Repeating every negative 20 times gives a survey with 20 times fewer targets."""
    scores = np.random.default_rng(0).normal(1.5 * TARGETS, 1.0)
    times = np.where(TARGETS == 1, 1, 20)
    survey = np.repeat(TARGETS, times), np.repeat(scores, times)
    precision, recall, _ = precision_recall_curve(*survey)
    expected = [
        average_precision_score(*survey), recall[precision >= 0.3].max(), precision[recall >= 0.5].max()
    ]  # fmt: skip
    assert measured(scores, TARGETS, 15 / (15 + 20 * 150), purity=0.3) == pytest.approx(expected)
    assert expected[0] < average_precision_score(TARGETS, scores) - 0.1


def test_completeness_is_zero_at_a_purity_that_no_list_reaches():
    assert measured(-TARGETS.astype(float), TARGETS, 0.01, purity=0.9)[1] == 0


def repeats(separation: float, same_objects: bool = False, count: int = 3) -> list[Scored]:
    """Repeats with objects of their own, or with the same objects."""
    made = []
    for r in range(count):
        repeat = 0 if same_objects else r
        noise = np.random.default_rng(repeat).normal(0, 1, len(TARGETS))
        ids = np.array([f"{repeat}-{i}" for i in range(len(TARGETS))], object)
        made.append(Scored(ids, TARGETS, {"a": noise + separation * TARGETS}))
    return made


def test_resamples_are_equal_for_all_methods_and_centred():
    twice = [r._replace(scores={"a": r.scores["a"], "b": r.scores["a"]}) for r in repeats(1.0)]
    draws = bootstrap(twice, POINT, seed=0, count=100)
    np.testing.assert_array_equal(draws["a"], draws["b"])
    assert draws["a"].std(0).min() > 0
    assert draws["a"].mean(0)[0] == pytest.approx(measure(twice, POINT)["a"].mean(0)[0], abs=0.05)
    np.testing.assert_array_equal(draws["a"], bootstrap(twice, POINT, seed=0, count=100)["a"])


def test_repeats_on_the_same_objects_do_not_reduce_the_uncertainty():
    once, again, new = (
        bootstrap(made, POINT, seed=0, count=200)["a"][:, 0].std()
        for made in (repeats(1.5, count=1), repeats(1.5, same_objects=True), repeats(1.5))
    )
    assert again == pytest.approx(once, rel=0.1) and new < 0.95 * again


def test_copies_of_one_object_have_the_same_weight():
    r = repeats(1.5, count=1)[0]
    doubled = Scored(np.tile(r.ids, 2), np.tile(r.targets, 2), {"a": np.tile(r.scores["a"], 2)})
    draws, expected = (bootstrap([each], POINT, seed=0, count=20)["a"] for each in (doubled, r))
    np.testing.assert_allclose(draws, expected)


def test_weighted_objects_equal_repeated_ones():
    scores = np.round(np.random.default_rng(1).normal(TARGETS, 1.0), 1)
    times = np.random.default_rng(2).integers(0, 3, len(TARGETS))
    positives, negatives = times[TARGETS == 1], times[TARGETS == 0]
    completeness, purity = rank_targets(scores, TARGETS).curve(positives.sum() / times.sum(), positives, negatives)
    expected = average_precision_score(np.repeat(TARGETS, times), np.repeat(scores, times))
    assert np.diff(completeness, prepend=0.0) @ purity == pytest.approx(expected)
