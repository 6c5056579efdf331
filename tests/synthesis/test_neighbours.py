from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.synthesis import neighbours
from galscan.synthesis.neighbours import luminance, nearest, spacing, symmetries


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)


def test_luminance_is_the_block_mean_of_square_roots():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, :2, :2, 0] = 255
    maps = luminance(image)
    assert maps.shape == (1, 32, 32)
    assert maps[0, 0, 0] == pytest.approx(1 / 3) and maps.sum() == maps[0, 0, 0]
    assert luminance(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 16, 16)
    assert luminance(np.zeros((2, 72, 72, 3), np.uint8)).shape == (2, 32, 32)


def test_a_square_falls_on_itself_in_eight_ways():
    views = {tuple(v.flatten().tolist()) for v in symmetries(torch.arange(4.0).reshape(1, 2, 2))}
    assert len(views) == 8


def test_turned_and_flipped_pictures_are_found(images):
    turned = np.stack([np.rot90(image, k) for k, image in enumerate(images[:4])])
    flipped = np.stack([np.rot90(image, k)[:, ::-1] for k, image in enumerate(images[4:8])])
    distance, row = nearest(luminance(np.concatenate([turned, flipped])), luminance(images))
    np.testing.assert_array_equal(row, np.arange(8))
    assert (distance < 0.02).all()
    plain, _ = nearest(luminance(turned[1:]).flatten(1), luminance(images).flatten(1))
    assert (plain > 1).all()


def test_distances_are_those_of_brute_force(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    random = np.random.default_rng(1)
    points, pool = random.normal(5, 1, (20, 6)).astype(np.float32), random.normal(5, 1, (31, 6)).astype(np.float32)
    every = np.linalg.norm(points[:, None] - pool, axis=2)
    distance, row = nearest(torch.from_numpy(points), torch.from_numpy(pool))
    np.testing.assert_array_equal(row, every.argmin(1))
    np.testing.assert_allclose(distance, every.min(1), rtol=1e-4)


def test_a_galaxy_is_not_its_own_neighbour(images, monkeypatch):
    between = spacing(luminance(images))
    assert len(between) == 30 and (between > 1).all()
    monkeypatch.setattr(neighbours, "MOST_QUERIES", 10)
    np.testing.assert_allclose(spacing(luminance(images))[[0, -1]], between[[0, -1]], rtol=1e-4)
    assert len(spacing(luminance(images))) == 10
