"""Purity with grades: coverage of the intervals, narrower than without grades, and robust against a wrong model."""

from __future__ import annotations

import dataclasses

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


def survey(seed, *, prevalence=0.004, n=60_000, calibration=(40, 800), shift=0.0):
    """Return the results of a scan of a binormal survey, and the truth of its candidates and of the other objects."""
    rng = np.random.default_rng(seed)
    scores_of = lambda t: rng.normal(np.where(t, 1.5, -1.5), 1.0)  # noqa: E731
    targets = np.repeat([1, 0], calibration)
    calibrated = calibrate.fit(scores_of(targets), targets)
    truth = rng.random(n) < prevalence
    scores = scores_of(truth) + shift * truth
    order = np.argsort(-scores)
    histogram = ScoreHistogram.of(scores)
    top = scores[order[:TOP]]
    before = purity.estimate(calibrated, histogram, top, bootstrap=500, seed=seed)
    return rng, before, top, truth[order[:TOP]], int(truth[order[TOP:]].sum()), n


def grade(rng, ranked, beyond, n, size=200, best=100):
    """Draw the sample and grade it without errors."""
    found = strata(len(ranked), n - len(ranked), 0, best)
    counts, grades = default_counts(found, size), {}
    for s in found:
        if s.last:
            ranks = s.first + np.sort(rng.permutation(s.population)[: counts[s.name]])
            grades[s.name] = ranks, ranked[ranks - 1]
        else:
            hits = rng.hypergeometric(beyond, s.population - beyond, counts[s.name])
            grades[s.name] = np.zeros(counts[s.name], int), np.arange(counts[s.name]) < hits
    return found, grades


def graded_survey(seed, **how):
    rng, before, top, ranked, beyond, n = survey(seed, **how)
    found, grades = grade(rng, ranked, beyond, n)
    after = combine(before, top, found, grades, draws=400, seed=seed)
    return before, after, ranked, beyond


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["as calibrated", "targets score higher"])
def test_intervals_cover_and_are_narrower(shift):
    covered, widths, complete = [], [], []
    for seed in range(25):
        before, after, ranked, beyond = graded_survey(seed, shift=shift)
        true = ranked.cumsum() / np.arange(1, TOP + 1)
        for rank in (300, TOP):
            covered.append(after.purity_lo[rank - 1] <= true[rank - 1] <= after.purity_hi[rank - 1])
            wide = [p.purity_hi[rank - 1] - p.purity_lo[rank - 1] for p in (before, after)]
            widths.append(wide[1] / wide[0])
        recall = ranked.sum() / (ranked.sum() + beyond)
        complete.append(after.completeness_lo[-1] <= recall <= after.completeness_hi[-1])
    assert np.mean(covered) >= 0.9 and np.mean(complete) >= 0.88
    assert np.median(widths) < 0.5


def test_where_all_are_graded_nothing_is_left_to_chance():
    _, after, ranked, _ = graded_survey(3)
    true = ranked.cumsum() / np.arange(1, TOP + 1)
    np.testing.assert_allclose(after.purity[:100], true[:100])
    np.testing.assert_allclose(after.purity_lo[:100], true[:100])
    np.testing.assert_allclose(after.purity_hi[:100], true[:100])
    np.testing.assert_array_equal(after.probability[:100], ranked[:100])


def test_blocks_share_out_all_ranks_and_none_is_of_two_strata():
    found = strata(30_000, 70_000, 0)
    blocks = graded._blocks(30_000, found)
    assert blocks.first[0] == 1 and blocks.last[-1] == 30_000 and (blocks.first[1:] == blocks.last[:-1] + 1).all()
    assert blocks.size.sum() == 30_000 and (blocks.size[:1000] == 1).all() and len(blocks.size) < 3000
    assert {s.last for s in found if s.last} <= set(blocks.last.tolist())
    assert len(graded._blocks(0, strata(0, 10, 0)).size) == 0


def test_a_long_list_is_reckoned_in_blocks_as_it_would_be_rank_by_rank(monkeypatch):
    _, before, top, ranked, beyond, n = survey(5)
    found, grades = grade(np.random.default_rng(0), ranked, beyond, n)
    exact = combine(before, top, found, grades, draws=2000)
    monkeypatch.setattr(graded, "nodes", lambda count: np.unique(np.geomspace(1, count, 120).round().astype(int)))
    rough = combine(before, top, found, grades, draws=2000)
    for name in ("purity", "purity_lo", "purity_hi", "completeness", "completeness_lo", "completeness_hi"):
        at = [99, 299, TOP - 1]
        np.testing.assert_allclose(getattr(rough, name)[at], getattr(exact, name)[at], atol=0.03)
    assert rough.probability.mean() == pytest.approx(exact.probability.mean(), abs=0.02)


def test_without_grades_the_model_speaks_and_says_so():
    _, before, top, _, _, n = survey(1)
    after = combine(before, top, strata(TOP, n - TOP, 0), {}, draws=400)
    assert before.purity_lo[299] <= after.purity[299] <= before.purity_hi[299]
    assert sum("only scores are used" in note for note in after.notes) == 4


def test_where_grades_contradict_the_model_they_win_and_it_is_said():
    _, before, top, _, _, n = survey(2, calibration=(400, 8000))
    found = strata(TOP, n - TOP, 0)
    lower = found[2]
    ranks = np.arange(lower.first, lower.first + 25)
    after = combine(before, top, found, {lower.name: (ranks, np.ones(25, bool))}, draws=400)
    inside = slice(lower.first - 1, lower.last)
    assert before.probability[inside].mean() < 0.35 < 0.8 < after.probability[inside].mean()
    assert any("only grades are used" in note for note in after.notes)


def test_what_the_first_look_discarded_has_a_prior_of_its_own():
    _, before, top, _, _, n = survey(4)
    beyond = ScoreHistogram.of(np.full(500, -6.0))
    beyond = beyond.scaled_to(50_000)
    found = strata(TOP, n - TOP - 50_000, 50_000)
    after = combine(before, top, found, {}, beyond=beyond, draws=400)
    chance = graded.prior_fractions(before, top, found, beyond)
    assert np.median(chance["discarded"]) < 1e-4 < np.median(chance["not ranked"])
    assert 0 < after.prevalence < 0.02


def test_a_share_is_met_by_moving_the_odds():
    odds = np.linspace(-8, 3, 50)
    for share in (0.0005, 0.1, 0.9):
        moved = graded._shift_to_mean(odds, np.ones(50), np.array([share]))
        assert moved.mean() == pytest.approx(share, rel=0.02) and (np.diff(moved[0]) >= 0).all()
        size = np.arange(1, 51)
        assert graded._shift_to_mean(odds, size, np.array([share]))[0] @ size / size.sum() == pytest.approx(
            share, rel=0.02
        )


def test_without_grades_the_prior_is_that_of_the_draws():
    rng = np.random.default_rng(0)
    for prior in (rng.beta(3.0, 40.0, 500), 10 ** rng.uniform(-7, -2, 500), np.zeros(5), np.ones(5)):
        drawn = graded._posterior({"a": prior}, {"a": (0, 0)}, 20_000, rng)["a"]
        assert np.quantile(drawn, 0.5) == pytest.approx(np.quantile(prior, 0.5), rel=0.1, abs=1e-6)
        assert np.isfinite(drawn).all()
    many = graded._posterior({"a": rng.beta(3.0, 40.0, 500)}, {"a": (900, 1000)}, 2000, rng)["a"]
    assert many.mean() == pytest.approx(0.9, abs=0.01)


def test_grades_of_one_stratum_speak_for_another_as_far_as_the_model_ties_them():
    rng = np.random.default_rng(0)
    prior = {"best": np.linspace(0.1, 0.9, 800), "rest": np.linspace(0.01, 0.2, 800)}
    for k, low, high in ((30, 0.0, 0.1), (85, 0.12, 0.2)):
        drawn = graded._posterior(prior, {"best": (k, 100), "rest": (0, 0)}, 4000, rng)["rest"]
        assert low < drawn.mean() < high


def test_graded_objects_say_how_steeply_the_share_falls():
    rng, odds = np.random.default_rng(0), np.linspace(0.5, -0.5, 200)
    at = np.arange(0, 200, 5)
    assert graded._draw_steepness(odds, np.ones(200), at, at < 100, 500, rng).mean() > 6
    assert graded._draw_steepness(odds, np.ones(200), at, at % 2 == 0, 500, rng).mean() < 4


@pytest.mark.parametrize(("rank", "width"), [(TOP, 0.12), (300, 0.1)])
def test_so_many_as_suggested_give_about_the_wanted_width(rank, width):
    widths, sizes = [], []
    for seed in range(8):
        rng, before, top, ranked, beyond, n = survey(seed, calibration=(80, 3000))
        found = strata(TOP, n - TOP, 0, rank=rank)
        prior = graded.prior_fractions(before, top, found)
        plan = lambda size, found=found, prior=prior: allocate(found, prior, {}, size, rank)  # noqa: E731
        sizes.append(suggest(before, top, found, plan, rank, width))
        counts = plan(sizes[-1])
        grades = {}
        for s in found:
            chosen = rng.permutation(s.population)[: counts[s.name]] + s.first
            hits = rng.hypergeometric(beyond, s.population - beyond, counts[s.name]) if not s.last else 0
            grades[s.name] = (chosen, ranked[chosen - 1]) if s.last else (
                np.zeros(counts[s.name], int), np.arange(counts[s.name]) < hits)  # fmt: skip
        after = combine(before, top, found, grades, draws=400, seed=seed)
        widths.append(after.purity_hi[rank - 1] - after.purity_lo[rank - 1])
    assert np.median(widths) == pytest.approx(width, rel=0.35)
    assert min(sizes) > 40


def test_more_is_suggested_for_less_width_and_never_more_than_there_is():
    _, before, top, _, _, n = survey(1)
    found = strata(TOP, n - TOP, 0)
    prior = graded.prior_fractions(before, top, found)
    plan = lambda size: allocate(found, prior, {}, size, 300)  # noqa: E731
    ask = lambda width: suggest(before, top, found, plan, 300, width)  # noqa: E731
    sizes = [ask(width) for width in (0.9, 0.3, 0.1, 0.03, 1e-9)]
    assert sizes == sorted(sizes) and sizes[0] < 10 and sizes[-1] <= n
    for rank, width in ((0, 0.1), (TOP + 1, 0.1), (10, 0.0), (10, 1.0)):
        with pytest.raises(InputError, match="use a rank of 1 to 600"):
            suggest(before, top, found, plan, rank, width)


@pytest.mark.parametrize(
    ("found", "grades", "message"),
    [
        ([Stratum("best", 100, 1, 100)], {}, "cover 100 candidates, the run has 600"),
        ([Stratum("best", 100, 2, 600)], {}, "ranks 1 to 1 are in no stratum"),
        (
            [Stratum("best", 600, 1, 600)],
            {"other": (np.array([1]), np.array([True]))},
            "'other', which is not in the sample",
        ),
        ([Stratum("best", 600, 1, 600)], {"best": (np.array([601]), np.array([True]))}, "outside 1 to 600"),
        ([Stratum("best", 600, 1, 600)], {"best": (np.array([1, 2]), np.array([True]))}, "2 graded of 600"),
    ],
)
def test_what_does_not_fit_together_is_refused(found, grades, message):
    _, before, top, *_ = survey(1, n=3000)
    with pytest.raises(InputError, match=message):
        combine(before, top, found, grades)


def exact(top=40, others=60, draws=2000):
    """Return an estimate of `top` candidates that the model does not constrain; other objects are no targets."""
    level = np.log(np.linspace(0.02, 0.98, draws) / np.linspace(0.98, 0.02, draws))
    curves = Curves(np.array([-1.0, 1.0]), level[:, None].repeat(2, axis=1), np.full(draws, np.inf))
    each, none = np.full(top, 0.5), np.full(top, np.nan)
    return purity.Purity(
        0.1, 0.0, 1.0, each, each, each, each, each, each, each, none, none, none, [], curves,
        top / (1 + np.exp(-level)),
    ), np.zeros(top), [Stratum("all", top, 1, top), Stratum("not ranked", others)]  # fmt: skip


@pytest.mark.parametrize(("confidence", "tail"), [(0.95, 0.025), (0.8, 0.1)])
def test_the_interval_is_the_beta_binomial_one_of_its_level(confidence, tail):
    """20 of 40 graded, 6 of them targets: the other 20 follow the Beta posterior, with at most 20 targets."""
    before, top, found = exact()
    ranks = np.arange(1, 41, 2)
    after = combine(before, top, found, {"all": (ranks, np.arange(20) < 6)}, draws=20_000, confidence=confidence)
    got = np.array([after.purity_lo[-1], after.purity_hi[-1]])
    wanted = (6 + betabinom.ppf([tail, 1 - tail], 20, 6.5, 14.5)) / 40
    np.testing.assert_allclose(got, wanted, atol=0.026)
    # A tail that is twice as long, or objects that count as if they were infinitely many, are further off than that.
    other = (6 + betabinom.ppf([2 * tail, 1 - 2 * tail], 20, 6.5, 14.5)) / 40
    far = beta.ppf([tail, 1 - tail], 6.5, 14.5)
    assert abs(got - wanted).sum() < min(abs(got - other).sum(), abs(got - far).sum())


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_every_interval_is_of_the_quantiles_of_its_level(confidence, monkeypatch):
    """Purity, completeness and prevalence: intervals are the requested quantiles of the draws."""
    _, before, top, ranked, beyond, n = survey(6)
    found, grades = grade(np.random.default_rng(1), ranked, beyond, n, size=120, best=20)
    asked = []
    quantile = np.quantile
    monkeypatch.setattr(graded.np, "quantile", lambda x, q, **k: asked.append(q) or quantile(x, q, **k))
    combine(before, top, found, grades, draws=200, confidence=confidence)
    tail = (1 - confidence) / 2
    np.testing.assert_allclose(sorted({round(float(x), 6) for q in asked for x in np.atleast_1d(q)}), [tail, 1 - tail])


def test_known_labels_are_facts():
    """They count in purity and completeness with certainty; the uncertainty of other objects is unchanged."""
    _, before, top, ranked, _, n = survey(7)
    known = np.where(np.arange(TOP) % 3 == 0, ranked.astype(float), np.nan)
    some = int((known == 1).sum())
    found = strata(TOP, n - TOP - 50, 0, known=known)
    assert sum(s.population for s in found if s.last) == TOP - len(known[known >= 0])
    after = combine(before, top, found, {}, known=known, known_beyond=(50, 20), draws=400)
    np.testing.assert_array_equal(after.probability[::3], ranked[::3])
    assert after.purity_lo[-1] * TOP >= some and after.purity_hi[-1] * TOP <= TOP - 200 + some
    assert after.completeness_hi[-1] <= (TOP - 200 + some) / (TOP - 200 + some + 20)
    assert any("250 objects whose label was known before" in note for note in after.notes)
    # Where all is known, nothing is uncertain.
    known = ranked.astype(float)
    found = [Stratum("all", 0, 1, TOP), Stratum("not ranked", n - TOP)]
    after = combine(before, top, found, {}, known=known, draws=200)
    true = ranked.cumsum() / np.arange(1, TOP + 1)
    for name in ("purity", "purity_lo", "purity_hi"):
        np.testing.assert_allclose(getattr(after, name), true)


def test_known_labels_and_grades_cover_the_truth_together():
    covered = []
    for seed in range(10):
        rng, before, top, ranked, _, n = survey(seed)
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
        (np.full(TOP, 0.5), (0, 0), "give 1, 0 or NaN"),
        (np.full(3, np.nan), (0, 0), "give 1, 0 or NaN"),
        (np.full(TOP, np.nan), (1, 2), "2 targets among 1 objects of known label"),
        (np.ones(TOP), (0, 0), "600 objects, and 0 of its ranks"),
    ],
)
def test_labels_that_do_not_fit_are_refused(known, beyond, message):
    _, before, top, *_ = survey(1, n=3000)
    with pytest.raises(InputError, match=message):
        combine(before, top, [Stratum("all", TOP, 1, TOP)], {}, known=known, known_beyond=beyond)


def test_where_purity_is_unknown_grades_speak_alone():
    """A model of another survey predicts 0.9 and 0.1; neither affects graded or ungraded strata."""
    rng, before, top, _, _, n = survey(11)
    carried = dataclasses.replace(before, unknown="another survey")
    found, grades = grade(rng, np.zeros(TOP, bool), 0, n, size=100, best=50)
    after = combine(carried, top, found, grades, draws=2000)
    assert not after.unknown and np.isnan(after.ambiguous).all()
    s = next(s for s in found if s.first == 51)
    graded_ones = len(grades[s.name][0])
    limit = beta(0.5, 0.5 + graded_ones).ppf(0.975)
    assert after.purity_hi[49] == 0 and after.purity_hi[s.last - 1] == pytest.approx(
        limit * (s.population - graded_ones) / s.last, rel=0.35
    )
    nothing = combine(carried, top, found, {}, draws=2000)
    assert nothing.purity_lo[49] < 0.05 and nothing.purity_hi[49] > 0.95


def test_where_all_is_fully_graded_completeness_and_prevalence_are_exact():
    """The finite-population term vanishes, for the list and for other objects."""
    before, top, found = exact()
    grades = {
        "all": (np.arange(1, 41), np.arange(40) < 10), "not ranked": (np.zeros(60, int), np.arange(60) < 5),
    }  # fmt: skip
    after = combine(before, top, found, grades, draws=200)
    assert after.completeness_lo[-1] == after.completeness_hi[-1] == pytest.approx(10 / 15)
    assert after.prevalence_lo == after.prevalence_hi == pytest.approx(0.15)
