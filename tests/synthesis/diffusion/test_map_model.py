"""Diffusion model of maps: training and conditional sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import InputError
from galscan.labels.settings import MapSettings
from galscan.synthesis.diffusion import map_model
from galscan.synthesis.diffusion.map_model import (
    MapConfig,
    MapFlow,
    make_config,
    sample_maps,
    train_maps,
)
from galscan.synthesis.diffusion.maps import conditions_of
from galscan.synthesis.features import dust_lane
from galscan.synthesis.features.base import base_weights

CPU = torch.device("cpu")
CONFIG = MapConfig(
    "dust_lane", 16, 1, ("sin_twice_angle", "log_depth", "measured"), (-1, -3, 0), (1, 1, 1), (16, 32), 0.2, 0.15
)
OPTIONS = {"seed": 3, "device": CPU}


def settings(**changes) -> MapSettings:
    return MapSettings(kind="maps", **{"steps": 4, "batch": 6, "learning_rate": 1e-3, "ema": 0.9} | changes)


def maps(count: int = 12, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 0.4, (count, 1, side, side)).astype(np.float32)


def values(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    found = random.uniform((-1, -2, 0), (1, 0, 1), (count, 3)).astype(np.float32)
    found[::3, 2] = np.nan
    return found


def untrained(config: MapConfig = CONFIG, seed: int = 0) -> MapFlow:
    torch.manual_seed(seed)
    return MapFlow(config).eval()


def trained(path, steps: int = 4, pool: np.ndarray | None = None, **changes) -> dict[str, float]:
    pool = maps() if pool is None else pool
    given = {"start": changes.pop("start", None)} | OPTIONS
    how = settings(steps=steps, **changes)
    return train_maps(pool, values(len(pool)), np.ones(len(pool)), CONFIG, how, path, **given)


def test_training_starts_from_the_given_weights_without_changing_them(tmp_path):
    start = untrained(seed=4)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    trained(tmp_path / "a.safetensors", 1, start=start, learning_rate=1e-12)
    stayed = MapFlow.load(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(start.state_dict()[k], v) for k, v in before.items())
    assert max(float((stayed[k] - v).abs().max()) for k, v in before.items()) < 2e-3  # half precision
    trained(tmp_path / "b.safetensors", 3, start=start, learning_rate=1.0)
    moved = MapFlow.load(tmp_path / "b.safetensors").state_dict()
    assert max(float((moved[k] - v).abs().max()) for k, v in before.items()) > 5e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_an_error(tmp_path, bad):
    pool = maps()
    pool[7, 0, 3, 4] = bad
    with pytest.raises(InputError, match=r"map 7 of 12\b") as caught:
        trained(tmp_path / "a.safetensors", pool=pool)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def watched(path, monkeypatch, pool, given, config, *, drop: float = 0.0, weight=None, steps: int = 3):
    """Train a few steps; return the training maps before noise is added, and their conditions."""
    shown, conditions = [], []
    forward, lerp = MapFlow.forward, torch.lerp
    monkeypatch.setattr(map_model, "DROP", drop)
    monkeypatch.setattr(torch, "lerp", lambda a, b, t: (shown.append(a.clone()), lerp(a, b, t))[1])
    monkeypatch.setattr(
        MapFlow, "forward", lambda self, x, t, c: (conditions.append(c.clone()), forward(self, x, t, c))[1]
    )
    weight = np.ones(len(pool)) if weight is None else weight
    train_maps(pool, given, weight, config, settings(steps=steps, batch=16), path / "w.safetensors", **OPTIONS)
    return MapFlow(config).decode(torch.cat(shown)).numpy(), torch.cat(conditions).numpy()


def test_a_map_that_is_flipped_has_the_condition_of_what_is_shown(tmp_path, monkeypatch):
    pool = dust_lane.prior(8, np.random.default_rng(0))
    given = conditions_of("dust_lane", pool, measured=True, strength=np.linspace(0, 1, 8, dtype=np.float32))
    config = make_config("dust_lane", dust_lane.CONDITIONS, pool, (16, 32))
    shown, conditions = watched(tmp_path, monkeypatch, pool, given, config, steps=2)
    k, low, high = len(config.conditions), np.array(config.low), np.array(config.high)
    found = (conditions[:, :k] + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(found[:, :5], dust_lane.describe(shown), atol=5e-3)
    assert (conditions[:, k:] == 1).all() and (found[:, config.conditions.index("measured")] == 1).all()
    # Each was shown as it is, and mirrored: the sign of its sine is that of the first, and the other one.
    same = np.array([[np.abs(one - other).max() < 1e-3 for other in pool] for one in shown])
    assert 0 < same.any(1).sum() < len(shown)
    mirrored = np.concatenate([pool, pool[:, :, ::-1], pool[..., ::-1], pool[:, :, ::-1, ::-1]])
    assert all(np.abs(mirrored - one).max((1, 2, 3)).min() < 1e-3 for one in shown)


def test_maps_are_sampled_by_their_weight(tmp_path, monkeypatch):
    pool = np.arange(1, 5, dtype=np.float32)[:, None, None, None] / 10 * np.ones((4, 1, 16, 16), np.float32)
    shown, _ = watched(tmp_path, monkeypatch, pool, values(4), CONFIG, weight=np.array([0, 1, 3, 0]), steps=8)
    generated = np.rint(shown[:, 0, 0, 0] * 10).astype(int)
    assert set(generated) == {2, 3} and 0.6 < (generated == 3).mean() < 0.9


@pytest.mark.parametrize(("drop", "kept"), [(0.0, (1, 1)), (1.0, (0, 0)), (0.3, (0.35, 0.65))])
def test_conditions_are_dropped_with_their_flags(tmp_path, monkeypatch, drop, kept):
    given = np.full((12, 3), 0.7, np.float32)
    _, conditions = watched(tmp_path, monkeypatch, maps(), given, CONFIG, drop=drop, steps=6)
    flags = conditions[:, 3:]
    assert set(np.unique(flags)) <= {0, 1} and kept[0] <= flags.mean() <= kept[1]
    np.testing.assert_array_equal(conditions[:, :3] != 0, flags == 1)


def test_encoding_is_inverted_with_the_configuration():
    pool = maps(30, 32)
    config = make_config("dust_lane", {"angle": (-2.0, 6.0)}, pool, (16, 32))
    assert config.conditions == ("angle", "measured", "strength") and (config.side, config.channels) == (32, 1)
    network = untrained(config)
    encoded = network.encode(torch.from_numpy(pool))
    assert float(encoded.mean()) == pytest.approx(0, abs=1e-4) and float(encoded.std()) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(network.decode(encoded).numpy(), pool, atol=1e-5)
    assert float(network.decode(torch.tensor(-50.0))) == 0 and float(network.encode(torch.tensor(-1.0))) < 0
    scaled = network.encode_conditions(np.array([[-2.0, 0, np.nan], [6.0, 1, 0.5], [2.0, np.nan, 0.25]]))
    expected = [[-1, -1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1], [0, 0, -0.5, 1, 0, 1]]
    np.testing.assert_allclose(scaled.numpy(), expected, atol=1e-6)


def test_a_sampled_map_is_the_same_however_many_follow(monkeypatch):
    monkeypatch.setattr(map_model, "BATCH", 4)
    network, given = untrained(), values(10)
    many = sample_maps(network, given, seed=5, device=CPU, steps=3)
    assert many.shape == (10, 1, 16, 16) and many.dtype == np.float32
    assert np.isfinite(many).all() and many.min() >= 0 and many.max() > 0
    for count in (1, 4, 6):
        np.testing.assert_allclose(
            sample_maps(network, given[:count], seed=5, device=CPU, steps=3), many[:count], atol=1e-5
        )
    assert len(np.unique(many.reshape(10, -1), axis=0)) == 10
    other = sample_maps(network, given, seed=6, device=CPU, steps=3)
    assert np.abs(other - many).max((1, 2, 3)).min() > 1e-3
    assert sample_maps(network, given[:0], seed=5, device=CPU).shape == (0, 1, 16, 16)


def test_guidance_is_between_no_condition_and_more_than_it():
    network, given = untrained(), values(3)
    plain, none, at_none, twice = (
        sample_maps(network, v, seed=5, device=CPU, steps=1, guidance=g)
        for v, g in ((given, 1.0), (given * np.nan, 1.0), (given, 0.0), (given, 2.0))
    )
    np.testing.assert_allclose(at_none, none, atol=1e-5)
    assert np.abs(plain - none).max() > 1e-3 and np.abs(twice - plain).max() > 1e-3


def test_loss_falls_where_all_maps_are_alike(tmp_path):
    pool = np.full((4, 1, 16, 16), 0.09, np.float32)
    given = {"pool": pool, "learning_rate": 2e-2}
    few, many = (trained(tmp_path / f"{n}.safetensors", n, **given)["loss"] for n in (4, 30))
    assert many < 0.8 * few


def roughness(found: np.ndarray) -> float:
    return float(np.sqrt(np.mean([np.square(np.diff(found, axis=axis)).mean() for axis in (2, 3)])))


@pytest.mark.skipif(base_weights("dust_lane") is None, reason="no base weights of dust lanes are shipped")
def test_the_shipped_weights_sample_lanes_like_the_prior_s():
    network = MapFlow.load(base_weights("dust_lane"))
    prior = dust_lane.prior(32, np.random.default_rng(99))
    requested = conditions_of("dust_lane", prior, measured=False)
    found = sample_maps(network, requested, seed=1, device=CPU)
    assert np.isfinite(found).all() and found.min() >= 0
    assert 1 / 1.5 < roughness(found) / roughness(prior) < 1.5
    shown = dust_lane.describe(found)
    for column in (0, 1):  # cosine and sine of twice the angle
        assert np.corrcoef(requested[:, column], shown[:, column])[0, 1] > 0.8
