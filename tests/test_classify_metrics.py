from __future__ import annotations

import numpy as np
import pytest

from galscan.classify.metrics import gain, summarise

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
