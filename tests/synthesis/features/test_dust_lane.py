"""Dust lanes: extinction, recovery of injected lanes, and no detection without dust."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.synthesis.features import artefact, dust_lane
from galscan.synthesis.features.dust_lane import (
    CONDITIONS,
    LEAST_DEPTH,
    REACH,
    SIDE,
    describe,
    extinction_law,
    inject,
    measure,
)
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts, measure_hosts
from tests.synthesis.test_hosts import sersic

STRETCH = Stretch(0.06)
NAMES = list(CONDITIONS)


def galaxies(count: int, size: int = 96, *, noise: float = 1.5, seed: int = 0) -> np.ndarray:
    """Return smooth elliptical galaxies of several shapes, uint8, shape (count, size, size, 3)."""
    random, images = np.random.default_rng(seed), []
    for _ in range(count):
        radius, ratio, angle = random.uniform((0.1 * size, 0.5, 0), (0.14 * size, 0.9, np.pi))
        light = sersic(size, radius, ratio, angle, n=1.5)
        flux = 0.9 * light[..., None] * np.array([1.0, 0.7, 0.4]) + 0.006
        pixels = STRETCH.to_pixels(flux) + random.normal(0, noise, flux.shape)
        images.append(np.rint(pixels.clip(0, 255)).astype(np.uint8))
    return np.stack(images)


def hosts(count: int, size: int = 96, *, radius: float = 11, angle: float = 0.0) -> Hosts:
    """Return hosts in the middle of their images."""
    middle, rest = np.full(count, (size - 1) / 2), np.ones(count)
    return Hosts(middle, middle, radius * rest, 0.7 * rest, angle * rest)


def flat(size: int = 96, *, level: float = 120, noise: float = 0, seed: int = 0) -> np.ndarray:
    """Return one image of uniform light, with dark sky at its upper and lower edge."""
    pixels = np.full((size, size, 3), float(level))
    pixels[:8] = pixels[-8:] = 10
    pixels += np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)[None]


def bar(depth: float, *, half: float = 0.3) -> np.ndarray:
    """Return the map of a lane of one attenuation along u, through the centre."""
    line = np.abs(((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH)
    return np.where((line[:, None] < half) & (line < 1.5), np.float32(depth), np.float32(0))[None, None]


def put(images: np.ndarray, where: Hosts, maps: np.ndarray, seed: int = 0, **options) -> tuple[np.ndarray, np.ndarray]:
    return inject(images, where, maps, STRETCH, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("r_v", [2.0, 3.1, 4.5])
def test_the_law_is_that_of_cardelli_and_o_donnell(monkeypatch, r_v):
    # Schlegel, Finkbeiner & Davis 1998 (ApJ 500, 525), table 6: A / A(V) of that law with R_V = 3.1 in the SDSS bands,
    # at the effective wavelengths of an elliptical galaxy.
    monkeypatch.setattr(dust_lane, "WAVELENGTHS", {"g": 0.4925, "r": 0.6290, "i": 0.7706, "z": 0.9222})
    found = extinction_law("giz", np.array([3.1, r_v]))
    assert found[0] == pytest.approx(np.array([1.161, 0.639, 0.453]) / 0.843, rel=0.02)
    # What is redder than r is dimmed less, and steeply where R_V is small.
    assert np.sign(found[1] - found[0]) == pytest.approx(np.sign((3.1 - r_v) * np.array([1, -1, -1])))


def test_sdss_bands_are_dimmed_as_published():
    # Girardi et al. 2004 (A&A 422, 205), of that law and a star like the Sun: A / A(V) of g 1.207, r 0.871, i 0.683.
    law = extinction_law("irg", np.array([3.1]))[0]
    assert law == pytest.approx([0.683 / 0.871, 1, 1.207 / 0.871], rel=0.03)
    assert np.isfinite(extinction_law("ugrizy", np.array([2.0, 4.0]))).all()


@given(st.floats(2, 3.9), st.floats(0.1, 2))
def test_the_law_is_greyer_where_r_v_is_larger(r_v, more):
    one, other = extinction_law("urzy", np.array([r_v, r_v + more]))
    assert one[0] > other[0] > 1 > other[2] > one[2] and one[1] == other[1] == 1
    assert (np.diff(one) < 0).all() and (one > 0).all()


def test_maps_of_the_prior_are_of_every_angle_and_length():
    maps = dust_lane.prior(300, np.random.default_rng(0))
    assert maps.shape == (300, 1, SIDE, SIDE) and maps.dtype == np.float32
    assert np.isfinite(maps).all() and maps.min() >= 0 and (maps.max((1, 2, 3)) > 0.05).all()
    shown = dict(zip(NAMES, describe(maps).T, strict=True))
    turned = np.arctan2(shown["sin_twice_angle"], shown["cos_twice_angle"]) / 2
    assert (np.histogram(turned, 6, (-np.pi / 2, np.pi / 2))[0] > 0).all()
    assert np.quantile(shown["log_length"], 0.9) - np.quantile(shown["log_length"], 0.1) > 0.7
    assert np.quantile(shown["log_depth"], 0.9) - np.quantile(shown["log_depth"], 0.1) > 0.7
    again = dust_lane.prior(300, np.random.default_rng(0))
    np.testing.assert_array_equal(again, maps)
    # A lane leaves its host's outskirts alone.
    assert np.median(maps[:, 0, [0, -1]].max((1, 2))) < 0.05


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_what_a_map_shows_turns_and_flips_with_it(seed):
    map_ = dust_lane.prior(1, np.random.default_rng(seed))
    shown = describe(map_)[0]
    low, high = np.array(list(CONDITIONS.values())).T
    assert shown.shape == (len(CONDITIONS),) and ((shown >= np.float32(low)) & (shown <= np.float32(high))).all()
    turned, over, across = (describe(m)[0] for m in (np.rot90(map_, axes=(2, 3)), map_[:, :, ::-1], map_[..., ::-1]))
    np.testing.assert_allclose(turned, shown * [-1, -1, 1, 1, 1], atol=2e-3)
    np.testing.assert_allclose(over, shown * [1, -1, 1, 1, 1], atol=2e-3)
    np.testing.assert_allclose(across, over, atol=2e-3)


def test_what_is_said_of_a_plain_map_is_true():
    shown = dict(zip(NAMES, describe(bar(0.5, half=0.2))[0], strict=True))
    assert shown["cos_twice_angle"] == pytest.approx(1, abs=1e-3)
    assert shown["sin_twice_angle"] == pytest.approx(0, abs=1e-3)
    assert shown["log_length"] == pytest.approx(np.log(1.5 / np.sqrt(3)), abs=0.03)
    assert shown["axis_ratio"] == pytest.approx(0.2 / 1.5, abs=0.02)
    assert shown["log_depth"] == pytest.approx(np.log(0.5))
    assert describe(np.empty((0, 1, SIDE, SIDE), np.float32)).shape == (0, len(CONDITIONS))
    assert np.isfinite(describe(np.zeros((2, 1, SIDE, SIDE), np.float32))).all()


def test_an_empty_map_changes_nothing():
    images = galaxies(3)
    injected, depth = put(images, measure_hosts(images), np.zeros((3, 1, SIDE, SIDE), np.float32))
    np.testing.assert_array_equal(injected, images)
    assert injected.dtype == np.uint8 and np.abs(depth).max() < 1e-4


def test_what_the_map_does_not_cover_is_left_as_it_is():
    images = galaxies(2, noise=3)
    injected, _ = put(images, hosts(2), np.repeat(bar(1.5), 2, 0))
    covered = np.zeros((96, 96), bool)
    covered[48 - 10 : 48 + 10, 48 - 24 : 48 + 24] = True
    np.testing.assert_array_equal(injected[:, ~covered], images[:, ~covered])
    assert (injected != images).any((1, 2, 3)).all()


def test_more_dust_is_deeper_and_dims_blue_light_most():
    image, depths = galaxies(1, noise=0), []
    where = measure_hosts(image)
    for attenuation in (0.1, 0.3, 0.8, 2.0):
        injected, depth = put(image, where, bar(attenuation), seeing=0.5)
        before, after = (STRETCH.to_flux(i[0, 46:50, 40:56]).mean((0, 1)) for i in (image, injected))
        red, green, blue = after / before
        assert red > green > blue > 0
        depths.append(float(depth[0]))
    assert (np.diff(depths) > 0.05).all() and 0 < depths[0] < depths[-1] < 1


@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
def test_a_map_is_put_where_the_host_is_and_turned_as_it_is(angle):
    image, where = flat(), hosts(1, angle=angle)._replace(x=np.array([52.0]), y=np.array([44.0]))
    dark = (image.astype(float) - put(image, where, bar(1.0), seeing=0.3)[0])[0].mean(-1)
    row, column = np.indices(dark.shape)
    x, y = ((dark * axis).sum() / dark.sum() for axis in (column, row))
    assert (x, y) == pytest.approx((52, 44), abs=0.3)
    xx, yy, xy = ((dark * m).sum() for m in ((column - x) ** 2, (row - y) ** 2, (column - x) * (row - y)))
    turned = np.arctan2(2 * xy, xx - yy) / 2 - angle
    assert abs((turned + np.pi / 2) % np.pi - np.pi / 2) < np.radians(3)
    assert np.ptp(np.flatnonzero((dark > 0.5 * dark.max()).any(1))) > 4


@pytest.mark.parametrize("level", [30, 70, 140])
def test_the_noise_that_dust_took_is_put_back(level):
    image = flat(level=level, noise=4)
    smooth, noisy = (put(i, hosts(1, radius=20), bar(1.2, half=1), seeing=1)[0][0] for i in (flat(level=level), image))
    inside, outside = (slice(40, 56), slice(30, 66)), (slice(12, 26), slice(10, 86))
    assert smooth[inside].mean() < 0.85 * level
    scatter = [np.diff(noisy[part].astype(float), axis=1).std() for part in (inside, outside)]
    assert scatter[0] == pytest.approx(scatter[1], rel=0.25 if level < 100 else 0.4)


def test_the_sky_is_not_dimmed():
    image = np.full((1, 96, 96, 3), 20, np.uint8)
    injected, depth = put(image, hosts(1), bar(2.0))
    np.testing.assert_array_equal(injected, image)
    assert depth[0] == 0  # without a galaxy nothing is visible


def test_seeing_blurs_the_dust():
    image, where = flat(), hosts(1, radius=14)
    sharp, blurred = (put(image, where, bar(1.0), seeing=s)[0][0].astype(float).mean(-1) for s in (0.3, 3.0))
    assert np.abs(np.diff(sharp, axis=0)).max() > 1.5 * np.abs(np.diff(blurred[16:-16], axis=0)).max()
    each = put(np.repeat(image, 2, 0), hosts(2, radius=14), np.repeat(bar(1.0), 2, 0), seeing=np.array([0.3, 3.0]))[0]
    steps = [np.abs(np.diff(i[16:-16].astype(float), axis=0)).max() for i in each]
    assert steps[0] > 1.5 * steps[1]


def test_the_same_seed_injects_the_same():
    images, maps = galaxies(3, noise=3), dust_lane.prior(3, np.random.default_rng(1))
    one, again, other = (put(images, hosts(3), maps, seed=seed)[0] for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_lane_is_measured_where_it_was_injected():
    images = galaxies(24)
    where = measure_hosts(images)
    assert where.measured.all()
    random = np.random.default_rng(2)
    true = dust_lane.prior(24, random)
    injected, depth = inject(images, where, true, STRETCH, random)
    found, usable = measure(injected, measure_hosts(injected), STRETCH)
    assert found.shape == true.shape and np.isfinite(found).all() and found.min() >= 0
    plain = depth > 2 * LEAST_DEPTH
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] if a.any() else 0 for a, b in zip(found, true, strict=True)]
    assert plain.sum() >= 8 and np.median(np.array(alike)[plain]) > 0.6
    assert usable[plain].mean() > 0.3


def test_clean_galaxies_seams_and_what_is_not_measured_are_not_usable():
    images = galaxies(16, seed=1)
    where = measure_hosts(images)
    assert not measure(images, where, STRETCH)[1].any()
    random = np.random.default_rng(0)
    seams, _ = artefact.inject(images, where, artefact.prior(16, random), STRETCH, random)
    assert not measure(seams, measure_hosts(seams), STRETCH)[1].any()
    nothing = Hosts(*(np.full(16, np.nan) for _ in range(5)))
    maps, usable = measure(images, nothing, STRETCH)
    assert not usable.any() and not maps.any()
