"""Added light: conserved in flux, noisy as photons are, and visible on a dark sky."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.synthesis.features.light import (
    SKY_OVER_NOISE,
    add_light,
    border_noise,
    galaxy_light,
    sky_level,
    visibility,
)
from galscan.synthesis.flux import Stretch
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies
from tests.synthesis.test_hosts import sersic

SIZE = 64


def sky(noise: float = 0, level: float = 30, seed: int = 0) -> np.ndarray:
    """Return an image of nothing but sky."""
    pixels = level + np.random.default_rng(seed).normal(0, noise, (SIZE, SIZE, 3))
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def square(flux: float) -> np.ndarray:
    """Return reddish light in a square of 32 pixels."""
    light = np.zeros((SIZE, SIZE, 3), np.float32)
    light[16:48, 16:48] = flux * np.array([1.2, 1.0, 0.8])
    return light


def add(image: np.ndarray, light: np.ndarray, stretch: Stretch = STRETCH, seed: int = 0, **options):
    return add_light(image, light, stretch, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("stretch", [STRETCH, Stretch()], ids=lambda s: str(s.softening))
def test_flux_is_added_and_nothing_else_is_changed(stretch):
    image, light = sky(), square(float(stretch.to_flux(np.full((1, 1, 3), 90.0)).mean()))
    after, depth = add(image, light, stretch, noisy=1)
    found = stretch.to_flux(after) - stretch.to_flux(image)
    np.testing.assert_allclose(found[20:44, 20:44].mean((0, 1)), light[30, 30], rtol=0.03)
    outside = light.max(-1) == 0
    np.testing.assert_array_equal(after[outside], image[outside])
    assert after.dtype == np.uint8 and 0.3 < depth < 1


def test_no_light_changes_nothing():
    image = galaxies(1)[0]
    after, depth = add(image, np.zeros(image.shape, np.float32))
    np.testing.assert_array_equal(after, image)
    assert depth == 0


@pytest.mark.parametrize("noisy", [0.0, 0.75, 1.0])
def test_light_brings_the_noise_of_its_photons(noisy):
    image, light = sky(noise=4), square(0.08)
    after, _ = add(image, light, noisy=noisy)
    noise = border_noise(image, STRETCH)
    flux = STRETCH.to_flux(after) - STRETCH.to_flux(image)
    expected = np.sqrt(light[30, 30] * noise / SKY_OVER_NOISE * (1 - noisy))
    rounding = 0.0004  # of pixel values, in flux
    np.testing.assert_allclose(flux[20:44, 20:44].std((0, 1)), np.hypot(expected, rounding), rtol=0.25)
    again = add(image, light, noisy=noisy)[0]
    np.testing.assert_array_equal(again, after)


def test_noise_and_sky_are_measured_beside_the_galaxy():
    image = galaxies(1, noise=3)[0]
    flux = STRETCH.to_flux(image)
    np.testing.assert_allclose(sky_level(flux), np.percentile(flux[:4].reshape(-1, 3), 25, axis=0), rtol=0.3)
    assert (sky_level(flux) < 0.05 * flux.max((0, 1))).all()
    louder = galaxies(1, noise=5)[0]
    assert (border_noise(louder, STRETCH) > border_noise(image, STRETCH)).all()
    assert (border_noise(sky(), STRETCH) == 0).all()


@given(flux=st.floats(0, 0.2), more=st.floats(0.01, 0.2), level=st.integers(0, 100), brighter=st.integers(20, 100))
@settings(max_examples=12, deadline=None)
def test_more_light_is_more_visible_and_less_so_on_a_bright_galaxy(flux, more, level, brighter):
    def seen(on: int, added: float) -> float:
        image = sky(level=on)
        return visibility(image, STRETCH.to_pixels(STRETCH.to_flux(image) + square(added)))

    assert 0 <= seen(level, flux) < seen(level, flux + more) < 1
    assert seen(level + brighter, flux + more) < seen(level, flux + more)


def disk(radius: float, *, x: float = 0, brightness: float = 0.6, noise: float = 0) -> np.ndarray:
    """Return the image of a galaxy, `x` pixels off the middle."""
    flux = brightness * sersic(96, radius, x=x, n=1.0)[..., None] * np.array([0.9, 0.7, 0.5]) + 0.006
    pixels = STRETCH.to_pixels(flux) + np.random.default_rng(5).normal(0, noise, flux.shape)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def cut_out(image: np.ndarray) -> np.ndarray:
    light, weight = galaxy_light(image, STRETCH)
    assert weight.min() == 0 and weight.max() == 1 and (light[weight == 0] == 0).all()
    return light


def test_only_the_galaxy_in_the_middle_is_cut_out():
    alone, pair = disk(6), np.maximum(disk(6), disk(2.5, x=36, brightness=0.3))
    found, expected = cut_out(pair), cut_out(alone)
    assert np.abs(found[:, 80:]).sum() < 0.02 * np.abs(found).sum()
    np.testing.assert_allclose(found[:, 20:70], expected[:, 20:70], atol=2e-3)
    assert (found[:4] == 0).all() and (found[-4:] == 0).all()  # down to nothing at the border
    steps = np.abs(np.diff(cut_out(disk(6, noise=2)).mean(2), axis=1))
    assert steps[:, 80:].max() < 0.01  # no edge
