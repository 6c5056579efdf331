from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.stats.histogram import ScoreHistogram


@given(st.lists(st.integers(-50, 50), max_size=300), st.integers(0, 10**6))
def test_sample_is_scaled_to_the_total_and_survives_json(scores, total):
    sample = ScoreHistogram.of(np.array(scores, float) / 7)
    whole = sample.scaled_to(total)
    assert whole.total == (total if scores else 0) and (whole.n_scored == sample.counts).all()
    if scores:
        assert np.abs(whole.counts - sample.counts * total / len(scores)).max() <= 1
    if total > 300:
        again = ScoreHistogram.from_list(json.loads(json.dumps(whole.to_list())))
        assert (again.counts == whole.counts).all()


@pytest.mark.parametrize(
    "pairs", [[[1]], [[1, 2, 3]], [[1, 2, 0]], [[1, 2, 1, 1]], [[-1, 2]], [[1600, 2]], [["a", 2]], 5]
)
def test_damaged_histogram_is_refused(pairs):
    with pytest.raises(InputError):
        ScoreHistogram.from_list(pairs)


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.lists(st.floats(-50, 50), max_size=50))
def test_sum_of_histograms_is_that_of_all_scores(first, second):
    parts = [ScoreHistogram.of(np.array(scores, float)) for scores in (first, second, first + second)]
    whole = parts[0] + parts[1]
    assert (whole.counts == parts[2].counts).all() and whole.total == len(first) + len(second)
    inside = [s for s in first if abs(s) < 40]
    single = ScoreHistogram.of(np.array(inside))
    assert single.counts @ single.centres == pytest.approx(sum(inside), abs=0.026 * max(len(inside), 1))
