from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.synthesis.features import dust_lane
from galscan.synthesis.features.comparison import compare_features, identical_images, measure_features, optical_depths
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts, measure_hosts

SIZE, STRETCH = 96, Stretch(0.06)


def smooth_galaxies(count: int) -> tuple[np.ndarray, Hosts]:
    """Draw reddish ellipticals without dust, as pixels, with their geometry."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    angle, ratio = random.uniform(0, np.pi, count), random.uniform(0.6, 0.9, count)
    flux = np.empty((count, SIZE, SIZE, 3), np.float32)
    for k in range(count):
        u, v = x * np.cos(angle[k]) + y * np.sin(angle[k]), y * np.cos(angle[k]) - x * np.sin(angle[k])
        light = np.exp(-np.hypot(u * np.sqrt(ratio[k]), v / np.sqrt(ratio[k])) / 8)
        flux[k] = light[..., None] * (0.9, 0.7, 0.5) + 0.002
    images = STRETCH.to_pixels(flux) + random.normal(0, 1.0, flux.shape)
    images = images.clip(0, 255).round().astype(np.uint8)
    return images, measure_hosts(images)


def lane() -> np.ndarray:
    """Return the map of a straight lane through the nucleus."""
    v = ((np.arange(dust_lane.SIDE) + 0.5) / dust_lane.SIDE * 2 - 1) * dust_lane.REACH
    across, along = np.exp(-0.5 * (v / 0.12) ** 2), np.exp(-0.5 * (v / 0.8) ** 2)
    return (0.7 * across[:, None] * along)[None].astype(np.float32)


def dimmed(images: np.ndarray, hosts: Hosts, law: tuple[float, float, float], depth: float = 0.3) -> np.ndarray:
    """Dim galaxies by a lane along their major axis, with optical depths of `depth` times `law` in three bands."""
    flux = STRETCH.to_flux(images)
    for k in range(len(images)):
        dy, dx = np.indices((SIZE, SIZE)) - np.array([hosts.y[k], hosts.x[k]])[:, None, None]
        cos, sin = np.cos(hosts.angle[k]), np.sin(hosts.angle[k])
        u, v = (dx * cos + dy * sin) / hosts.radius[k], (dy * cos - dx * sin) / hosts.radius[k]
        map_ = np.exp(-0.5 * (v / 0.12) ** 2 - 0.5 * (u / 0.8) ** 2)
        flux[k] *= np.exp(-depth * map_[..., None] * np.array(law))
    return STRETCH.to_pixels(flux).round().astype(np.uint8)


@pytest.mark.parametrize("law", [(1.0, 1.0, 1.0), (0.75, 1.0, 1.2), (0.5, 1.0, 1.5)])
def test_optical_depths_are_those_of_the_extinction(law):
    images, hosts = smooth_galaxies(8)
    maps = np.repeat(lane()[None], 8, 0)
    depth = optical_depths(dimmed(images, hosts, law), hosts, maps, STRETCH)
    assert depth.shape == (8, 3)
    assert np.median(depth[:, 0] / depth[:, 2]) == pytest.approx(law[0] / law[2], abs=0.06)
    # The mean where the lane is deep, relative to light beside it that its wings dim as well.
    assert 0.12 * law[2] < np.median(depth[:, 2]) < 0.3 * law[2]


def test_light_that_is_added_has_a_negative_depth():
    images, hosts = smooth_galaxies(4)
    brighter = dimmed(images, hosts, (-1, -1, -1))
    assert (optical_depths(brighter, hosts, np.repeat(lane()[None], 4, 0), STRETCH) < 0).all()
    nothing = optical_depths(images, hosts, np.zeros((4, 1, 64, 64), np.float32), STRETCH)
    assert nothing.shape == (4, 3) and np.isnan(nothing).all()


def test_injected_lanes_are_found_and_untouched_hosts_are_not():
    images, hosts = smooth_galaxies(24)
    random = np.random.default_rng(1)
    maps = np.repeat(lane()[None], 24, 0) * random.uniform(0.5, 1.5, (24, 1, 1, 1)).astype(np.float32)
    made, _ = dust_lane.inject(images, hosts, maps, STRETCH, random)
    survey = np.zeros(24, int)
    found = measure_features("dust_lane", made, survey, [STRETCH], ["irg"])
    clean = measure_features("dust_lane", images, survey, [STRETCH], ["irg"])
    measured = ["log_length", "axis_ratio", "log_depth", "colour_excess", "reddening"]
    assert list(found) == ["host", "usable", *measured]
    assert found["host"].all() and found["usable"].mean() > 0.7 and clean["usable"].mean() < 0.2
    assert found.loc[~found["usable"], "log_depth"].isna().all()
    usable = found["usable"].to_numpy()
    deep = maps.reshape(24, -1).max(1)[usable]
    assert np.corrcoef(deep, np.exp(found["log_depth"][usable]))[0, 1] > 0.8
    law = dust_lane.extinction_law("irg", np.array([2.0, 4.0]))
    most, least = 1 - law[:, 0] / law[:, 2]
    assert least - 0.1 < found["reddening"].median() < most + 0.1 and (found["colour_excess"][usable] > 0).all()


def test_each_picture_is_measured_with_the_stretch_of_its_store():
    images, hosts = smooth_galaxies(6)
    made = dimmed(images, hosts, (0.75, 1.0, 1.2), 0.6)
    other = Stretch(0.5)
    again = other.to_pixels(STRETCH.to_flux(made)).round().astype(np.uint8)
    both = np.concatenate([made, again])
    survey = np.repeat([0, 1], 6)
    right = measure_features("dust_lane", both, survey, [STRETCH, other], ["irg", "irg"])
    wrong = measure_features("dust_lane", both, survey, [STRETCH, STRETCH], ["irg", "irg"])
    pd.testing.assert_frame_equal(right[:6], wrong[:6])
    assert right["usable"].sum() > 8 and (right["log_depth"][6:].dropna() != wrong["log_depth"][6:].dropna()).all()
    first, second = right["log_depth"].to_numpy().reshape(2, 6)
    np.testing.assert_allclose(second, first, atol=0.15)


def table(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"host": True, "usable": np.isfinite(values), "log_depth": values})


def test_distances_are_those_of_kolmogorov_and_smirnov():
    values = np.arange(20.0)
    same = compare_features(table(values), table(values), table(values[:3]))
    assert same["quantities"]["log_depth"]["ks"] == 0 and same["quantities"]["log_depth"]["p"] == 1
    assert same["galaxies"]["hosts"] == {"n": 3, "host_measured": 3, "feature_measured": 3}
    apart = compare_features(table(values), table(values + 100), table(values))["quantities"]["log_depth"]
    assert apart["ks"] == 1 and apart["p"] < 1e-6
    assert apart["synthetic"]["median"] == 9.5 and apart["real"]["median"] == 109.5
    half = compare_features(table(values), table(values + 10), table(values))["quantities"]["log_depth"]
    assert half["ks"] == 0.5


def test_too_few_are_not_compared():
    few = np.append(np.arange(4.0), np.full(9, np.nan))
    entry = compare_features(table(few), table(np.arange(9.0)), table(few))
    assert entry["quantities"]["log_depth"]["ks"] is None and entry["quantities"]["log_depth"]["synthetic"]["n"] == 4
    assert entry["galaxies"]["synthetic"] == {"n": 13, "host_measured": 13, "feature_measured": 4}
    nothing = compare_features(table(few[4:]), table(few), table(few))["quantities"]["log_depth"]["synthetic"]
    assert nothing == {"n": 0, "median": None, "low": None, "high": None}


def test_same_pictures_are_found_by_their_pixels():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    other = images[[3, 1]].copy()
    other[1, 0, 0, 0] ^= 1
    np.testing.assert_array_equal(identical_images(other, images), [3, -1])
    assert len(identical_images(images[:0], images)) == 0
