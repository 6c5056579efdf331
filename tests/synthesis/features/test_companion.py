"""Companions: the donor's light, and no other, at the place, brightness and size of the map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.synthesis.features import companion, tidal
from galscan.synthesis.features.companion import COLUMNS, DISTANCE, RATIO, SCALE
from galscan.synthesis.features.light import galaxy_light, sky_level
from galscan.synthesis.hosts import Donors, Hosts, measure_hosts
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts
from tests.synthesis.test_hosts import sersic

SIZE = 96
PLAIN = {"distance": 1.5, "angle": 0.0, "log_ratio": np.log(0.5), "scale": 1.0, "turn": 0.0, "mirror": 0.0}


def galaxy(radius: float = 8, colour=(0.5, 0.7, 0.9), *, x: float = 0, brightness: float = 0.6, noise: float = 0):
    """Return the image of a bluish disk, `x` pixels off the middle."""
    light = np.roll(sersic(SIZE, radius, 0.7, 0.4, n=1.0), round(x), axis=1)
    pixels = STRETCH.to_pixels(brightness * light[..., None] * np.array(colour) + 0.006)
    pixels = pixels + np.random.default_rng(5).normal(0, noise, pixels.shape)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)[None]


def one(**changes: float) -> np.ndarray:
    """Return the map of a pair without tidal features."""
    maps = np.zeros((1, 1, 1 + tidal.COMPONENTS, len(tidal.COLUMNS)), np.float32)
    maps[0, 0, 0, : len(COLUMNS)] = [(PLAIN | changes)[name] for name in COLUMNS]
    return maps


def put(images: np.ndarray, where: Hosts, maps: np.ndarray, donors: np.ndarray, **options):
    given = Donors(donors, measure_hosts(donors))
    return companion.inject(images, where, maps, STRETCH, np.random.default_rng(0), donors=given, **options)


def added(image: np.ndarray, injected: np.ndarray) -> np.ndarray:
    return STRETCH.to_flux(injected[0]) - STRETCH.to_flux(image[0])


def test_the_prior_spans_distances_and_brightness_ratios():
    maps = companion.prior(500, np.random.default_rng(0))
    assert maps.dtype == np.float32 and maps.shape == (500, 1, 1 + tidal.COMPONENTS, len(tidal.COLUMNS))
    named = dict(zip(COLUMNS, maps[:, 0, 0].T, strict=False))
    for name, (low, high) in (("distance", DISTANCE), ("log_ratio", np.log(RATIO)), ("scale", SCALE)):
        assert low - 1e-5 <= named[name].min() < low + 0.1 * (high - low)
        assert high + 1e-5 >= named[name].max() > high - 0.1 * (high - low)
    assert set(np.unique(named["mirror"])) == {0, 1}
    bridge = maps[:, 0, 1]
    disturbed = bridge[:, 0] > 0
    assert 0.5 < disturbed.mean() < 0.7
    towards = np.cos(bridge[:, 2] - named["angle"])[disturbed]
    assert (towards > 0).mean() > 0.95  # the first component is on the side of the companion


@pytest.mark.parametrize("turned", [0.0, 1.0])
@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_a_companion_is_as_bright_and_as_far_away_as_its_map_says(turned, ratio):
    host, donor = galaxy(7), galaxy(7)
    where = hosts(1, radius=7, angle=turned)
    injected, depth = put(host, where, one(log_ratio=np.log(ratio), distance=2.0), donor, seeing=0.5)
    light = added(host, injected)
    flux = STRETCH.to_flux(host[0])
    assert light.sum() / (flux - sky_level(flux)).sum() == pytest.approx(ratio, rel=0.12)
    row, column = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    x, y = (float((light.mean(2) * axis).sum() / light.mean(2).sum()) for axis in (column, row))
    assert np.arctan2(y, x) == pytest.approx(turned, abs=0.05)
    measured = measure_hosts(donor).radius[0]
    zoom = 7 * ratio**companion.GROWTH / measured
    assert np.hypot(x, y) == pytest.approx(2.0 * (7 + zoom * measured), abs=0.7)
    assert 0.4 < depth[0] < 1


def test_colours_are_the_donor_s_and_pixels_beyond_it_the_host_s():
    host, donor = galaxies(1, noise=2), galaxy()
    where = measure_hosts(host)
    injected, _ = put(host, where, one(distance=2.2, scale=0.8), donor)
    light = added(host, injected).sum((0, 1))
    np.testing.assert_allclose(light / light.sum(), np.array([0.5, 0.7, 0.9]) / 2.1, rtol=0.06)
    changed = (injected != host).any(-1)[0]
    assert 0.01 < changed.mean() < 0.35


@given(turn=st.floats(0, 6.28), mirror=st.integers(0, 1), scale=st.floats(*SCALE))
@settings(max_examples=8, deadline=None)
def test_turning_and_mirroring_keep_brightness(turn, mirror, scale):
    host, donor = galaxy(7), galaxy(8)
    light = added(host, put(host, hosts(1, radius=7), one(turn=turn, mirror=mirror, scale=scale), donor)[0]).sum()
    plain = added(host, put(host, hosts(1, radius=7), one(), donor)[0]).sum()
    assert light == pytest.approx(plain, rel=0.06)


def test_a_larger_scale_is_a_larger_companion():
    host, donor = galaxy(7), galaxy(8)
    column = np.indices((SIZE, SIZE))[1]
    sizes = []
    for scale in (0.7, 1.0, 1.3):
        light = added(host, put(host, hosts(1, radius=7), one(scale=scale, distance=2.4), donor)[0]).mean(2)
        x = (light * column).sum() / light.sum()
        sizes.append(np.sqrt((light * (column - x) ** 2).sum() / light.sum()))
    assert sizes[1] / sizes[0] > 1.2 and sizes[2] / sizes[1] > 1.1


def test_a_companion_stays_within_the_image():
    host = galaxy(12)
    injected, _ = put(host, hosts(1, radius=30), one(distance=2.5, angle=0.3), galaxy(7))
    light = added(host, injected).mean(2)
    assert light.max() > 0.02 and np.unravel_index(light.argmax(), light.shape)[1] < SIZE - 2


def test_donors_that_are_too_faint_or_cut_off_are_left_out():
    faint, cut = galaxy(brightness=0.004, noise=3), galaxy(30)
    assert galaxy_light(faint[0], STRETCH) is None and galaxy_light(cut[0], STRETCH) is None
    donors = np.concatenate([galaxy(), faint, cut])
    given = Donors(donors, hosts(3))
    images = np.repeat(galaxy(7), 3, 0)
    injected, depth = companion.inject(
        images, hosts(3), np.repeat(one(), 3, 0), STRETCH, np.random.default_rng(0), donors=given
    )
    assert depth[0] > companion.LEAST_DEPTH and depth[1:].tolist() == [0, 0]
    np.testing.assert_array_equal(injected[1:], images[1:])


def test_without_donors_nothing_is_injected_or_measured():
    images = galaxy(7)
    with pytest.raises(InputError, match="donors") as caught:
        companion.inject(images, hosts(1), one(), STRETCH, np.random.default_rng(0))
    assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        companion.measure(images, hosts(1), STRETCH)


def test_deepened_companions_are_at_most_as_bright_as_the_host():
    maps = companion.prior(50, np.random.default_rng(0))
    deeper = companion.deepen(maps, 1.5)
    column = COLUMNS.index("log_ratio")
    grown = deeper[:, 0, 0, column] - maps[:, 0, 0, column]
    assert (grown >= 0).all() and grown.max() == pytest.approx(np.log(1.5), rel=1e-4)
    assert deeper[:, 0, 0, column].max() == 0
    np.testing.assert_array_equal(deeper[:, 0, 0, :2], maps[:, 0, 0, :2])  # distance and angle
    assert (deeper[:, 0, 1:, 0] >= maps[:, 0, 1:, 0]).all()
