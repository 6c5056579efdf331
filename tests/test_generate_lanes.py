"""A lane that is lifted is where it was, and one that is laid is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.generate.lanes import lay, lift
from tests.test_generate_galaxies import gaussian


def crossed(*, angle=0.0, depth=0.5, ratio=0.7, black=False) -> np.ndarray:
    """Draw a galaxy with a lane along `angle`, through it a little off the middle; or with a black seam there."""
    image = gaussian(ratio=ratio, sigma=0.12, light=(200, 170, 140))
    line = (np.arange(64) + 0.5) / 64 - 0.5
    y, x = np.meshgrid(line, line, indexing="ij")
    across = y * np.cos(angle) - x * np.sin(angle) - 0.03
    lane = (np.abs(across) < 0.02) * 0.95 if black else depth * np.exp(-(across**2) / (2 * 0.02**2))
    return (image * (1 - lane[..., None])).round().astype(np.uint8)


def one(image: np.ndarray) -> np.ndarray:
    return lift(image[None]).transmission[0]


@given(ratio=st.floats(0.4, 1), sigma=st.floats(0.05, 0.13), angle=st.floats(0, np.pi))
def test_a_smooth_galaxy_has_no_screen(ratio, sigma, angle):
    assert one(gaussian(ratio=ratio, sigma=sigma, angle=angle)).min() > 0.93


@given(angle=st.floats(0, np.pi))
def test_a_lane_is_lifted_where_it_is(angle):
    dark = 1 - one(crossed(angle=angle)).mean(2)
    assert dark.max() > 0.1
    line = (np.arange(64) + 0.5) / 64 - 0.5
    y, x = np.meshgrid(line, line, indexing="ij")
    across = y * np.cos(angle) - x * np.sin(angle)
    assert (dark * across).sum() / dark.sum() == pytest.approx(0.03, abs=0.015)
    assert np.abs(across - 0.03)[dark > 0.5 * dark.max()].max() < 0.05


def test_more_dust_lets_less_through():
    least = [one(crossed(depth=d)).min() for d in (0.2, 0.4, 0.6)]
    assert (np.diff(least) < -0.03).all()


def test_dust_reddens_and_so_does_its_screen():
    image = crossed(depth=0.0).astype(float)
    line = (np.arange(64) + 0.5) / 64 - 0.5
    lane = np.exp(-((line[:, None] - 0.03) ** 2) / (2 * 0.02**2))[..., None] * np.array([0.3, 0.45, 0.6])
    screen = one((image * (1 - lane)).round().astype(np.uint8))
    red, green, blue = screen.reshape(-1, 3).min(0)
    assert red > green + 0.02 > blue + 0.04


def test_a_black_seam_is_no_dust():
    assert 1 - one(crossed(black=True)).mean() < 0.3 * (1 - one(crossed(depth=0.7)).mean())


def test_the_sky_has_no_screen():
    noise = np.random.default_rng(0).normal(8, 3, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    assert one(np.maximum(crossed(), noise))[:8].min() > 0.99
    assert one(np.zeros((64, 64, 3), np.uint8)).min() == 1


def test_what_is_laid_only_dims_and_is_seen():
    screens = lift(np.stack([crossed(angle=0.3), gaussian(ratio=0.7, sigma=0.12)]))
    below = np.stack([gaussian(sigma=0.1, light=(220, 180, 150))] * 40)
    donors = np.repeat([0, 1], 20)
    laid, visible = lay(below, screens, donors, np.random.default_rng(0))
    assert laid.dtype == np.uint8 and (laid <= below).all()
    assert visible[:20].mean() > 0.8 and not visible[20:].any()  # the second has no dust to lay
    assert len(np.unique(laid[:20].reshape(20, -1), axis=0)) == 20  # each at an angle of its own
    same, _ = lay(below, screens, donors, np.random.default_rng(0))
    np.testing.assert_array_equal(same, laid)


def test_over_darkness_nothing_is_seen():
    dark, first = np.zeros((5, 64, 64, 3), np.uint8), np.zeros(5, int)
    _, visible = lay(dark, lift(crossed()[None]), first, np.random.default_rng(0))
    assert not visible.any()


def test_none_at_all():
    screens = lift(np.empty((0, 32, 32, 3), np.uint8))
    assert screens.transmission.shape == (0, 32, 32, 3)
