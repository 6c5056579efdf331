"""Diffusion model of maps: training, bit-identical resumption, and conditional sampling."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from galscan.core.errors import GalscanError, InputError
from galscan.synthesis.diffusion import checkpoint, map_model
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.diffusion.map_model import (
    MapConfig,
    MapFlow,
    load_maps_model,
    make_config,
    sample_maps,
    save_maps_model,
    train_maps,
)
from galscan.synthesis.diffusion.maps import conditions_of
from galscan.synthesis.features import dust_lane
from galscan.synthesis.features.base import base_weights

CPU = torch.device("cpu")
CONFIG = MapConfig(
    "dust_lane", 16, 1, ("sin_twice_angle", "log_depth", "measured"), (-1, -3, 0), (1, 1, 1), (16, 32), 0.2, 0.15
)
OPTIONS = {"batch": 6, "learning_rate": 1e-3, "ema": 0.9, "seed": 3, "device": CPU}


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
    given = {"values": values(len(pool)), "weight": np.ones(len(pool)), "config": CONFIG} | OPTIONS | changes
    return train_maps(pool, given.pop("values"), given.pop("weight"), given.pop("config"), path, steps=steps, **given)


@pytest.mark.parametrize("start", [None, 4], ids=["from nothing", "from other weights"])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, start):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint, "MAX_FRACTION", 1e9)
    start = None if start is None else untrained(seed=start)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    trained(whole, start=start)

    class Stop(Exception):
        pass

    real_save, calls = Checkpoint.save, []

    def save_and_stop(self):
        real_save(self)
        calls.append(self.step)
        if len(calls) == 2:
            raise Stop

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    with pytest.raises(Stop):
        trained(parts, start=start)
    assert not parts.exists()
    monkeypatch.setattr(Checkpoint, "save", real_save)
    assert trained(parts, start=start)["steps"] == 4
    for name, value in load_file(whole).items():
        assert torch.equal(load_file(parts)[name], value), name
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_training_begins_with_the_start_weights_and_leaves_them_alone(tmp_path):
    start = untrained(seed=4)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    trained(tmp_path / "a.safetensors", 1, start=start, learning_rate=1e-12)
    stayed = load_maps_model(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(start.state_dict()[k], v) for k, v in before.items())
    assert max(float((stayed[k] - v).abs().max()) for k, v in before.items()) < 2e-3  # half precision
    trained(tmp_path / "b.safetensors", 3, start=start, learning_rate=1.0)
    moved = load_maps_model(tmp_path / "b.safetensors").state_dict()
    assert max(float((moved[k] - v).abs().max()) for k, v in before.items()) > 5e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_no_numbers_are_refused(tmp_path, bad):
    pool = maps()
    pool[7, 0, 3, 4] = bad
    with pytest.raises(InputError, match=r"map 7 of 12\b") as caught:
        trained(tmp_path / "a.safetensors", pool=pool)
    assert caught.value.exit_code == 2 and not list(tmp_path.iterdir())


def test_a_training_that_diverges_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(MapFlow, "forward", lambda self, x, t, result: x * self.condition[0].weight.sum() * torch.nan)
    with pytest.raises(GalscanError):
        trained(tmp_path / "a.safetensors", 100)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_budget_ends_training_early(tmp_path):
    outcome = trained(tmp_path / "a.safetensors", 10**6, seconds=1.0)
    assert 0 < outcome["steps"] < 10**6 and np.isfinite(outcome["loss"])
    assert load_maps_model(tmp_path / "a.safetensors").config == CONFIG


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
    train_maps(pool, given, weight, config, path / "w.safetensors", steps=steps, **OPTIONS | {"batch": 16})
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


def test_maps_are_drawn_by_their_weight(tmp_path, monkeypatch):
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


def test_the_configuration_holds_what_undoes_the_scaling():
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


def test_what_is_written_is_read_again(tmp_path):
    network = untrained()
    save_maps_model(network, network.state_dict(), tmp_path / "a.safetensors")
    again = load_maps_model(tmp_path / "a.safetensors")
    assert again.config == CONFIG and not again.training
    assert all(torch.equal(v.half().float(), again.state_dict()[k]) for k, v in network.state_dict().items())


def damaged(path, **changes) -> None:
    """Write weights with another configuration."""
    network = untrained()
    raw = asdict(replace(network.config)) | changes
    raw = {k: v for k, v in raw.items() if v is not None}
    save_file({k: v.half() for k, v in network.state_dict().items()}, path, metadata={"config": json.dumps(raw)})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "changes",
    [
        {"widths": [32, 32]}, {"widths": []}, {"widths": [16]}, {"widths": [16, 16]}, {"widths": [10**6, 10**6]},
        {"widths": 32}, {"conditions": ["a"]}, {"low": [0.0]}, {"channels": 3}, {"std": 0.0}, {"std": None},
        {"feature": None}, {"unknown": 1}, {"side": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_does_not_fit_the_weights_is_refused(tmp_path, changes):
    damaged(tmp_path / "a.safetensors", **changes)
    with pytest.raises(InputError, match=r"a\.safetensors") as caught:
        load_maps_model(tmp_path / "a.safetensors")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path):
    network, path = untrained(), tmp_path / "a.safetensors"
    save_maps_model(network, network.state_dict(), path)
    whole = path.read_bytes()
    cases = [whole[: len(whole) // 2], whole[:4], b"", b"no weights at all" * 20]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    right = {"config": json.dumps(asdict(CONFIG))}
    foreign = [
        ({"layer.weight": torch.zeros(3)}, right), (dict(list(state.items())[1:]), right),
        (state | {"grown": torch.zeros(2)}, right), (state | {"condition.0.bias": torch.full((64,), torch.nan)}, right),
        (state, None), (state, {"other": "x"}), (state, {"config": "{"}), (state, {"config": "[1]"}),
    ]  # fmt: skip
    save_file(state, path, metadata=right)
    assert load_maps_model(path).config == CONFIG
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(InputError):
            load_maps_model(path)
    for tensors, metadata in foreign:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(InputError):
            load_maps_model(path)
    with pytest.raises(InputError):
        load_maps_model(tmp_path / "absent.safetensors")
    with pytest.raises(InputError):
        load_maps_model(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    other = MapFlow(replace(CONFIG, widths=(32, 32)))
    save_file(dict(other.state_dict()), path.with_suffix(".checkpoint.safetensors"), metadata={"progress": "{}"})
    with pytest.raises(InputError):
        trained(path)


def test_loss_falls_where_all_maps_are_alike(tmp_path):
    pool = np.full((4, 1, 16, 16), 0.09, np.float32)
    given = {"pool": pool, "values": values(4), "learning_rate": 2e-2}
    few, many = (trained(tmp_path / f"{n}.safetensors", n, **given)["loss"] for n in (4, 30))
    assert many < 0.8 * few


def roughness(found: np.ndarray) -> float:
    return float(np.sqrt(np.mean([np.square(np.diff(found, axis=axis)).mean() for axis in (2, 3)])))


@pytest.mark.skipif(base_weights("dust_lane") is None, reason="no base weights of dust lanes are shipped")
def test_the_shipped_weights_sample_lanes_like_the_prior_s():
    network = load_maps_model(base_weights("dust_lane"))
    prior = dust_lane.prior(32, np.random.default_rng(99))
    requested = conditions_of("dust_lane", prior, measured=False)
    found = sample_maps(network, requested, seed=1, device=CPU)
    assert np.isfinite(found).all() and found.min() >= 0
    assert 1 / 1.5 < roughness(found) / roughness(prior) < 1.5
    shown = dust_lane.describe(found)
    for column in (0, 1):  # cosine and sine of twice the angle
        assert np.corrcoef(requested[:, column], shown[:, column])[0, 1] > 0.8
