"""The first look: it keeps what the full network would rank, and says how sure that is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from galscan.classify import cascade
from galscan.classify.cascade import BETTER, TinyNet, distil, kept_bounds, load_first_look, reduced, save_first_look
from galscan.errors import InputError


def survey(n: int, seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures whose full score is their contrast, with noise of its own."""
    rng = np.random.default_rng(seed)
    strength = rng.exponential(1.0, n)
    line = np.exp(-((np.arange(size) - size / 2) ** 2) / 20)
    blob = (30 + 25 * strength[:, None, None].clip(0, 8)) * line[:, None] * line
    images = rng.poisson(blob[..., None] + 5, (n, size, size, 3)).clip(0, 255).astype(np.uint8)
    return images, (strength + rng.normal(0, 0.05, n)).astype(np.float32)


@pytest.fixture(scope="module")
def look():
    return distil(*survey(3000), 0.01, seed=1, steps=70)


def test_it_keeps_the_best_and_discards_most(look):
    images, scores = survey(6000, seed=9)
    passed = look.score(images) >= look.cut
    best = np.argsort(-scores)[:60]
    assert passed[best].mean() >= 0.98 and passed.mean() < 0.5 and look.pays
    assert look.passes == pytest.approx(passed.mean(), abs=0.08)
    assert look.held == 1200 and look.sample == 1800


def test_the_same_seed_gives_the_same_first_look(look):
    again = distil(*survey(3000), 0.01, seed=1, steps=70)
    assert again.told() == look.told()
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), look.network.parameters(), strict=True))


def test_it_survives_the_disk(look, tmp_path):
    save_first_look(look, tmp_path / "f.safetensors")
    opened = load_first_look(tmp_path / "f.safetensors")
    assert opened.told() == look.told()
    images, _ = survey(50, seed=3)
    np.testing.assert_array_equal(opened.score(images), look.score(images))
    (tmp_path / "f.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable first look"):
        load_first_look(tmp_path / "f.safetensors")
    with pytest.raises(InputError, match="not a readable first look"):
        load_first_look(tmp_path / "none.safetensors")


def test_where_it_can_say_nothing_it_does_not_pay():
    images, _ = survey(2 * BETTER)
    noise = np.random.default_rng(0).normal(size=len(images)).astype(np.float32)
    assert not distil(images, noise, 0.01, seed=0, steps=30).pays


def test_a_sample_too_small_is_refused():
    images, scores = survey(2 * BETTER - 1)
    with pytest.raises(InputError, match="at least 1,196 objects"):
        distil(images, scores, 0.01, seed=0)


def test_the_bound_is_that_of_wilks():
    assert BETTER == 598 and 0.995**BETTER <= 0.05 < 0.995 ** (BETTER - 1)


@given(st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_the_cut_keeps_what_it_promises(noise, seed):
    """Scores alone: where errors are alike everywhere, at least 99.5 % of the best survive, in 19 of 20 cases."""
    rng = np.random.default_rng(seed)
    draw = lambda n: (full := rng.normal(0, 1, n), full + rng.normal(0, noise, n))  # noqa: E731
    blank = cascade.FirstLook(TinyNet(), 0, 1, 0, 0, 0, 0, 0, 0)
    cut = cascade._cut(blank, *reversed(draw(4000)), 0.002).cut
    full, own = draw(40_000)
    best = np.argsort(-full)[:80]
    assert (own[best] >= cut).mean() >= 0.93  # far below only where the one in twenty is far off


@pytest.mark.parametrize("size", [16, 32, 48, 64, 128])
def test_pictures_of_any_size_are_reduced(size):
    images = np.full((2, size, size, 3), 64, np.uint8)
    pixels = reduced(images)
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, (64 / 255) ** 0.5))


def test_what_the_audit_says_of_the_kept():
    assert kept_bounds(0, 0, 0, 100) == (1.0, 1.0)
    kept, least = kept_bounds(0, 1000, 100_000, 1000)
    assert kept == 1.0 and least == pytest.approx(1000 / (1000 + 300), abs=0.01)  # three over n, times the discarded
    kept, least = kept_bounds(1, 1000, 100_000, 900)
    assert kept == pytest.approx(0.9) and least < kept
    assert kept_bounds(5, 5, 5, 10)[1] == pytest.approx(10 / 15)


@pytest.mark.parametrize("told", [{"width": 10**9}, {"width": "16"}, {"width": 16, "extra": 1}, {}])
def test_a_first_look_that_boasts_is_refused(tmp_path, told):
    import json

    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in TinyNet().state_dict().items()}
    save_file(tensors, tmp_path / "f.safetensors", metadata={"first_look": json.dumps(told)})
    with pytest.raises(InputError, match="not a readable first look"):
        load_first_look(tmp_path / "f.safetensors")
