"""Networks in 8 bits: what lets them look first, what they may discard, and that no candidate is lost by it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.models.prefilter import BETTER, KEPT
from galscan.scanning import quantised

SHARE = 0.002


def survey(change, n=6000, seed=0):
    """Scores of a sample, and the same with errors of this size."""
    random = np.random.default_rng(seed)
    full = random.normal(-4, 3, (n, 1)).astype(np.float32)
    return full + random.normal(0, change, full.shape).astype(np.float32), full


def decide(own, full, cost=0.4, reached=None):
    return quantised.decide(own, full, np.ones(len(full), bool) if reached is None else reached, SHARE, cost)


def test_small_errors_let_little_pass_and_large_ones_so_much_that_it_does_not_pay():
    passes = [decide(*survey(change))["passes"] for change in (0.0, 0.1, 0.5, 2.0)]
    assert passes == sorted(passes) and passes[0] < 0.01 and passes[1] < 0.02
    assert [decide(*survey(change))["used"] for change in (0.1, 8.0)] == [True, False]


def test_networks_that_are_not_faster_are_not_used():
    own, full = survey(0.1)
    for cost, used in ((0.5, True), (0.8, False), (1.0, False)):
        told = decide(own, full, cost)
        assert told["used"] is used and told["time"] == pytest.approx(cost + told["passes"])
        assert quantised.describe(told).startswith("used" if used else "not used")


def test_what_passes_is_reckoned_among_what_comes_so_far():
    own, full = survey(0.1)
    reached = full[:, 0] > np.quantile(full, 0.9)
    whole, far = decide(own, full), decide(own, full, reached=reached)
    assert far["cuts"] == whole["cuts"] and far["passes"] == pytest.approx(10 * whole["passes"], rel=0.01)


def test_of_candidates_that_did_not_set_the_cut_as_many_survive_as_is_promised():
    kept = []
    for seed in range(20):
        own, full = survey(0.3, seed=seed)
        cut = decide(own, full)["cuts"][0]["cut"]
        fresh, exact = survey(0.3, 50_000, seed + 1000)
        best = np.argsort(-exact[:, 0])[: round(SHARE * len(exact))]
        kept.append((fresh[best, 0] >= cut).mean())
    assert np.mean(np.array(kept) >= KEPT) >= 0.9


@given(st.integers(0, 50), st.floats(0.01, 2), st.floats(0.2, 5), st.floats(-5, 5))
def test_none_of_the_samples_best_is_discarded_and_units_do_not_matter(seed, change, scale, offset):
    own, full = survey(change, 2 * BETTER, seed)
    told, other = decide(own, full), decide((scale * own + offset).astype(np.float32), full)
    best = np.argsort(-full[:, 0])[: max(round(SHARE * len(full)), 1)]
    assert (own[best, 0] >= told["cuts"][0]["cut"] - 1e-4).all()
    assert other["passes"] == pytest.approx(told["passes"], abs=2 / len(full))


def test_of_several_targets_what_one_lets_pass_passes():
    one, other = survey(0.1), survey(0.1, seed=1)
    both = decide(np.hstack([one[0], other[0]]), np.hstack([one[1], other[1]]))
    assert len(both["cuts"]) == 2
    assert max(decide(*one)["passes"], decide(*other)["passes"]) <= both["passes"]
    assert both["passes"] <= decide(*one)["passes"] + decide(*other)["passes"]


def test_a_sample_that_is_too_small_is_refused():
    with pytest.raises(InputError, match="at least"):
        decide(*survey(0.1, 100))


def test_a_decision_is_kept_and_cuts_only_where_it_says_so(tmp_path):
    assert quantised.read_decision(tmp_path) is None and quantised.thresholds(tmp_path) == ()
    told = decide(*survey(0.1))
    quantised.write_decision(tmp_path, told)
    assert quantised.read_decision(tmp_path) == told and quantised.thresholds(tmp_path) == (told["cuts"][0]["cut"],)
    quantised.write_decision(tmp_path, decide(*survey(0.1), cost=2.0))
    assert quantised.thresholds(tmp_path) == ()
    quantised.write_refusal(tmp_path, "no plugin")
    assert quantised.thresholds(tmp_path) == ()
    assert quantised.describe(quantised.read_decision(tmp_path)) == "not used: no plugin"
