"""Injection: selection of hosts, and labels, targets and origins of the training set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.labels.settings import LabelRules, SyntheticSettings
from galscan.synthesis import injection
from galscan.synthesis.features import artefact, companion, dust_lane, light
from galscan.synthesis.flux import Stretch
from galscan.synthesis.injection import SEEING, Candidates, injected_set, mined_rows
from galscan.synthesis.synthetic_set import HOST, INJECTED, MINED
from tests.synthesis.features.test_dust_lane import STRETCH, bar, galaxies

SIZE = 48
INJECT = {"feature": "dust_lane", "hosts": "t <= 0 and visible_dust == 0", "values": {"visible_dust": [0.4, 1.0]}}
IMAGES = galaxies(12, SIZE, seed=3)


def rules(**changes) -> LabelRules:
    given = {
        "positive": "t <= 0 and visible_dust >= 0.5", "negative": "t > 0", "synthetic": {"from": "t <= 0"},
        "inject": INJECT,
    } | changes  # fmt: skip
    return LabelRules.model_validate({k: v for k, v in given.items() if v is not None})


def candidates(count: int = 12, *, labelled: int | None = None, **changes) -> Candidates:
    """Return galaxies: labelled early types without dust, and unlabelled ones that a network takes for such."""
    labelled = count if labelled is None else labelled
    labels = pd.DataFrame(
        {"t": -3.0, "visible_dust": 0.0, "inclination": np.linspace(0, 1, count)}, index=range(count), dtype=np.float32
    )
    labels.iloc[labelled:] = np.nan
    predicted = pd.DataFrame({"t": np.full(count, -2.0), "visible_dust": 0.0})
    given = {
        "images": np.resize(IMAGES, (count, SIZE, SIZE, 3)).copy(), "labels": labels, "predicted": predicted,
        "logit": np.linspace(-1, 1, count), "survey": np.zeros(count, int), "frame": np.full(count, 30.0),
        "stretches": [STRETCH], "bands": ["irg"],
    }  # fmt: skip
    return Candidates(**given | changes)


def bars(count: int, random: np.random.Generator) -> np.ndarray:
    return np.concatenate([bar(depth) for depth in np.resize([0.3, 0.6, 1.0], count)])


SOURCES = {"dust_lane": bars, "artefact": artefact.prior}


def made(given: Candidates, count: int = 20, *, seed: int = 0, mined: int = 0, sources=SOURCES, **changes):
    return injected_set(given, rules(**changes), SyntheticSettings(injected=count, mined=mined), sources, seed=seed)


def row_of(image: np.ndarray, given: Candidates) -> int:
    """Return the candidate with identical pixels."""
    same = np.flatnonzero((given.images == image).all((1, 2, 3)))
    assert len(same) == 1
    return int(same[0])


def test_every_injected_target_is_beside_its_untouched_host():
    given = candidates()
    synthetic, counts = made(given, 30)
    injected = np.flatnonzero(synthetic.origin == INJECTED)
    assert counts["injected"] == len(injected) == 30
    assert (synthetic.target[injected] == 1).all() and (synthetic.depth[injected] >= dust_lane.LEAST_DEPTH).all()
    hosts = synthetic.host[injected]
    assert (synthetic.origin[hosts] == HOST).all() and (synthetic.target[hosts] == 0).all()
    assert (synthetic.host[hosts] == -1).all() and len(set(hosts)) == (synthetic.origin == HOST).sum()
    for row, host in zip(injected, hosts, strict=True):
        below = row_of(synthetic.images[host], given)
        kept = ["t", "inclination"]
        assert synthetic.labels.loc[row, kept].tolist() == given.labels.loc[below, kept].tolist()
        changed = (synthetic.images[row] != given.images[below]).any(-1)
        assert 0 < changed.mean() < 0.7
        assert synthetic.images[row][changed].mean() < given.images[below][changed].mean()
    np.testing.assert_allclose(synthetic.labels.loc[hosts, "visible_dust"], 0)
    assert np.isnan(synthetic.depth[hosts]).all()


def test_the_deeper_the_feature_the_more_plainly_it_is_labelled():
    synthetic, _ = made(candidates(), 30)
    injected = synthetic.origin == INJECTED
    depth, dust = synthetic.depth[injected], synthetic.labels["visible_dust"].to_numpy()[injected]
    order = np.argsort(depth)
    assert np.ptp(depth) > 0.1 and (np.diff(dust[order]) >= 0).all() and np.ptp(dust) > 0.2
    assert (dust[depth >= rules().inject.plain] == 1).all()


def test_answers_that_fall_where_the_feature_is_plain():
    given = INJECT | {"values": {"inclination": [0.6, 0.1]}}
    synthetic, _ = made(candidates(), 30, inject=given, positive="t <= 0")
    injected = synthetic.origin == INJECTED
    found = synthetic.labels["inclination"].to_numpy()[injected][np.argsort(synthetic.depth[injected])]
    assert (np.diff(found) <= 0).all() and (found >= 0.1 - 1e-6).all() and (found <= 0.6 + 1e-6).all()


def test_hosts_are_only_those_that_satisfy_the_rule():
    given = candidates()
    given.labels.loc[[0, 3], "t"] = 4
    given.labels.loc[5, "visible_dust"] = 0.25
    given.labels.loc[6, "visible_dust"] = np.nan  # never asked
    synthetic, counts = made(given, 60)
    used = {row_of(image, given) for image in synthetic.images[synthetic.origin == HOST]}
    assert used == set(range(12)) - {0, 3, 5, 6} and counts["hosts"] == 8 and counts["hosts_unlabelled"] == 0


def test_unlabelled_galaxies_serve_where_their_predicted_answers_satisfy_the_rule():
    given = candidates(labelled=2)
    given.predicted.loc[[4, 7], "t"] = 3
    given.predicted.loc[0, "t"] = 9  # predictions of labelled ones do not count
    given.labels.loc[1, "t"] = 9
    synthetic, counts = made(given, 80)
    used = {row_of(image, given) for image in synthetic.images[synthetic.origin == HOST]}
    # The upper tenth by score may be targets: the last one is not taken for clean.
    assert used == set(range(12)) - {1, 4, 7, 11}
    assert counts["hosts"] == 8 and counts["hosts_unlabelled"] == 7
    unlabelled = [r for r in np.flatnonzero(synthetic.origin == INJECTED) if np.isnan(synthetic.labels["t"][r])]
    assert unlabelled and synthetic.labels.loc[unlabelled, "visible_dust"].between(0.4, 1).all()
    assert synthetic.labels.loc[unlabelled, "inclination"].isna().all()


def test_unlabelled_galaxies_may_have_a_rule_of_their_own():
    given = candidates(labelled=2)
    given.predicted["visible_dust"] = np.linspace(0, 1, 12)  # never exactly 0
    inject = INJECT | {"unlabelled_hosts": "t <= 0 and visible_dust < 0.3"}
    _, counts = made(given, inject=inject)
    assert counts["hosts_unlabelled"] == 1 and counts["hosts"] == 3  # rows 2 and 3, of which one scores highest
    assert made(given)[1]["hosts_unlabelled"] == 0


def test_without_a_network_no_unlabelled_galaxy_is_a_host():
    given = candidates(labelled=3, predicted=pd.DataFrame(index=range(12)), logit=np.full(12, np.nan))
    synthetic, counts = made(given, mined=10, mined_negatives="t > 0")
    assert counts["hosts"] == 3 and counts["hosts_unlabelled"] == 0 and counts["mined"] == 0
    assert not (synthetic.origin == MINED).any()


def test_a_network_that_does_not_predict_what_the_rule_names_finds_no_hosts():
    given = candidates(labelled=3, predicted=pd.DataFrame({"t": np.full(12, -2.0)}))
    assert made(given)[1]["hosts"] == 3


def test_galaxies_that_cannot_be_measured_are_counted_and_left_alone():
    given = candidates()
    given.images[[2, 9]] = 7  # nothing but sky
    synthetic, counts = made(given, 60)
    assert counts["hosts_not_measured"] == 2 and counts["hosts"] == 10
    assert not (synthetic.images == 7).all((1, 2, 3)).any()


def test_features_that_nobody_sees_are_counted_and_left_out():
    def faint(count, random):
        maps = bars(count, random)
        maps[::2] *= 0.01
        return maps

    synthetic, counts = made(candidates(), 30, sources={"dust_lane": faint})
    injected = synthetic.origin == INJECTED
    assert counts["invisible"] >= 15 and counts["injected"] == injected.sum() == 30
    hosts = synthetic.images[synthetic.host[injected]]
    assert (synthetic.images[injected] != hosts).any((1, 2, 3)).all()
    nothing = {"dust_lane": lambda count, random: 0 * bars(count, random)}
    with pytest.raises(InputError, match=f"12 hosts.* {SIZE} px"):
        made(candidates(), 10, sources=nothing)


def test_companions_are_real_galaxies_beside_the_host_and_donors_too_faint_for_it_an_error(monkeypatch):
    given = candidates()
    inject = INJECT | {"feature": "companion", "values": {"visible_dust": [0.6, 1.0]}, "plain": 0.6}
    synthetic, counts = made(given, 12, sources={"companion": companion.prior}, inject=inject)
    injected = np.flatnonzero(synthetic.origin == INJECTED)
    assert counts["injected"] == 12 and (synthetic.depth[injected] >= companion.LEAST_DEPTH).all()
    pixels = synthetic.images.astype(float).mean((1, 2, 3))
    assert (pixels[injected] > pixels[synthetic.host[injected]]).all()
    monkeypatch.setattr(light, "BRIGHT", 1000.0)
    with pytest.raises(InputError, match=f"'companion' .*donors.* {SIZE} px"):
        made(given, 12, sources={"companion": companion.prior}, inject=inject)


def test_what_is_too_faint_for_the_positive_rule_is_negative():
    given = candidates(labelled=6)
    given.predicted.loc[8, "t"] = -0.01
    inject = INJECT | {"hosts": "visible_dust == 0"}
    synthetic, counts = made(given, 60, inject=inject, positive="t <= -1 and visible_dust >= 0.75")
    injected = (synthetic.origin == INJECTED) & (synthetic.target == 1)
    assert counts["too_faint"] > 0 and counts["injected"] == injected.sum() > 20
    assert (synthetic.labels["visible_dust"][injected] >= 0.75).all()
    faint = (synthetic.origin == INJECTED) & (synthetic.target == 0)
    assert counts["too_faint"] == faint.sum() <= 60 // 4 and (synthetic.depth[faint] >= dust_lane.LEAST_DEPTH).all()
    result = synthetic.labels[faint]
    assert (result["visible_dust"][result["t"].notna()] < 0.75).all()
    assert (synthetic.origin[synthetic.host[faint]] == HOST).all()
    used = {row_of(image, given) for image in synthetic.images[synthetic.host[injected]]}
    assert 8 not in used and used & {6, 7, 9, 10}  # of unlabelled ones the prediction counts


def test_masked_answers_decide_whether_it_is_a_target_and_are_not_trained_on():
    given = candidates()
    positive = "t <= 0 and visible_dust >= 0.75"
    inject = INJECT | {"masked": ["inclination", "visible_dust"]}
    masked, counts = made(given, 30, inject=inject, positive=positive)
    known, _ = made(given, 30, positive=positive)
    injected = masked.origin == INJECTED
    assert masked.labels.loc[injected, ["inclination", "visible_dust"]].isna().all(axis=None)
    assert masked.labels.loc[injected, "t"].notna().all() and masked.labels.loc[~injected].notna().all(axis=None)
    np.testing.assert_array_equal(masked.target, known.target)
    assert counts["too_faint"] > 0


def test_votes_of_a_question_add_up_to_one_with_the_feature():
    votes = [[0.1, 0.9, 0.0, 0.0, 0.0], [0.3, 0.7, 0.0, 0.2, 0.8], [0.0, 1.0, np.nan, np.nan, np.nan]]
    labels = pd.DataFrame(votes, columns=["odd", "not_odd", "ring", "merger", "other"], dtype=np.float32)
    labels["odd"], labels["ring"] = np.float32(0.9), np.float32(0.6)
    injection._rescale_votes(labels, ["odd", "ring"], [["odd", "not_odd"], ["ring", "merger", "other"], ["a", "b"]])
    np.testing.assert_allclose(labels["not_odd"], 0.1, atol=1e-6)
    np.testing.assert_allclose(labels[["merger", "other"]], [[0.2, 0.2], [0.08, 0.32], [0.2, 0.2]], atol=1e-6)
    before = labels.copy()
    injection._rescale_votes(labels, ["ring"], [])  # no votes
    injection._rescale_votes(labels, ["ring", "merger", "other"], [["ring", "merger", "other"]])  # all are given
    pd.testing.assert_frame_equal(labels, before)
    assert (labels.dtypes == np.float32).all()


class Companions:
    """A feature that replaces each host by its donor."""

    CONDITIONS, LEAST_DEPTH, DONORS = {}, 0.1, True

    def __init__(self):
        self.deepened = 0

    def prior(self, count, random):
        return np.ones((count, 1, 1, 1), np.float32)

    def deepen(self, maps, factor):
        self.deepened += len(maps)
        return maps

    def inject(self, images, hosts, maps, stretch, random, *, bands, seeing, donors):
        assert donors.geometry.measured.all() and len(donors.images) == len(images)
        return donors.images, np.full(len(images), 0.15, np.float32)


def with_companions(given, monkeypatch, **changes):
    feature = Companions()
    monkeypatch.setattr(injection, "find_feature", lambda name: feature)
    inject = INJECT | {"feature": "companion"} | changes
    return made(given, 30, sources={"companion": feature.prior}, inject=inject, positive="t <= 0")[0], feature


def test_a_donor_is_another_galaxy_of_the_same_store(monkeypatch):
    given = candidates(14, survey=np.repeat([0, 1], 7), stretches=[STRETCH] * 2, bands=["irg"] * 2)
    given.images[:] = galaxies(14, SIZE, seed=4)
    synthetic, feature = with_companions(given, monkeypatch, donors="inclination < 0.4 or inclination > 0.6")
    rows = np.flatnonzero(synthetic.origin == INJECTED)
    donors = np.array([row_of(image, given) for image in synthetic.images[rows]])
    hosts = np.array([row_of(image, given) for image in synthetic.images[synthetic.host[rows]]])
    assert len(rows) == 30 and (donors != hosts).all() and feature.deepened > 0
    np.testing.assert_array_equal(given.survey[donors], given.survey[hosts])
    assert not set(donors) & set(np.flatnonzero(given.labels["inclination"].between(0.4, 0.6)))


def test_too_few_donors_are_refused(monkeypatch):
    with pytest.raises(InputError, match=f"2 galaxies .*inclination < 0.1.* {injection.LEAST_DONORS},"):
        with_companions(candidates(), monkeypatch, donors="inclination < 0.1")


def test_hosts_are_drawn_alike_wherever_they_stand():
    given = candidates(labelled=12)
    synthetic, _ = made(given, 240, positive="t <= 0 and visible_dust >= 0.75")
    hosts = synthetic.images[synthetic.host[(synthetic.origin == INJECTED) & (synthetic.target == 1)]]
    rows = np.array([row_of(image, given) for image in hosts])
    assert len(rows) == 240 and 0.38 < (rows < 6).mean() < 0.62


def test_nothing_can_be_injected_without_a_host():
    cases = [candidates(), candidates(), candidates()]
    cases[0].labels["t"] = np.float32(5)
    cases[1].labels[:] = np.nan  # and of the unlabelled ones no network is asked
    cases[1] = replace(cases[1], predicted=pd.DataFrame(index=range(12)))
    cases[2].images[:] = 0
    for given in cases:
        with pytest.raises(InputError) as caught:
            made(given)
        assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        made(candidates(), inject=None)
    with pytest.raises(InputError):
        made(candidates(), inject=INJECT | {"hosts": "no_such_answer > 0"})


def test_the_same_seed_makes_the_same():
    sources = {"dust_lane": dust_lane.prior}
    one, again, other = (made(candidates(), 12, seed=seed, sources=sources) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[0].images, again[0].images)
    pd.testing.assert_frame_equal(one[0].labels, again[0].labels)
    assert one[1] == again[1]
    assert one[0].images.shape != other[0].images.shape or (one[0].images != other[0].images).any()


def test_the_same_feature_on_others_makes_negatives():
    given = candidates()
    given.labels.loc[8:, "t"] = 5
    negatives = [
        {"feature": "dust_lane", "hosts": "t >= 2", "values": {"visible_dust": [0.4, 1.0]}},
        {"feature": "artefact", "hosts": INJECT["hosts"]}, {"feature": "artefact", "hosts": "t > 9"},
    ]  # fmt: skip
    synthetic, counts = made(given, 48, inject_negatives=negatives)
    negative = np.flatnonzero((synthetic.origin == INJECTED) & (synthetic.target == 0))
    assert counts["injected_negatives"] == len(negative) == 8  # of 12, a third has no host
    assert (synthetic.host[negative] == -1).all()
    late = synthetic.labels["t"].to_numpy()[negative] == 5
    dust = synthetic.labels["visible_dust"].to_numpy()[negative]
    assert (dust[late] >= 0.4).all() and late.any() and (dust[~late] == 0).all() and (~late).sum() == 4
    assert set(synthetic.labels["t"][synthetic.target == 1]) == {-3}
    assert made(given, 3, inject_negatives=negatives)[1]["injected_negatives"] == 0  # a quarter of three is none


def test_mined_negatives_are_the_unlabelled_that_score_highest():
    given = candidates(labelled=4, logit=np.array([9, 9, 9, 9, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.6, np.pi]))
    given.predicted["t"] = 6.0
    given.predicted.loc[11, "t"] = -1
    assert mined_rows(given, "t > 2", 3).tolist() == [5, 9, 7]
    assert mined_rows(given, "t > 2", 100).tolist() == [5, 9, 7, 10, 6, 8, 4]
    assert not any(len(mined_rows(given, rule, n)) for rule, n in (("", 3), ("t > 2", 0), ("t > 20", 3)))
    given.labels.loc[:3, "t"] = 7
    given.labels.loc[:1, "t"] = -3
    synthetic, counts = made(given, 4, mined=2, mined_negatives="t > 2")
    mined = np.flatnonzero(synthetic.origin == MINED)
    assert [row_of(image, given) for image in synthetic.images[mined]] == [5, 9] and counts["mined"] == 2
    assert (synthetic.target[mined] == 0).all() and synthetic.labels.iloc[mined].isna().all(axis=None)
    assert (synthetic.host[mined] == -1).all() and (synthetic.labels.dtypes == np.float32).all()


def test_seeing_has_fewer_pixels_where_a_pixel_is_larger():
    given = candidates(4, frame=np.array([SIZE * 0.4, SIZE * 0.8, np.nan, 0]))
    found = given.seeing(np.arange(4))
    assert found[0] == pytest.approx(SEEING / 2.3548 / 0.4)
    assert found[0] == pytest.approx(2 * found[1]) and found[2:].tolist() == [1, 1]
    assert given.seeing(np.array([1, 0])).tolist() == [found[1], found[0]]


def test_every_store_has_its_own_stretch_and_bands(monkeypatch):
    calls, real = [], dust_lane.inject

    def spy(images, hosts, maps, stretch, random, *, bands, seeing):
        calls.append((len(images), stretch, bands, seeing.tolist()))
        return real(images, hosts, maps, stretch, random, bands=bands, seeing=seeing)

    monkeypatch.setattr(dust_lane, "inject", spy)
    stretches = [Stretch(), Stretch(0.02), Stretch(0.2)]
    survey, frame = np.resize([0, 1], 12), np.resize([20.0, 40.0], 12)
    given = candidates(survey=survey, frame=frame, stretches=stretches, bands=["irg", "zrg", "irg"])
    synthetic, _ = made(given, 20)
    assert [call[1:3] for call in calls[:2]] == [(stretches[0], "irg"), (stretches[1], "zrg")]
    assert sum(call[0] for call in calls[:2]) == 20 < len(synthetic)
    expected = [{np.round(SEEING / 2.3548 * SIZE / f, 3)} for f in (20, 40)]
    assert [set(np.round(call[3], 3)) for call in calls[:2]] == expected


def test_no_more_hosts_than_are_of_use_are_measured(monkeypatch):
    monkeypatch.setattr(injection, "MAX_HOSTS", 5)
    synthetic, counts = made(candidates(), 60)
    assert counts["hosts"] == 5 == (synthetic.origin == HOST).sum()


def test_a_galaxy_is_measured_once(monkeypatch):
    calls, real = [], injection.measure_hosts
    monkeypatch.setattr(injection, "measure_hosts", lambda images: (calls.append(len(images)), real(images))[1])
    given = candidates()
    first = given.hosts(np.array([3, 1, 3]))
    again = given.hosts(np.arange(12))
    assert sum(calls) == 12 and first.radius.tolist() == again.radius[[3, 1, 3]].tolist()
    assert len(given.hosts(np.empty(0, int)).x) == 0
