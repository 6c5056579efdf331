"""Purity with grades: coverage of the intervals, narrower than without grades, and robust against a wrong model."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from galscan.core.errors import InputError
from galscan.stats import calibration as calibrate
from galscan.stats import graded, purity
from galscan.stats.allocation import allocate, suggest
from galscan.stats.density_ratio import Curves
from galscan.stats.graded import Stratum, combine
from galscan.stats.histogram import ScoreHistogram
from galscan.vetting.sampling import default_counts, strata

TOP = 600


@cache
def simulated(seed, prevalence=0.004, n=60_000, calibration=(40, 800), shift=0.0):
    """Scan a binormal survey; return the estimate, scores and truth of the candidates, and numbers beyond them."""
    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], calibration)
    calibrated = calibrate.fit(rng.normal(np.where(targets, 1.5, -1.5), 1.0), targets)
    truth = rng.random(n) < prevalence
    scores = rng.normal(np.where(truth, 1.5, -1.5), 1.0) + shift * truth
    order = np.argsort(-scores)
    top = scores[order[:TOP]]
    before = purity.estimate(calibrated, ScoreHistogram.of(scores), top, bootstrap=400, seed=seed)
    return before, top, truth[order[:TOP]], int(truth[order[TOP:]].sum()), n


def grade(rng, ranked, beyond, found, counts):
    """Draw the sample and grade it without errors."""
    grades = {}
    for s in found:
        if s.last:
            ranks = s.first + np.sort(rng.permutation(s.population)[: counts[s.name]])
            grades[s.name] = ranks, ranked[ranks - 1]
        else:
            hits = rng.hypergeometric(beyond, s.population - beyond, counts[s.name])
            grades[s.name] = np.zeros(counts[s.name], int), np.arange(counts[s.name]) < hits
    return grades


def sample(seed, size=200, best=100, **settings):
    """Return a simulated survey, with its strata and grades."""
    before, top, ranked, beyond, n = simulated(seed, **settings)
    found = strata(TOP, n - TOP, 0, best)
    return before, top, ranked, beyond, found, grade(
        np.random.default_rng(seed), ranked, beyond, found, default_counts(found, size)
    )  # fmt: skip


def posterior(prior, counts, draws, rng):
    return graded.posterior_fractions(prior, counts, draws, rng, widened=False)


def true_purity(ranked):
    return ranked.cumsum() / np.arange(1, len(ranked) + 1)


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["as calibrated", "targets score higher"])
def test_intervals_cover_the_truth_and_are_narrower(shift):
    covered, widths, complete = [], [], []
    for seed in range(12):
        before, top, ranked, beyond, found, grades = sample(seed, shift=shift)
        after = combine(before, top, found, grades, draws=300, seed=seed)
        for rank in (300, TOP):
            covered.append(after.purity_lo[rank - 1] <= ranked[:rank].mean() <= after.purity_hi[rank - 1])
            without, with_grades = (p.purity_hi[rank - 1] - p.purity_lo[rank - 1] for p in (before, after))
            widths.append(with_grades / without)
        recall = ranked.sum() / (ranked.sum() + beyond)
        complete.append(after.completeness_lo[-1] <= recall <= after.completeness_hi[-1])
    assert np.mean(covered) >= 0.87 and np.mean(complete) >= 0.8 and np.median(widths) < 0.5


def test_purity_is_exact_where_all_are_graded():
    before, top, ranked, _, found, grades = sample(3)
    after = combine(before, top, found, grades, draws=200)
    for name in ("purity", "purity_lo", "purity_hi"):
        np.testing.assert_allclose(getattr(after, name)[:100], true_purity(ranked)[:100])
    np.testing.assert_array_equal(after.probability[:100], ranked[:100])


def test_blocks_are_a_partition_of_the_ranks_and_in_one_stratum_each():
    found = strata(30_000, 70_000, 0)
    first, last = graded._blocks(30_000, found)
    assert first[0] == 1 and last[-1] == 30_000 and (first[1:] == last[:-1] + 1).all()
    assert (last[:1000] == first[:1000]).all() and len(first) < 3000
    assert {s.last for s in found if s.last} <= set(last.tolist())
    assert len(graded._blocks(0, strata(0, 10, 0))[0]) == 0


def test_blocks_of_ranks_give_nearly_the_result_of_single_ranks(monkeypatch):
    before, top, _, _, found, grades = sample(5)
    exact = combine(before, top, found, grades, draws=1500)
    monkeypatch.setattr(graded, "nodes", lambda count: np.unique(np.geomspace(1, count, 120).round().astype(int)))
    rough = combine(before, top, found, grades, draws=1500)
    for name in ("purity", "purity_lo", "purity_hi", "completeness", "completeness_lo", "completeness_hi"):
        at = [99, 299, TOP - 1]
        np.testing.assert_allclose(getattr(rough, name)[at], getattr(exact, name)[at], atol=0.03)
    assert rough.probability.mean() == pytest.approx(exact.probability.mean(), abs=0.02)


def test_scores_alone_are_used_without_grades_and_grades_alone_where_they_contradict():
    before, top, _, _, n = simulated(2, calibration=(400, 8000))
    found = strata(TOP, n - TOP, 0)
    after = combine(before, top, found, {}, draws=300)
    assert before.purity_lo[299] <= after.purity[299] <= before.purity_hi[299]
    assert sum("only scores are used" in note for note in after.notes) == 4
    ranks = np.arange(found[2].first, found[2].first + 25)
    after = combine(before, top, found, {found[2].name: (ranks, np.ones(25, bool))}, draws=300)
    inside = slice(found[2].first - 1, found[2].last)
    assert before.probability[inside].mean() < 0.35 < 0.8 < after.probability[inside].mean()
    assert any("only grades are used" in note for note in after.notes)


def test_objects_rejected_by_the_prefilter_have_a_prior_of_their_own():
    before, top, _, _, n = simulated(1)
    beyond = ScoreHistogram.of(np.full(500, -6.0)).scaled_to(50_000)
    found = strata(TOP, n - TOP - 50_000, 50_000)
    after = combine(before, top, found, {}, beyond=beyond, draws=300)
    prior = graded.prior_fractions(before, top, found, beyond)
    assert np.median(prior["discarded"]) < 1e-4 < np.median(prior["not ranked"])
    assert 0 < after.prevalence < 0.02


@pytest.mark.parametrize("fraction", [0.0005, 0.1, 0.9])
def test_shifted_odds_have_the_given_mean(fraction):
    odds = np.linspace(-8, 3, 50)
    for size in (np.ones(50), np.arange(1, 51)):
        (moved,) = graded._shift_to_mean(odds, size, np.array([fraction]))
        assert moved @ size / size.sum() == pytest.approx(fraction, rel=0.02) and (np.diff(moved) >= 0).all()


def test_posterior_is_the_prior_without_grades_and_the_grades_if_many():
    rng = np.random.default_rng(0)
    for prior in (rng.beta(3.0, 40.0, 500), 10 ** rng.uniform(-7, -2, 500), np.zeros(5), np.ones(5)):
        drawn = posterior({"a": prior}, {"a": (0, 0)}, 20_000, rng)["a"]
        assert np.quantile(drawn, 0.5) == pytest.approx(np.quantile(prior, 0.5), rel=0.1, abs=1e-6)
        assert np.isfinite(drawn).all()
    many = posterior({"a": rng.beta(3.0, 40.0, 500)}, {"a": (900, 1000)}, 2000, rng)["a"]
    assert many.mean() == pytest.approx(0.9, abs=0.01)


def test_grades_of_one_stratum_inform_another_through_the_model():
    rng = np.random.default_rng(0)
    prior = {"best": np.linspace(0.1, 0.9, 800), "rest": np.linspace(0.01, 0.2, 800)}
    for k, low, high in ((30, 0.0, 0.1), (85, 0.12, 0.2)):
        drawn = posterior(prior, {"best": (k, 100), "rest": (0, 0)}, 4000, rng)["rest"]
        assert low < drawn.mean() < high


def test_steepness_follows_from_the_graded_objects():
    rng, odds, at = np.random.default_rng(0), np.linspace(0.5, -0.5, 200), np.arange(0, 200, 5)
    assert graded._draw_steepness(odds, np.ones(200), at, at < 100, 500, rng).mean() > 6
    assert graded._draw_steepness(odds, np.ones(200), at, at % 2 == 0, 500, rng).mean() < 4


def planner(before, top, n, rank):
    found = strata(TOP, n - TOP, 0, rank=rank)
    prior = graded.prior_fractions(before, top, found)
    return found, lambda size: allocate(found, prior, {}, size, rank)


@pytest.mark.parametrize(("rank", "width"), [(TOP, 0.12), (300, 0.1)])
def test_suggested_number_of_grades_gives_about_the_wanted_width(rank, width):
    widths, sizes = [], []
    for seed in range(5):
        before, top, ranked, beyond, n = simulated(seed, calibration=(80, 3000))
        found, plan = planner(before, top, n, rank)
        sizes.append(suggest(before, top, found, plan, rank, width))
        grades = grade(np.random.default_rng(seed), ranked, beyond, found, plan(sizes[-1]))
        after = combine(before, top, found, grades, draws=300, seed=seed)
        widths.append(after.purity_hi[rank - 1] - after.purity_lo[rank - 1])
    assert np.median(widths) == pytest.approx(width, rel=0.35) and min(sizes) > 40


def test_narrower_interval_needs_more_grades_and_never_more_than_all():
    before, top, _, _, n = simulated(1)
    found, plan = planner(before, top, n, 300)
    sizes = [suggest(before, top, found, plan, 300, width) for width in (0.9, 0.3, 0.1, 1e-9)]
    assert sizes == sorted(sizes) and sizes[0] < 10 and sizes[-1] <= n
    for rank, width in ((0, 0.1), (TOP + 1, 0.1), (10, 0.0), (10, 1.0)):
        with pytest.raises(InputError, match=f"rank {rank}, width {width:g}"):
            suggest(before, top, found, plan, rank, width)


def whole(first=1, last=TOP):
    return [Stratum("best", last - first + 1, first, last)]


@pytest.mark.parametrize(
    ("found", "grades", "message"),
    [
        ([Stratum("best", 100, 1, 100)], {}, "100 candidates"), (whole(2), {}, "ranks 1 to 1"),
        (whole(), {"other": ([1], [True])}, "'other'"), (whole(), {"best": ([601], [True])}, "1 to 600"),
        (whole(), {"best": ([1, 2], [True])}, "2 graded"),
    ],
)  # fmt: skip
def test_grades_that_do_not_fit_the_strata_are_refused(found, grades, message):
    before, top, *_ = simulated(1)
    arrays = {name: (np.array(ranks), np.array(hits)) for name, (ranks, hits) in grades.items()}
    with pytest.raises(InputError, match=message):
        combine(before, top, found, arrays)


def unconstrained(top=40, others=60, draws=2000):
    """Return an estimate of `top` candidates that the model does not constrain; other objects are no targets."""
    level = np.log(np.linspace(0.02, 0.98, draws) / np.linspace(0.98, 0.02, draws))
    curves = Curves(np.array([-1.0, 1.0]), level[:, None].repeat(2, axis=1), np.full(draws, np.inf))
    half, none = np.full(top, 0.5), np.full(top, np.nan)
    estimate = purity.Purity(0.1, 0.0, 1.0, *[half] * 7, *[none] * 3, [], curves, top / (1 + np.exp(-level)))
    return estimate, np.zeros(top), [Stratum("all", top, 1, top), Stratum("not ranked", others)]


@pytest.mark.parametrize(("confidence", "tail"), [(0.95, 0.025), (0.8, 0.1)])
def test_interval_is_beta_binomial(confidence, tail):
    """20 of 40 graded, 6 of them targets: the other 20 follow the Beta posterior, with at most 20 targets."""
    before, top, found = unconstrained()
    grades = {"all": (np.arange(1, 41, 2), np.arange(20) < 6)}
    after = combine(before, top, found, grades, draws=20_000, confidence=confidence)
    limits = np.array([after.purity_lo[-1], after.purity_hi[-1]])
    expected = (6 + betabinom.ppf([tail, 1 - tail], 20, 6.5, 14.5)) / 40
    np.testing.assert_allclose(limits, expected, atol=0.026)
    # A tail that is twice as long, or objects that count as if they were infinitely many, are further off than that.
    wrong_tail = (6 + betabinom.ppf([2 * tail, 1 - 2 * tail], 20, 6.5, 14.5)) / 40
    infinite = beta.ppf([tail, 1 - tail], 6.5, 14.5)
    assert abs(limits - expected).sum() < min(abs(limits - wrong_tail).sum(), abs(limits - infinite).sum())


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_intervals_are_quantiles_of_the_confidence(confidence, monkeypatch):
    before, top, _, _, found, grades = sample(5, size=120, best=20)
    requested, quantile = [], np.quantile
    monkeypatch.setattr(graded.np, "quantile", lambda x, q, **k: requested.append(q) or quantile(x, q, **k))
    combine(before, top, found, grades, draws=200, confidence=confidence)
    levels = sorted({round(float(x), 6) for q in requested for x in np.atleast_1d(q)})
    np.testing.assert_allclose(levels, [(1 - confidence) / 2, (1 + confidence) / 2])


def test_known_labels_are_certain():
    before, top, ranked, _, n = simulated(7)
    known = np.where(np.arange(TOP) % 3 == 0, ranked.astype(float), np.nan)
    targets = int((known == 1).sum())
    found = strata(TOP, n - TOP - 50, 0, known=known)
    assert sum(s.population for s in found if s.last) == TOP - len(known[known >= 0])
    after = combine(before, top, found, {}, known=known, known_beyond=(50, 20), draws=300)
    np.testing.assert_array_equal(after.probability[::3], ranked[::3])
    most = TOP - 200 + targets
    assert after.purity_lo[-1] * TOP >= targets and after.purity_hi[-1] * TOP <= most
    assert after.completeness_hi[-1] <= most / (most + 20)
    assert any("250 objects" in note for note in after.notes)
    found = [Stratum("all", 0, 1, TOP), Stratum("not ranked", n - TOP)]
    after = combine(before, top, found, {}, known=ranked.astype(float), draws=200)
    for name in ("purity", "purity_lo", "purity_hi"):
        np.testing.assert_allclose(getattr(after, name), true_purity(ranked))


def test_intervals_cover_the_truth_with_known_labels_and_grades():
    covered = []
    for seed in range(8):
        before, top, ranked, _, n = simulated(seed)
        rng = np.random.default_rng(seed)
        known = np.where(rng.random(TOP) < 0.3, ranked.astype(float), np.nan)
        found = strata(TOP, n - TOP, 0, known=known)
        grades = {}
        for s in found[:-1]:
            free = s.first + np.flatnonzero(np.isnan(known[s.first - 1 : s.last]))
            ranks = rng.permutation(free)[:30]
            grades[s.name] = ranks, ranked[ranks - 1]
        after = combine(before, top, found, grades, known=known, draws=300, seed=seed)
        covered.append(after.purity_lo[-1] <= ranked.mean() <= after.purity_hi[-1])
    assert np.mean(covered) >= 0.8


@pytest.mark.parametrize(
    ("known", "beyond", "message"),
    [
        (np.full(TOP, 0.5), (0, 0), r"\(600,\)"), (np.full(3, np.nan), (0, 0), r"\(3,\)"),
        (np.full(TOP, np.nan), (1, 2), "2 targets"), (np.ones(TOP), (0, 0), "'best'"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(known, beyond, message):
    before, top, *_ = simulated(1)
    with pytest.raises(InputError, match=message):
        combine(before, top, whole(), {}, known=known, known_beyond=beyond)


def test_grades_alone_are_used_if_purity_is_unknown():
    """A model of another survey predicts 0.9 and 0.1; neither affects graded or ungraded strata."""
    before, top, _, _, n = simulated(1)
    foreign = dataclasses.replace(before, unknown="another survey")
    found = strata(TOP, n - TOP, 0, 50)
    grades = grade(np.random.default_rng(0), np.zeros(TOP, bool), 0, found, default_counts(found, 100))
    after = combine(foreign, top, found, grades, draws=2000)
    assert not after.unknown and np.isnan(after.ambiguous).all()
    s = next(s for s in found if s.first == 51)
    count = len(grades[s.name][0])
    most = betabinom.ppf(0.975, s.population - count, 0.5, 0.5 + count)
    assert after.purity_hi[49] == 0 and after.purity_hi[s.last - 1] * s.last == pytest.approx(most, rel=0.5)
    without = combine(foreign, top, found, {}, draws=2000)
    assert without.purity_lo[49] < 0.05 and without.purity_hi[49] > 0.95


def test_completeness_and_prevalence_are_exact_where_all_are_graded():
    before, top, found = unconstrained()
    grades = {"all": (np.arange(1, 41), np.arange(40) < 10), "not ranked": (np.zeros(60, int), np.arange(60) < 5)}
    after = combine(before, top, found, grades, draws=200)
    assert after.completeness_lo[-1] == after.completeness_hi[-1] == pytest.approx(10 / 15)
    assert after.prevalence_lo == after.prevalence_hi == pytest.approx(0.15)
