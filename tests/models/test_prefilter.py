"""Prefilter: fraction of candidates that it keeps, its threshold and the bounds of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from galscan.core.errors import InputError
from galscan.models.prefilter import (
    BETTER,
    OLD_STRIDES,
    Prefilter,
    TinyNet,
    TinyNets,
    find_threshold,
    load_prefilter,
    load_prefilter_scorer,
    may_train_prefilter,
    prefilter_sample,
    save_prefilter,
    set_threshold,
    survival_bounds,
    train_prefilter,
)
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample
from tests.helpers import tiny_store


def survey(n: int, seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose full score is their contrast, with independent noise."""
    rng = np.random.default_rng(seed)
    strength = rng.exponential(1.0, n)
    line = np.exp(-((np.arange(size) - size / 2) ** 2) / 20)
    blob = (30 + 25 * strength[:, None, None].clip(0, 8)) * line[:, None] * line
    images = rng.poisson(blob[..., None] + 5, (n, size, size, 3)).clip(0, 255).astype(np.uint8)
    return images, (strength + rng.normal(0, 0.05, n)).astype(np.float32)


def scores_of(prefilter_: Prefilter, images: np.ndarray) -> np.ndarray:
    return load_prefilter_scorer([prefilter_], "cpu")(images)[:, 0]


CPU = torch.device("cpu")


def trained(steps: int = 70):
    images, scores = survey(1800)
    return train_prefilter(images, scores[:, None], steps=steps, seed=1, device=CPU)


@pytest.fixture(scope="module")
def prefilter_():
    network = trained()
    images, scores = survey(1500, seed=5)
    return set_threshold(network, scores_of(Prefilter(network), images), scores, 0.01)


def test_it_keeps_the_best_and_discards_most(prefilter_):
    images, scores = survey(3000, seed=9)
    passed = scores_of(prefilter_, images) >= prefilter_.cut
    best = np.argsort(-scores)[:30]
    assert passed[best].mean() >= 0.96 and passed.mean() < 0.5 and prefilter_.pays
    assert prefilter_.passes == pytest.approx(passed.mean(), abs=0.08)
    assert prefilter_.sample == 1500


def test_little_time_means_few_steps_and_a_seed_one_network(monkeypatch):
    from galscan.models import prefilter

    done = []
    monkeypatch.setattr(prefilter.F, "smooth_l1_loss", lambda a, b: done.append(1) or ((a - b) ** 2).mean())
    images, scores = survey(300)
    first, second = (
        train_prefilter(images, scores[:, None], steps=10**6, seed=1, device=CPU, seconds=0.01) for _ in range(2)
    )
    assert len(done) == 40
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_half_of_all_objects_may_train_a_prefilter():
    numbers = np.arange(4000)
    assert 0.45 < may_train_prefilter(numbers).mean() < 0.55
    np.testing.assert_array_equal(
        may_train_prefilter(numbers), may_train_prefilter(np.array([str(n) for n in numbers], object))
    )


def test_the_training_sample_is_usable_and_random(tmp_path):
    stores = [tiny_store(tmp_path / "a.zarr", 900, 8, unusable=200), tiny_store(tmp_path / "b.zarr", 700, 8, seed=1)]
    images = prefilter_sample(stores, 10**6, 0)
    may = [may_train_prefilter(s.column("id")) & ((s.column("flags") & UNUSABLE) == 0) for s in stores]
    assert len(images) == sum(m.sum() for m in may)
    few = prefilter_sample(stores, 100, 0)
    assert len(few) == 100 and not np.array_equal(few, prefilter_sample(stores, 100, 1))


def test_the_sample_that_trains_has_the_pixels_of_the_full_network(tmp_path):
    stores = [tiny_store(tmp_path / "a.zarr", 60, 16), tiny_store(tmp_path / "b.zarr", 60, 24, seed=1)]
    images = prefilter_sample(stores, 10**6, 0, size=16)
    may = [resample(s.images()[may_train_prefilter(s.column("id"))], 16) for s in stores]
    assert sorted(i.tobytes() for i in images) == sorted(i.tobytes() for i in np.concatenate(may))


def test_save_and_load(prefilter_, tmp_path):
    save_prefilter(prefilter_, tmp_path / "f.safetensors")
    opened = load_prefilter(tmp_path / "f.safetensors")
    assert opened.metadata() == prefilter_.metadata()
    images, _ = survey(50, seed=3)
    np.testing.assert_array_equal(scores_of(opened, images), scores_of(prefilter_, images))
    (tmp_path / "f.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"\.safetensors"):
        load_prefilter(tmp_path / "f.safetensors")
    with pytest.raises(InputError, match=r"\.safetensors"):
        load_prefilter(tmp_path / "none.safetensors")


def test_noise_does_not_pay():
    noise = np.random.default_rng(0).normal(size=(2, 2 * BETTER))
    assert not set_threshold(TinyNet(), *noise, 0.01).pays


def test_a_sample_too_small_is_refused():
    with pytest.raises(InputError, match="1,196"):
        set_threshold(TinyNet(), *np.zeros((2, 2 * BETTER - 1)), 0.01)


@settings(max_examples=10)
@given(st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_the_threshold_keeps_the_top_objects(noise, seed):
    """With errors of one distribution at all scores, at least 99.5 % of the top objects pass, in 19 of 20 cases."""
    rng = np.random.default_rng(seed)
    draw = lambda n: (full := rng.normal(0, 1, n), full + rng.normal(0, noise, n))  # noqa: E731
    cut = set_threshold(TinyNet(), *reversed(draw(4000)), 0.002).cut
    full, own = draw(40_000)
    best = np.argsort(-full)[:80]
    assert (own[best] >= cut).mean() >= 0.93  # far below only where the one in twenty is far off


@pytest.mark.parametrize("size", [16, 64, 128])
def test_images_of_any_size(size):
    assert TinyNets([TinyNet(targets=2)])(torch.zeros(2, size, size, 3, dtype=torch.uint8))[0].shape == (2, 2)


def test_survival_bounds():
    assert survival_bounds(0, 0, 0, 100) == (1.0, 1.0)
    kept, least = survival_bounds(0, 1000, 100_000, 1000)
    assert kept == 1.0 and least == pytest.approx(1000 / (1000 + 300), abs=0.01)  # three over n, times the discarded
    kept, least = survival_bounds(1, 1000, 100_000, 900)
    assert kept == pytest.approx(0.9) and least < kept
    assert survival_bounds(5, 5, 5, 10)[1] == pytest.approx(10 / 15)


@pytest.mark.parametrize(
    "settings_",
    [{"width": 10**9}, {"width": "16"}, {"width": 12, "extra": 1}, {"width": 12, "cut": "x"}, {},
     {"width": 12, "strides": [4]}, {"width": 12}],
)  # fmt: skip
def test_invalid_settings_are_refused(tmp_path, settings_):
    import json

    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in TinyNet().state_dict().items()}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"first_look": json.dumps(settings_)})
    with pytest.raises(InputError, match=r"\.safetensors"):
        load_prefilter(tmp_path / "f.safetensors")


def test_prefilters_of_version_0_1_are_read(tmp_path):
    from safetensors.torch import save_file

    old = TinyNet(strides=OLD_STRIDES).eval()
    save_file(old.state_dict(), tmp_path / "f.safetensors", metadata={"first_look": '{"width": 12, "cut": 0.5}'})
    read = load_prefilter(tmp_path / "f.safetensors")
    images = torch.randint(255, (3, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(TinyNets([read.network])(images), TinyNets([old])(images))
    assert read.cut == 0.5


def test_prefilters_trained_jointly_share_their_convolutions():
    images, scores = survey(600)
    both = train_prefilter(images, np.stack([scores, -scores], 1), steps=60, seed=1, device=CPU)
    prefilters = [Prefilter(both.only(k)) for k in range(2)]
    assert len(TinyNets([one.network for one in prefilters]).trunks) == 1
    assert len(TinyNets([prefilters[0].network, TinyNet()]).trunks) == 2
    predicted = load_prefilter_scorer(prefilters, "cpu")(images)
    assert np.corrcoef(predicted[:, 0], scores)[0, 1] > 0.3 and np.corrcoef(predicted[:, 1], scores)[0, 1] < -0.3
    np.testing.assert_allclose(predicted[:, 1], scores_of(prefilters[1], images), atol=1e-5)


def test_the_bound_of_the_kept_is_that_of_clopper_and_pearson():
    """One-sided at 95 %: with the largest rate of loss, so few lost ones have a probability of exactly 5 %."""
    for lost, rescored, discarded, candidates in ((0, 1000, 100_000, 1000), (1, 300, 5_000, 200), (7, 40, 900, 50)):
        kept, least = survival_bounds(lost, rescored, discarded, candidates)
        rate = candidates * (1 / least - 1) / discarded
        assert binom.cdf(lost, rescored, rate) == pytest.approx(0.05, rel=1e-6)
        assert candidates * (1 / kept - 1) / discarded == pytest.approx(lost / rescored)


def test_the_cut_has_the_margin_of_the_worst_error_and_of_the_unlucky_last():
    """The largest of 598 errors below the fitted line, under the score at the rank that 95 % of samples reach."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=20_000)
    own = 2 * full + 1 + rng.normal(0, 0.3, len(full))
    found = find_threshold(own, full, 0.01)
    better = np.argsort(-full)[:598]
    slope, offset = np.polyfit(full[better], own[better], 1)
    error = (offset + slope * full[better] - own[better]).max()
    last = np.sort(full)[::-1][int(binom.ppf(0.95, 20_000, 0.01))]
    assert found["error"] == pytest.approx(error) and error > 0.6
    assert found["last"] == last < np.sort(full)[::-1][200]
    assert found["cut"] == pytest.approx(offset + slope * last - error)
    # With 597 errors the bound of Wilks would not hold: one in 200 may be larger than all with 5 %.
    assert 0.995**598 <= 0.05 < 0.995**597


def test_the_bound_of_the_errors_holds_in_95_of_100_samples():
    """The worst of 598 exceeds all but one error in 200 in 95 % of samples: exact for any error distribution."""
    rng = np.random.default_rng(0)
    beyond = []
    for _ in range(200):
        full = np.concatenate([np.full(BETTER, 5.0) + rng.normal(0, 1e-3, BETTER), np.zeros(BETTER)])
        own = np.concatenate([5 + rng.normal(size=BETTER), np.zeros(BETTER)])
        beyond.append(norm.sf(find_threshold(own, full, 0.4)["error"]))
    assert binom.ppf(1e-3, 200, 0.92) <= (np.array(beyond) <= 0.0056).sum() and np.median(beyond) < 0.003
