from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from galscan.stats import allocation
from galscan.stats.allocation import MIN_GRADES, allocate, suggest
from galscan.stats.density_ratio import Curves
from galscan.stats.graded import Stratum
from galscan.stats.purity import Purity


def certain(*fractions):
    """Return draws of strata with known fractions: only the individual objects are uncertain."""
    return {f"s{k}": np.full(400, f) for k, f in enumerate(fractions)}


def layers(*sizes, others=0, discarded=0):
    ends = np.cumsum(sizes)
    found = [Stratum(f"s{k}", n, int(e) - n + 1, int(e)) for k, (n, e) in enumerate(zip(sizes, ends, strict=True))]
    found += [Stratum("not ranked", others)] if others else []
    return found + ([Stratum("discarded", discarded, discarded=True)] if discarded else [])


def test_allocation_is_neymans_where_only_the_fractions_are_uncertain(monkeypatch):
    """n_h in proportion to N_h S_h (Cochran 1977, 5.5): here 300 x 0.5, 600 x 0.3, 3000 x 0.1."""
    monkeypatch.setattr(allocation, "posterior_fractions", lambda prior, *_: dict(prior))
    found = layers(300, 600, 3000)
    rng = np.random.default_rng(0)
    # Vague, and independent of each other: what is known of them comes from the grades.
    prior = {
        s.name: np.clip(p + 0.4 * np.sqrt(p * (1 - p)) * rng.standard_normal(20_000), 0, 1)
        for s, p in zip(found, (0.5, 0.1, 0.0101), strict=True)
    }
    noise = np.array([(prior[s.name] * (1 - prior[s.name])).mean() ** 0.5 for s in found])
    neyman = 400 * noise * [300, 600, 3000] / (noise * [300, 600, 3000]).sum()
    # The finite-population correction takes a little from where most is graded already.
    counts = allocate(found, prior, {}, 400, 3900)
    assert sum(counts.values()) == 400
    np.testing.assert_allclose(list(counts.values()), neyman, rtol=0.25)
    assert counts["s1"] < counts["s2"] and counts["s0"] < counts["s2"]


def test_existing_grades_count():
    found, prior = layers(500, 500), certain(0.5, 0.5)
    equal = allocate(found, prior, {}, 100, 1000)
    assert abs(equal["s0"] - equal["s1"]) <= 20
    more = allocate(found, prior, {"s0": (25, 50), "s1": (3, 6)}, 50, 1000)
    assert more["s1"] > 40 and sum(more.values()) == 50
    # A stratum whose grades are all equal needs no more.
    assert allocate(found, prior, {"s0": (0, 40), "s1": (20, 40)}, 50, 1000)["s1"] > 35


def test_a_tenth_of_the_grades_is_below_the_rank_and_a_tenth_beyond_the_candidates():
    found = layers(100, 900, 4000, others=10**6, discarded=10**8)
    prior = certain(0.9, 0.4, 0.1) | {"not ranked": np.full(400, 1e-4), "discarded": np.full(400, 1e-6)}
    counts = allocate(found, prior, {}, 200, 1000)
    assert sum(counts.values()) == 200 and min(counts.values()) >= MIN_GRADES
    assert counts["s2"] == 20 and counts["not ranked"] + counts["discarded"] == 20


def test_a_stratum_can_be_graded_completely():
    found, prior = layers(60, 940), certain(0.9, 0.4)
    assert allocate(found, prior, {}, 100, 1000, entire=["s0"])["s0"] == 60
    assert allocate(found, prior, {}, 50, 1000, entire=["s0"]) == {"s0": 50, "s1": 0}


@given(
    st.lists(st.integers(0, 400), min_size=0, max_size=6), st.integers(0, 500), st.integers(0, 500),
    st.integers(1, 300), st.integers(1, 2000), st.integers(0, 99),
)  # fmt: skip
def test_allocation_adds_up_and_is_within_what_is_available(sizes, others, discarded, size, rank, seed):
    rng = np.random.default_rng(seed)
    found = layers(*sizes, others=others, discarded=discarded)
    prior = {s.name: rng.beta(0.5, 2, 50) for s in found}
    counts = {s.name: (k := int(rng.integers(0, min(s.population, 30) + 1)), k) for s in found[::2]}
    available = {s.name: int(rng.integers(counts.get(s.name, (0, 0))[1], s.population + 1)) for s in found}
    more = allocate(found, prior, counts, size, rank, available=available)
    assert set(more) == {s.name for s in found}
    room = {name: available[name] - counts.get(name, (0, 0))[1] for name in more}
    assert all(0 <= more[name] <= room[name] for name in more)
    assert sum(more.values()) == min(size, sum(room.values()))
    assert more == allocate(found, prior, counts, size, rank, available=available)


def flat(count, fraction):
    """Return an estimate by a model that is certain of this fraction at all scores."""
    level = np.full((200, 2), np.log(fraction / (1 - fraction)))
    each, none = np.full(count, fraction), np.full(count, np.nan)
    curves = Curves(np.array([-1.0, 1.0]), level, np.full(200, np.inf))
    return Purity(fraction, 0, 1, *[each] * 7, *[none] * 3, [], curves, np.full(200, count * fraction))


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_suggested_size_is_that_of_a_simple_random_sample(confidence, monkeypatch):
    """One stratum, all fractions equally probable: the mean variance of Beta(1 + k, 1 + n - k) is 1 / (12 + 6 n)."""
    count, width = 2000, 0.1
    found = layers(count)
    n = np.arange(count + 1)
    variance = (count - n) ** 2 / (12 + 6 * n) + (count - n) / 6
    expected = np.flatnonzero(2 * norm.ppf(0.5 + confidence / 2) * np.sqrt(variance) / count <= width)[0]
    monkeypatch.setattr(allocation, "posterior_fractions", lambda prior, *_: {"s0": np.linspace(0, 1, 5001)})
    scores = np.zeros(count)
    plan = lambda n: {"s0": min(n, count)}  # noqa: E731
    size = suggest(flat(count, 0.5), scores, found, plan, count, width, confidence=confidence)
    assert size == pytest.approx(expected, abs=1)


def test_objects_of_known_label_need_no_grades():
    known = np.where(np.arange(2000) < 1500, np.arange(2000) % 2, np.nan)
    with_labels, without = (
        suggest(
            flat(2000, 0.5), np.zeros(2000), [Stratum("s0", n, 1, 2000)], lambda size, n=n: {"s0": min(size, n)},
            2000, 0.02, known=labels,
        )
        for n, labels in ((500, known), (2000, None))
    )  # fmt: skip
    assert 50 < with_labels < 450 and without > 1300
