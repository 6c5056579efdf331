"""Sources of maps: the prior, or the diffusion model if there are enough measured maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import InputError
from galscan.core.files import file_digest
from galscan.labels.settings import InjectRule, MapSettings
from galscan.synthesis.diffusion import maps as module
from galscan.synthesis.diffusion.map_model import MapFlow, make_config, train_maps
from galscan.synthesis.diffusion.maps import (
    ENOUGH_MEASURED,
    LEAST_MEASURED,
    check_feature,
    conditions_of,
    copies,
    fine_tune,
    load_start,
    load_weights,
    map_source,
    measured_maps,
    measured_weight,
    train_on_prior,
)
from galscan.synthesis.features import base, dust_lane
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import measure_hosts
from tests.synthesis.test_injection import candidates

CPU = torch.device("cpu")
WIDTHS = (16, 32)
RULE = InjectRule(feature="dust_lane", hosts="t <= 0", measure="visible_dust >= 0.5")
PRIOR = dust_lane.prior(40, np.random.default_rng(8))
K = len(dust_lane.CONDITIONS)


def settings(**changes) -> MapSettings:
    return MapSettings(kind="maps", **{"widths": WIDTHS, "start": "none", "maps": "diffusion"} | changes)


def model(feature: str = "dust_lane", conditions=dust_lane.CONDITIONS, widths=WIDTHS) -> MapFlow:
    torch.manual_seed(0)
    return MapFlow(make_config(feature, conditions, PRIOR, widths)).eval()


def saved(path, *args, **options):
    network = model(*args, **options)
    network.save(path)
    return path


def test_initial_weights(tmp_path, monkeypatch):
    assert load_start(RULE, settings(start="none")) is None
    path = saved(tmp_path / "a.safetensors")
    assert load_start(RULE, settings(start=str(path))).config == model().config
    monkeypatch.setattr(module, "base_weights", lambda name: path if name == "dust_lane" else None)
    assert load_start(RULE, settings(start="base")).config == model().config


def test_initial_weights_that_do_not_fit_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "base_weights", lambda name: None)
    starts = {
        "base": settings(start="base"),
        "absent": settings(start=str(tmp_path / "absent.safetensors")),
        "feature": settings(start=str(saved(tmp_path / "f.safetensors", "ring"))),
        "widths": settings(start=str(saved(tmp_path / "w.safetensors", widths=(32, 32)))),
        "conditions": settings(start=str(saved(tmp_path / "c.safetensors", conditions={"length": (0.0, 1.0)}))),
    }
    for name, given in starts.items():
        with pytest.raises(InputError) as caught:
            load_start(RULE, given)
        assert caught.value.exit_code == 2, name


@pytest.mark.parametrize("widths", [(32, 16), (32, 48), (16, 16), (32,)])
def test_impossible_widths_are_an_error(widths):
    with pytest.raises(ValueError, match="widths"):
        settings(widths=widths)


def test_few_measured_maps_count_less_and_too_few_not_at_all():
    given = settings(measured_fraction=0.5)
    assert measured_weight(given, 0) == measured_weight(given, LEAST_MEASURED - 1) == 0
    assert measured_weight(given, LEAST_MEASURED) == pytest.approx(0.5 * LEAST_MEASURED / ENOUGH_MEASURED)
    assert measured_weight(given, ENOUGH_MEASURED) == measured_weight(given, 10 * ENOUGH_MEASURED) == 0.5
    assert measured_weight(settings(measured_fraction=0.0), 500) == 0


def test_maps_are_measured_on_labelled_galaxies_that_satisfy_the_rule(monkeypatch):
    calls = []

    def stand_in(images, hosts, stretch, *, bands):
        calls.append((len(images), stretch, bands))
        maps = np.broadcast_to(images.mean((1, 2, 3)).reshape(-1, 1, 1, 1), (len(images), 1, 64, 64))
        np.testing.assert_array_equal(hosts.radius, measure_hosts(images).radius)
        return maps.astype(np.float32), images.mean((1, 2, 3)) > np.sort(images.mean((1, 2, 3)))[0]

    monkeypatch.setattr(dust_lane, "measure", stand_in)
    stretches = [Stretch(), Stretch(0.02)]
    given = candidates(labelled=10, survey=np.resize([0, 1], 12), stretches=stretches, bands=["irg", "zrg"])
    given.labels.loc[[1, 2, 4, 5, 7, 8], "visible_dust"] = 0.75
    given.predicted["visible_dust"] = 0.9
    maps, rows = measured_maps(given, RULE)
    assert calls == [(3, stretches[0], "irg"), (3, stretches[1], "zrg")]
    assert len(rows) == 4 and set(rows) < {1, 2, 4, 5, 7, 8} and maps.dtype == np.float32
    np.testing.assert_allclose(maps[:, 0, 0, 0], given.images[rows].mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("rule", [RULE, RULE.model_copy(update={"measure": ""})])
def test_without_galaxies_to_measure_there_are_no_maps(rule):
    maps, rows = measured_maps(candidates(), rule)
    assert maps.shape == (0, 1, 64, 64) and len(rows) == 0


def test_conditions_say_where_a_map_is_from():
    generated = conditions_of("dust_lane", PRIOR[:3], measured=False)
    measured = conditions_of("dust_lane", PRIOR[:3], measured=True, strength=np.array([0.1, np.nan, 0.9]))
    np.testing.assert_array_equal(generated[:, :K], dust_lane.describe(PRIOR[:3]))
    assert generated.shape == (3, K + 2) and (generated[:, K] == 0).all() and np.isnan(generated[:, K + 1]).all()
    assert (measured[:, K] == 1).all()
    np.testing.assert_allclose(measured[:, K + 1], [0.1, np.nan, 0.9], rtol=1e-6)
    assert conditions_of("dust_lane", PRIOR[:0], measured=False).shape == (0, K + 2)


@pytest.mark.parametrize(("count", "fraction"), [(LEAST_MEASURED - 1, 0.0), (20, 0.1)])
def test_measured_maps_are_trained_on_by_their_fraction(tmp_path, monkeypatch, count, fraction):
    requested = {}

    def stand_in(maps, values, weight, config, settings, out, **options):
        requested.update(options, maps=maps, values=values, weight=weight, config=config, settings=settings)
        return {"steps": 5, "seconds": 1.0, "loss": 0.5}

    monkeypatch.setattr(module, "train_maps", stand_in)
    monkeypatch.setattr(module, "PRIOR", 30)
    monkeypatch.setattr(base, "PRIOR_BLOCK", 30)
    given = settings(measured_fraction=0.5, steps=5, batch=7)
    outcome = fine_tune(
        PRIOR[:count], np.linspace(0, 1, count), RULE, given, tmp_path / "m", seed=4, device=CPU, seconds=3.0
    )
    measured = count if fraction else 0
    assert outcome["measured"] == count and outcome["measured_fraction"] == pytest.approx(fraction)
    assert len(requested["maps"]) == len(requested["values"]) == len(requested["weight"]) == 30 + measured
    assert requested["weight"].sum() == pytest.approx(1) and requested["weight"][30:].sum() == pytest.approx(fraction)
    assert (requested["values"][30:, K] == 1).all() and (requested["values"][:30, K] == 0).all()
    np.testing.assert_array_equal(requested["maps"][30:], PRIOR[:measured])
    assert requested["config"].widths == WIDTHS and requested["config"].conditions[:K] == tuple(dust_lane.CONDITIONS)
    assert (requested["settings"], requested["seconds"], requested["start"]) == (given, 3.0, None)


def test_fine_tuning_starts_from_the_given_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PRIOR", 6)
    monkeypatch.setattr(base, "PRIOR_BLOCK", 6)
    given = settings(start=str(saved(tmp_path / "a.safetensors")), steps=1, batch=2)
    no_maps = np.empty((0, 1, 64, 64), np.float32)
    fine_tune(no_maps, np.empty(0), RULE, given, tmp_path / "b.safetensors", seed=0, device=CPU)
    assert (
        load_start(RULE, given.model_copy(update={"start": str(tmp_path / "b.safetensors")})).config == model().config
    )


def test_base_weights_are_trained_on_maps_of_the_prior_sampled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "PRIOR_BLOCK", 24)
    given, options = settings(steps=2, batch=4), {"seed": 3, "device": CPU}
    result = train_on_prior("dust_lane", 24, given, tmp_path / "g.safetensors", **options)
    assert result["maps"] == 24 and result["steps"] == 2 and np.isfinite(result["loss"])
    maps = base.prior_maps("dust_lane", 24, module.SEED)
    config = make_config("dust_lane", dust_lane.CONDITIONS, maps, WIDTHS)
    values = conditions_of("dust_lane", maps, measured=False)
    train_maps(maps, values, np.ones(24), config, given, tmp_path / "same.safetensors", **options)
    assert file_digest(tmp_path / "g.safetensors") == file_digest(tmp_path / "same.safetensors")
    monkeypatch.setattr(module, "prior_maps", None)  # not called again
    train_on_prior("dust_lane", 24, given, tmp_path / "g.safetensors", **options)
    assert file_digest(tmp_path / "g.safetensors") == file_digest(tmp_path / "same.safetensors")


def test_only_a_feature_with_conditions_has_a_model(tmp_path):
    check_feature("dust_lane")
    with pytest.raises(InputError, match="'artefact'"):
        check_feature("artefact")
    with pytest.raises(InputError, match="'dust'"):
        check_feature("dust")
    with pytest.raises(InputError, match="'dust_lane', not of 'artefact'"):
        load_weights("artefact", str(saved(tmp_path / "g.safetensors")))


@pytest.fixture
def sampled(monkeypatch) -> list[np.ndarray]:
    """Replace sampling by constant maps; return the conditions of each call."""
    calls = []

    def stand_in(network, values, **options):
        calls.append(values)
        random = np.random.default_rng(options["seed"])
        return 5 + random.random((len(values), 1, 64, 64), dtype=np.float32)

    monkeypatch.setattr(module, "sample_maps", stand_in)
    return calls


def source(given: MapSettings, network=None, measured=0, **options):
    strength = np.full(measured, 0.5, np.float32)
    return map_source(RULE, given, network, PRIOR[:measured], strength, device=CPU, **options)


def test_without_a_model_maps_are_sampled_from_the_prior(sampled):
    expected = dust_lane.prior(4, np.random.default_rng(5))
    for given, network in ((settings(maps="prior"), model()), (settings(), None)):
        np.testing.assert_array_equal(source(given, network, 20)(4, np.random.default_rng(5)), expected)
    assert not sampled


@pytest.mark.parametrize(("measured", "fraction"), [(LEAST_MEASURED - 1, 0), (40, 0.4)])
def test_the_model_samples_maps_with_conditions_of_the_prior_and_of_measured_ones(sampled, measured, fraction):
    found = source(settings(measured_fraction=1.0), model(), measured)(100, np.random.default_rng(0))
    requested = sampled[0]
    assert len(found) == 100 and (found > 1).all() and requested.shape == (100, K + 2)
    assert requested[:, K].mean() == pytest.approx(fraction, abs=0.12) and set(requested[:, K]) <= {0, 1}
    like = requested[:, K] == 1
    assert (requested[like, K + 1] == 0.5).all() and np.isnan(requested[~like, K + 1]).all()
    low, high = np.float32(list(dust_lane.CONDITIONS.values())).T
    assert ((requested[:, :K] >= low) & (requested[:, :K] <= high)).all()
    if fraction:
        near = np.abs(requested[like, None, :K] - dust_lane.describe(PRIOR)).max(-1).min(1)
        assert near.max() < 0.5 and (near > 0).any()  # with a little scatter


def test_maps_are_sampled_once_and_mirrored(sampled, monkeypatch):
    monkeypatch.setattr(module, "POOL", 6)
    draw, random = source(settings(), model()), np.random.default_rng(0)
    found = np.concatenate([draw(20, random), draw(10, random)])
    assert [len(call) for call in sampled] == [6] and found.shape == (30, 1, 64, 64)
    middle = np.sort(found.reshape(30, -1), axis=1)  # the same whichever way it is mirrored
    assert 1 < len(np.unique(middle.round(4), axis=0)) <= 6 < len(np.unique(found.reshape(30, -1), axis=0))
    assert draw(0, random).shape == (0, 1, 64, 64)


def test_both_sources_are_used_where_the_recipe_sets_both(sampled):
    found = source(settings(maps="both", measured_fraction=1.0), model(), 40)(100, np.random.default_rng(0))
    of_model = (found > 1).all((1, 2, 3))
    assert of_model.mean() == pytest.approx(0.4, abs=0.13)
    assert (sampled[0][:, K] == 1).all()  # the model is needed for those that are like measured ones alone
    assert found[~of_model].max() < 6 and (found[~of_model].max((1, 2, 3)) > 0).all()


def test_a_sampled_copy_of_a_measured_map_is_replaced(monkeypatch):
    calls = []

    def stand_in(network, values, **options):
        calls.append(len(values))
        made = dust_lane.prior(len(values), np.random.default_rng(options["seed"]))
        if len(calls) == 1:
            made[3] = PRIOR[7]
        return made

    monkeypatch.setattr(module, "sample_maps", stand_in)
    found = source(settings(measured_fraction=1.0), model(), 40)(30, np.random.default_rng(0))
    assert calls[0] == 30 and 1 <= calls[1] < 10
    mirrored = [PRIOR[7][0], PRIOR[7][0, ::-1], PRIOR[7][0, :, ::-1], PRIOR[7][0, ::-1, ::-1]]
    assert min(np.abs(one[0] - other).max() for one in found for other in mirrored) > 0.01


def test_copies_are_found_and_others_are_not():
    others = dust_lane.prior(25, np.random.default_rng(77))
    sampled = np.concatenate([others[:10], PRIOR[4:5], others[10:], PRIOR[9:10] * 1.03])
    found = copies(sampled, PRIOR)
    assert {10, 26} <= set(found) and len(found) < 5
    assert len(copies(sampled[:0], PRIOR)) == 0
    # A galaxy that was measured twice makes no copy of its neighbours, and does not hide one either.
    assert set(copies(sampled, np.concatenate([PRIOR, PRIOR[:3]]))) >= {10, 26}


def test_maps_of_a_feature_without_a_prior_are_variants_of_enough_measured_ones():
    rule = InjectRule(feature="residual", hosts="t <= 0", measure="t > 0")
    few, enough = (np.random.default_rng(0).normal(0, 0.3, (n, 3, 64, 64)).astype(np.float32) for n in (4, 5))
    with pytest.raises(InputError, match="t > 0") as caught:
        map_source(rule, settings(), None, few, np.full(4, np.nan), device=CPU)
    assert caught.value.exit_code == 2
    source = map_source(rule, settings(), None, enough, np.full(5, np.nan), device=CPU)
    found = source(7, np.random.default_rng(1))
    assert found.shape == (7, 3, 64, 64) and found.dtype == np.float32 and np.isfinite(found).all()
