"""Residuals: zero for smooth galaxies, and measured as they were injected, without the profile of the donor."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.synthesis.features import residual, ring
from galscan.synthesis.features.residual import LARGEST, REACH, SIDE, measure, variants
from galscan.synthesis.hosts import measure_hosts
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies

LINE = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
RADIUS = np.hypot(LINE[None], LINE[:, None])


def circle(strength: float = 0.5, *, colour=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Return the map of a ring with a gap inside, shape (1, 3, SIDE, SIDE)."""
    profile = np.exp(-(((RADIUS - 1.3) / 0.2) ** 2)) - 0.6 * np.exp(-(((RADIUS - 0.75) / 0.2) ** 2))
    return (strength * profile * np.array(colour)[:, None, None])[None].astype(np.float32)


def put(images: np.ndarray, maps: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return residual.inject(images, measure_hosts(images), maps, STRETCH, np.random.default_rng(seed), seeing=0.7)


def test_smooth_galaxies_have_no_residual():
    images = galaxies(6)
    maps, usable = measure(images, measure_hosts(images), STRETCH)
    assert maps.shape == (6, 3, SIDE, SIDE) and maps.dtype == np.float32
    shown, _ = put(images, np.repeat(circle(0.7), 6, 0))
    with_ring, found = measure(shown, measure_hosts(shown), STRETCH)
    assert found.all() and not usable.all()
    assert np.abs(maps).mean() < 0.35 * np.abs(with_ring).mean()


@pytest.mark.parametrize("strength", [0.5, -0.5])
def test_a_map_is_measured_as_it_was_injected(strength):
    images = galaxies(4, noise=0.5)
    expected = circle(strength)
    shown, depth = put(images, np.repeat(expected, 4, 0))
    found, usable = measure(shown, measure_hosts(images), STRETCH)
    assert usable.all() and (depth > residual.LEAST_DEPTH).all()
    inside = RADIUS < 1.8
    for one in found:
        # The smooth model absorbs a part of a symmetric feature.
        assert np.corrcoef(one.mean(0)[inside], expected[0].mean(0)[inside])[0, 1] > 0.7


def test_the_colour_of_a_map_is_kept_and_its_depth_grows():
    images = galaxies(1, noise=0)
    blue, _ = put(images, circle(0.5, colour=(0.2, 0.5, 1.0)))
    ratio = STRETCH.to_flux(blue)[0].sum((0, 1)) / STRETCH.to_flux(images)[0].sum((0, 1))
    assert ratio[0] < ratio[1] < ratio[2]
    assert put(images, residual.deepen(circle(0.5), 1.5))[1] > put(images, circle(0.5))[1]
    assert np.abs(residual.deepen(circle(3.0), 2)).max() <= LARGEST


def test_a_map_without_residual_changes_nothing():
    images = galaxies(2)
    injected, depth = put(images, np.zeros((2, 3, SIDE, SIDE), np.float32))
    np.testing.assert_array_equal(injected, images)
    assert (depth < 0.01).all()


def test_a_host_keeps_its_light_and_gains_a_ring():
    images = galaxies(8, seed=3)
    where = measure_hosts(images)
    shown, _ = put(images, np.repeat(circle(0.5), 8, 0))
    before, after = (ring.measure(x, where, STRETCH)[0][:, 0, 0, ring.BRIGHTNESS] for x in (images, shown))
    assert np.median(after) > np.median(before) + 0.1
    total = STRETCH.to_flux(shown).sum((1, 2, 3)) / STRETCH.to_flux(images).sum((1, 2, 3))
    assert (np.abs(total - 1) < 0.35).all()


def test_galaxies_beside_a_bright_neighbour_are_not_used_and_stars_are_removed():
    images = galaxies(1)
    bright, star = images.copy(), images.copy()
    bright[:, 20:80, 62:90] = 250
    star[:, 60:63, 62:65] = 255
    where = measure_hosts(images)
    assert not measure(bright, where, STRETCH)[1].any()
    assert measure(star, where, STRETCH)[0].max() < 0.6 * LARGEST


def test_variants_differ_and_all_maps_are_used():
    maps = np.concatenate([circle(0.5), circle(-0.3)])
    found = variants(maps, 9, np.random.default_rng(0))
    assert found.shape == (9, 3, SIDE, SIDE) and found.dtype == np.float32 and np.abs(found).max() <= LARGEST
    assert len(np.unique(found.reshape(9, -1), axis=0)) == 9
    at_ring = found[:, 1][:, np.abs(RADIUS - 1.3) < 0.1].mean(1)
    assert (at_ring > 0).sum() in (4, 5)
    np.testing.assert_array_equal(found, variants(maps, 9, np.random.default_rng(0)))
    assert variants(maps, 0, np.random.default_rng(0)).shape == (0, 3, SIDE, SIDE)


def test_there_is_no_prior():
    with pytest.raises(InputError) as caught:
        residual.prior(1, np.random.default_rng(0))
    assert caught.value.exit_code == 2
