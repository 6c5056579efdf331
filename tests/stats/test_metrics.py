from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from galscan.stats.metrics import (
    Scored,
    WorkingPoint,
    average_precision_at,
    bootstrap,
    completeness_at,
    gain,
    measure,
    purity_at,
    rank_targets,
    summarise,
)

TARGETS = np.repeat([1, 0], [15, 150])


def scores(separation: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(separation * TARGETS, 1.0, (3, len(TARGETS)))


def test_perfect_scores_have_average_precision_one():
    result = summarise(np.tile(TARGETS, (2, 1)).astype(float), TARGETS, 0)
    assert result["ap_mean"] == result["ap_lo"] == result["ap_hi"] == 1.0


def test_the_interval_holds_the_mean_and_is_wide_for_few_positives():
    result = summarise(scores(1.5), TARGETS, 0)
    assert result["ap_lo"] < result["ap_mean"] < result["ap_hi"]
    assert result["ap_hi"] - result["ap_lo"] > 0.1
    assert len(result["ap"]) == 3 and len(result["pr_curve"]["recall"]) <= 200


def test_gain_of_nothing_is_zero_and_of_something_positive():
    same = gain(scores(1.0), scores(1.0), TARGETS, 0)
    assert same == {"mean": 0.0, "lo": 0.0, "hi": 0.0}
    better = gain(scores(4.0), scores(0.5), TARGETS, 0)
    assert better["lo"] > 0 and better["mean"] == pytest.approx(-gain(scores(0.5), scores(4.0), TARGETS, 0)["mean"])


# -- at a stated prevalence ------------------------------------------------------------------------


@st.composite
def rankings(draw) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and targets with at least one of each class."""
    n = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))
    targets = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda t: 0 < sum(t) < n))
    return np.array(scores, float), np.array(targets)


def every_list(scores: np.ndarray, targets: np.ndarray, prevalence: float) -> list[tuple[float, float]]:
    """Return (completeness, purity) of the list at every threshold, computed one by one."""
    lists = []
    for threshold in sorted(set(scores), reverse=True):
        inside = scores >= threshold
        found = (inside & (targets == 1)).sum() / (targets == 1).sum()
        wrong = (inside & (targets == 0)).sum() / (targets == 0).sum()
        lists.append((found, prevalence * found / (prevalence * found + (1 - prevalence) * wrong)))
    return lists


@given(rankings(), st.floats(0.001, 0.9), st.floats(0.05, 0.95))
def test_working_points_are_those_of_every_list_looked_at(ranking, prevalence, at):
    scores, targets = ranking
    lists = every_list(scores, targets, prevalence)
    most = max((c for c, p in lists if p >= at - 1e-12), default=0.0)
    assert completeness_at(scores, targets, at, prevalence) == pytest.approx(most)
    purest = max(p for c, p in lists if c >= at - 1e-12)
    assert purity_at(scores, targets, at, prevalence) == pytest.approx(purest)


@given(rankings(), st.floats(0.001, 0.9))
def test_average_precision_is_scikit_learns_with_weights(ranking, prevalence):
    scores, targets = ranking
    weights = np.where(targets == 1, prevalence / targets.sum(), (1 - prevalence) / (1 - targets).sum())
    expected = average_precision_score(targets, scores, sample_weight=weights)
    assert average_precision_at(scores, targets, prevalence) == pytest.approx(expected)
    own = targets.mean()
    assert average_precision_at(scores, targets, own) == pytest.approx(average_precision_score(targets, scores))


def test_a_prevalence_stands_for_a_survey_with_so_many_more_of_the_others():
    """Repeating every negative 20 times gives a survey with 20 times fewer targets."""
    scores = np.random.default_rng(0).normal(1.5 * TARGETS, 1.0)
    times = np.where(TARGETS == 1, 1, 20)
    survey = np.repeat(scores, times), np.repeat(TARGETS, times)
    prevalence = 15 / (15 + 20 * 150)
    assert average_precision_at(scores, TARGETS, prevalence) == pytest.approx(average_precision_score(*survey[::-1]))
    assert average_precision_at(scores, TARGETS, prevalence) < average_precision_score(TARGETS, scores) - 0.1
    precision, recall, _ = precision_recall_curve(*survey[::-1])
    assert completeness_at(scores, TARGETS, 0.3, prevalence) == pytest.approx(recall[precision >= 0.3].max())
    assert purity_at(scores, TARGETS, 0.5, prevalence) == pytest.approx(precision[recall >= 0.5].max())


def test_a_purity_that_no_list_has_is_completeness_zero():
    assert completeness_at(-TARGETS.astype(float), TARGETS, 0.9, 0.01) == 0


POINT = WorkingPoint(0.05, 0.5, 0.5)


def repeats(*separations: float, same_objects: bool = False, count: int = 3) -> list[Scored]:
    """Repeats of which arm k separates by separations[k]; each has its own objects, or all share them."""
    made = []
    for r in range(count):
        ids = np.array([f"{0 if same_objects else r}-{i}" for i in range(len(TARGETS))], object)
        noise = np.random.default_rng(0 if same_objects else r).normal(0, 1, (len(separations), len(TARGETS)))
        made.append(Scored(ids, TARGETS, {f"arm{k}": noise[k] + s * TARGETS for k, s in enumerate(separations)}))
    return made


def test_measured_figures_are_those_of_the_functions():
    for r, row in zip(repeats(1.0), measure(repeats(1.0), POINT)["arm0"], strict=True):
        scores = r.scores["arm0"]
        assert row == pytest.approx(
            [average_precision_at(scores, TARGETS, 0.05), completeness_at(scores, TARGETS, 0.5, 0.05),
             purity_at(scores, TARGETS, 0.5, 0.05)]
        )  # fmt: skip


def test_resampling_is_the_same_for_every_arm_and_centred():
    given_twice = [r._replace(scores={"a": r.scores["arm0"], "b": r.scores["arm0"]}) for r in repeats(1.0)]
    draws = bootstrap(given_twice, POINT, seed=0, count=100)
    np.testing.assert_array_equal(draws["a"], draws["b"])
    assert draws["a"].std(0).min() > 0
    mean = measure(given_twice, POINT)["a"].mean(0)
    assert draws["a"].mean(0)[0] == pytest.approx(mean[0], abs=0.05)
    np.testing.assert_array_equal(draws["a"], bootstrap(given_twice, POINT, seed=0, count=100)["a"])


def test_a_test_set_used_again_is_not_a_new_one():
    """Three repeats on the same objects are as uncertain as one; on three sets of objects less."""
    spread = {
        name: bootstrap(made, POINT, seed=0, count=300)["arm0"][:, 0].std()
        for name, made in (
            ("one", repeats(1.5, count=1)), ("again", repeats(1.5, same_objects=True)), ("new", repeats(1.5))
        )
    }  # fmt: skip
    assert spread["again"] == pytest.approx(spread["one"], rel=0.1)
    assert spread["new"] < 0.95 * spread["again"]


def test_two_copies_of_one_object_are_drawn_together():
    r = repeats(1.5, count=1)[0]
    doubled = Scored(np.tile(r.ids, 2), np.tile(r.targets, 2), {"arm0": np.tile(r.scores["arm0"], 2)})
    np.testing.assert_allclose(
        bootstrap([doubled], POINT, seed=0, count=20)["arm0"], bootstrap([r], POINT, seed=0, count=20)["arm0"]
    )


def test_counting_objects_more_than_once_is_repeating_them():
    scores = np.round(np.random.default_rng(1).normal(TARGETS, 1.0), 1)
    times = np.random.default_rng(2).integers(0, 3, len(TARGETS))
    positives, negatives = times[TARGETS == 1], times[TARGETS == 0]
    completeness, purity = rank_targets(scores, TARGETS).curve(positives.sum() / times.sum(), positives, negatives)
    repeated = np.repeat(scores, times), np.repeat(TARGETS, times)
    expected = average_precision_score(*repeated[::-1])
    assert np.diff(completeness, prepend=0.0) @ purity == pytest.approx(expected)
