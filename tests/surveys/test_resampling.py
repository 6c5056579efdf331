"""Resampling keeps the brightness, and reading at a smaller size equals storing at that size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout
from galscan.surveys.files.images import from_pixels
from galscan.surveys.resampling import BATCH, pixels_text, resample

SIZES = st.tuples(st.integers(8, 48), st.integers(8, 48)).map(lambda pair: (max(pair), min(pair)))


def galaxies(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw blobs off the centre on a noisy sky."""
    rng = np.random.default_rng(seed)
    line = (np.arange(size) + 0.5) / size - 0.5
    x, y = rng.uniform(-0.2, 0.2, (2, count, 1, 1))
    radius = np.hypot(line[None, None] - x, line[None, :, None] - y)
    light = np.exp(-(radius**2) / (2 * rng.uniform(0.04, 0.15, (count, 1, 1)) ** 2))
    colour = rng.uniform(60, 230, (count, 1, 1, 3))
    noise = rng.normal(10, 3, (count, size, size, 3))
    return np.clip(light[..., None] * colour + noise, 0, 255).astype(np.uint8)


@given(SIZES, st.integers(0, 99))
def test_the_mean_brightness_of_each_band_stays(sizes, seed):
    stored, size = sizes
    images = galaxies(3, stored, seed)
    small = resample(images, size)
    assert small.shape == (3, size, size, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small.mean((1, 2)), images.mean((1, 2)), atol=1.5)
    assert (resample(np.full_like(images, seed), size) == seed).all()


def test_images_of_that_size_are_returned_unchanged():
    images = galaxies(2, 16)
    assert resample(images, 16) is images


def test_same_as_ingest_of_the_same_image():
    for image, small in zip(images := galaxies(2, 48), resample(images, 20), strict=True):
        ingested = from_pixels(image, 20, 0.4)
        assert isinstance(ingested, Cutout)
        np.testing.assert_array_equal(small, ingested.image)


@pytest.mark.parametrize("stored", [48, 128])
def test_a_store_read_at_fewer_pixels_looks_like_one_made_with_them(stored):
    images = galaxies(10, 256)
    twice, once = resample(resample(images, stored), 32).astype(int), resample(images, 32).astype(int)
    # Two passes blur a little more than one; the sky and the light of galaxies are the same.
    assert abs(twice.mean() - once.mean()) < 0.5 and np.abs(twice - once).mean() < 1.5


def test_threads_and_views_change_nothing():
    images = galaxies(2 * BATCH + 7, 24)
    whole = resample(images, 16)
    np.testing.assert_array_equal(resample(images, 16, threads=3), whole)
    np.testing.assert_array_equal(resample(images[:, ::-1], 16)[5], resample(images[5:6, ::-1].copy(), 16)[0])
    assert resample(images[:0], 16).shape == (0, 16, 16, 3)


def test_enlarging_is_refused():
    with pytest.raises(InputError, match="--size 24"):
        resample(galaxies(3, 16), 24)


def test_pixels_text():
    assert pixels_text(64, 64) == "64 px" and pixels_text(128, 96) == "96 px, resampled from 128 px"
