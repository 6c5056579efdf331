"""Measured centre, size and shape of hosts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from galscan.synthesis.hosts import LARGEST_RADIUS, LEAST_RADIUS, measure_hosts


def sersic(
    size: int, radius: float, ratio: float = 0.7, angle: float = 0.4, *, x: float = 0, y: float = 0, n: float = 0.6
) -> np.ndarray:
    """Return light of peak 1, shape (size, size), half of it within an ellipse of `radius` (pixels, circularised).

    The centre is `x` and `y` pixels off the middle.
    """
    row, column = np.indices((size, size)) - (size - 1) / 2
    dx, dy = column - x, row - y
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    far = np.hypot(u * np.sqrt(ratio), v / np.sqrt(ratio)) / radius
    return np.exp(-(2 * n - 1 / 3 + 4 / (405 * n)) * far ** (1 / n))


def noisy(light: np.ndarray, *, peak=200.0, sky=8.0, noise=2.0, seed=0, colour=(1.0, 0.85, 0.65)) -> np.ndarray:
    """Return an image of `light`, uint8, shape (S, S, 3)."""
    pixels = peak * light[..., None] * np.array(colour) + sky
    pixels += np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def one(image: np.ndarray) -> tuple[float, ...]:
    return tuple(float(column[0]) for column in measure_hosts(image[None]))


@cache
def half_light(ratio: float, n: float) -> float:
    """Return the radius of the circle with half of the light of a large `sersic` of radius 1, without noise."""
    light = sersic(300, 30, ratio, 0, n=n)
    distance = np.hypot(*(np.indices(light.shape) - 149.5))
    order = np.argsort(distance, axis=None)
    grown = light.ravel()[order].cumsum()
    return float(distance.ravel()[order][np.searchsorted(grown, grown[-1] / 2)]) / 30


@settings(max_examples=15)
@given(
    size=st.sampled_from([48, 96]), ratio=st.sampled_from([0.35, 0.5, 0.65, 0.8]), angle=st.floats(0, np.pi),
    x=st.floats(-0.03, 0.03), y=st.floats(-0.03, 0.03), n=st.sampled_from([0.5, 0.7]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_galaxy_beside_a_brighter_one_is_measured(size, ratio, angle, x, y, n, seed):
    radius = 0.11 * size
    light = sersic(size, radius, ratio, angle, x=x * size, y=y * size, n=n)
    light += 1.2 * sersic(size, 0.03 * size, 0.8, x=-0.4 * size, y=0.4 * size)
    found = one(noisy(light, seed=seed))
    middle = (size - 1) / 2
    assert np.hypot(found[0] - middle - x * size, found[1] - middle - y * size) < 1
    assert found[2] == pytest.approx(radius * half_light(ratio, n), rel=0.1)
    assert found[3] == pytest.approx(ratio, abs=0.1)
    turned = (found[4] - angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turned) < np.radians(5)


@given(angle=st.floats(0.1, np.pi - 0.1), ratio=st.floats(0.3, 0.8))
@settings(max_examples=10)
def test_a_mirrored_image_has_mirrored_geometry(angle, ratio):
    image = noisy(sersic(64, 8, ratio, angle, x=3, y=-2))
    x, y, radius, found, turned = one(image)
    mirrored = one(image[:, ::-1])
    assert mirrored[:4] == pytest.approx((63 - x, y, radius, found), abs=0.02)
    assert np.sin(mirrored[4] + turned) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("size", [48, 96])
def test_a_frame_without_a_galaxy_is_not_measured(size):
    nothing = np.zeros((size, size))
    frames = [noisy(nothing, noise=noise, seed=seed) for seed, noise in enumerate((0, 1, 3, 8, 20))]
    frames += [np.full((size, size, 3), level, np.uint8) for level in (0, 255)]
    assert not measure_hosts(np.stack(frames)).measured.any()


@pytest.mark.parametrize("size", [48, 96])
def test_a_galaxy_that_is_off_the_middle_is_not_measured(size):
    off = [0.16, 0.2, 0.25, 0.3, 0.4]
    lights = [sersic(size, 0.12 * size, x=d * size * np.cos(k), y=d * size * np.sin(k)) for k, d in enumerate(off)]
    assert not measure_hosts(np.stack([noisy(light) for light in lights])).measured.any()


@pytest.mark.parametrize("size", [48, 96])
def test_a_galaxy_that_fills_the_frame_is_not_measured(size):
    lights = [sersic(size, radius * size, 0.9, n=0.5) for radius in (0.5, 0.8, 1.5)]
    assert not measure_hosts(np.stack([noisy(light) for light in lights])).measured.any()


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
def test_a_galaxy_of_two_pixels_is_not_measured(radius):
    assert np.isnan(one(noisy(sersic(96, radius, 0.9)))).all()


@given(arrays.arrays(np.uint8, (2, 20, 20, 3)))
@settings(max_examples=25)
def test_any_pixels_give_values_in_the_limits_or_nan(images):
    found = np.stack(measure_hosts(images))
    assert found.shape == (5, 2) and (np.isfinite(found).all(0) | np.isnan(found).all(0)).all()
    x, y, radius, ratio, angle = found[:, np.isfinite(found[0])]
    assert ((radius >= LEAST_RADIUS) & (radius <= LARGEST_RADIUS * 20)).all()
    assert ((ratio > 0) & (ratio <= 1) & (np.abs(angle) <= np.pi)).all() and ((x >= 0) & (y >= 0)).all()


def test_images_are_measured_one_by_one():
    images = np.stack([noisy(sersic(48, radius)) for radius in (1, 5, 6, 7)])
    all_ = measure_hosts(images)
    assert all_.measured.tolist() == [False, True, True, True]
    assert all_.select(np.array([3, 1])).radius.tolist() == [one(images[k])[2] for k in (3, 1)]
    assert len(all_.select(all_.measured).x) == 3
    assert [len(column) for column in measure_hosts(images[:0])] == [0] * 5
