"""Rings: where they are, how bright and how blue, and that real and injected ones have like contrasts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from galscan.labels.recipe import load_recipe
from galscan.labels.rules import parse_rule
from galscan.synthesis.features.ring import (
    BRIGHTEST,
    COLUMNS,
    FLATTEST,
    GAP,
    LEAST_DEPTH,
    deepen,
    describe,
    inject,
    measure,
    prior,
)
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts, measure_hosts
from galscan.synthesis.injection import DEEPENED, DEEPER
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts


def ring(**changes: float) -> np.ndarray:
    """Return the map of an even ring without a gap."""
    values = dict.fromkeys(COLUMNS, 0.0) | {"radius": 1.5, "width": 0.1, "brightness": 0.8, "ratio": 1.0} | changes
    return np.array([values[name] for name in COLUMNS], np.float32).reshape(1, 1, 1, -1)


def put(images: np.ndarray, where: Hosts, maps: np.ndarray, seed: int = 0, **options) -> tuple[np.ndarray, np.ndarray]:
    return inject(images, where, maps, STRETCH, np.random.default_rng(seed), **options)


def excess(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the relative change of the flux, smoothed, shape (S, S, 3)."""
    old, new = (ndimage.gaussian_filter(STRETCH.to_flux(x), (1, 1, 0)) for x in (before, after))
    return new / old - 1


def test_rings_of_the_prior_are_of_every_kind():
    maps = prior(500, np.random.default_rng(0))
    values = pd.DataFrame(maps.reshape(500, -1), columns=list(COLUMNS))
    assert maps.shape == (500, 1, 1, 10) and maps.dtype == np.float32 and np.isfinite(maps).all()
    assert values["radius"].between(0.7, 2.4001).all() and np.ptp(values["radius"].quantile([0.1, 0.9])) > 0.7
    assert values["brightness"].between(0.05, BRIGHTEST).all() and values["ratio"].between(0.7, 1).all()
    assert (values[["gap", "blue", "uneven", "clumps"]] >= 0).all(axis=None) and (values["gap"] < 1).all()
    assert values["seed"].nunique() > 480
    assert describe(maps).shape == (500, 0)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(1, 3))
def test_a_deeper_ring_is_brighter_and_else_the_same(seed, factor):
    maps = prior(3, np.random.default_rng(seed))
    deeper = deepen(maps, factor)
    which = COLUMNS.index("brightness")
    assert (deeper[..., which] >= maps[..., which]).all() and deeper[..., which].max() <= np.float32(BRIGHTEST)
    np.testing.assert_array_equal(np.delete(deeper, which, -1), np.delete(maps, which, -1))


@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
def test_a_ring_is_in_the_plane_of_the_disk(angle):
    image = galaxies(1, noise=0)
    where = hosts(1, radius=14, angle=angle)._replace(x=np.array([49.0]), y=np.array([46.0]))
    after, depth = put(image, where, ring(radius=1.5), seeing=0.5)
    u, v = where.frame(0, 96)
    radius = np.hypot(u, v / where.axis_ratio[0]) / where.radius[0]
    added = excess(image[0], after[0]).mean(-1)
    on, inside = added[np.abs(radius - 1.5) < 0.1], added[radius < 0.9]
    assert np.median(on) > 0.4 and np.abs(inside).max() < 0.05 and np.abs(added[radius > 2.4]).max() < 0.1
    assert np.quantile(on, 0.1) > 0.1  # all around
    assert depth[0] > LEAST_DEPTH
    untouched = radius < 0.8
    np.testing.assert_array_equal(after[0][untouched], image[0][untouched])


def test_brighter_rings_are_deeper_and_blue_ones_bluer():
    image, depths = galaxies(1, noise=0), []
    where = measure_hosts(image)
    for brightness in (0.1, 0.3, 1.0):
        depths.append(float(put(image, where, ring(brightness=brightness))[1][0]))
    assert (np.diff(depths) > 0.01).all() and 0 < depths[0] < depths[-1] < 1
    u, v = where.frame(0, 96)
    on = np.abs(np.hypot(u, v / where.axis_ratio[0]) / where.radius[0] - 1.5) < 0.1
    red, green, blue = excess(image[0], put(image, where, ring(blue=0.5))[0][0])[on].mean(0)
    assert blue > green > red > 0


def test_the_gap_is_dimmer_inside_the_ring_only():
    image = galaxies(1, noise=0)
    where = measure_hosts(image)
    change = excess(image[0], put(image, where, ring(brightness=0.0, gap=0.3))[0][0]).mean(-1)
    u, v = where.frame(0, 96)
    radius = np.hypot(u, v / where.axis_ratio[0]) / where.radius[0] / 1.5
    assert change[np.abs(radius - GAP) < 0.05].mean() < -0.15
    assert np.abs(change[radius < 0.1]).max() < 0.03 and np.abs(change[np.abs(radius - 1.3) < 0.1]).mean() < 0.03


def test_seeing_blurs_a_ring():
    image = galaxies(1, noise=0)
    where = measure_hosts(image)
    peaks = [excess(image[0], put(image, where, ring(width=0.06), seeing=s)[0][0]).max() for s in (0.3, 3.0)]
    assert peaks[0] > 1.3 * peaks[1]


def test_unsuitable_hosts_are_left_as_they_are():
    images = galaxies(2, noise=2)
    flat = hosts(2)._replace(axis_ratio=np.full(2, FLATTEST - 0.05))
    cut = hosts(2, radius=40)
    for where in (flat, cut):
        after, depth = put(images, where, np.repeat(ring(radius=2.0), 2, 0))
        np.testing.assert_array_equal(after, images)
        assert (depth == 0).all()


def test_the_same_seed_injects_the_same():
    images, maps = galaxies(3, noise=3), prior(3, np.random.default_rng(1))
    one, again, other = (put(images, hosts(3), maps, seed=seed)[0] for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and len(put(images[:0], hosts(0), maps[:0])[0]) == 0


def test_an_injected_ring_is_measured_and_none_without():
    images = galaxies(24)
    where = measure_hosts(images)
    assert not measure(images, where, STRETCH)[1].any()
    maps = np.concatenate([ring(radius=r, brightness=0.6) for r in np.linspace(1.0, 1.8, 24)])
    after = inject(images, where, maps, STRETCH, np.random.default_rng(0))[0]
    found, usable = measure(after, where, STRETCH)
    assert found.shape == maps.shape and found.dtype == np.float32 and usable.mean() > 0.8
    np.testing.assert_allclose(found[usable, 0, 0, 0], maps[usable, 0, 0, 0], atol=0.2)
    contrast = found[usable, 0, 0, COLUMNS.index("brightness")]
    assert ((contrast > 0.1) & (contrast < 0.7)).mean() > 0.8
    nothing = Hosts(*(np.full(24, np.nan) for _ in range(5)))
    assert not measure(after, nothing, STRETCH)[1].any()


def test_injected_rings_have_the_contrast_of_real_ones(real_data):
    """With depths as in training, neither the medians differ by a factor of 2 nor the brighter ones by 0.2."""
    table = pd.read_csv(real_data / "ngc-sdss" / "catalog.csv").dropna(subset="efigi_t")
    table = table.rename(columns=lambda name: name.removeprefix("efigi_"))
    rule = load_recipe("ring").schemas["efigi"].inject
    plain = table.query("(inner_ring >= 0.75 or outer_ring >= 0.75) and inclination <= 0.5")
    columns = {name: table[name].to_numpy() for name in table}
    clean = table[parse_rule(rule.hosts, list(columns)).evaluate(columns)[0]]
    assert len(plain) > 30 and len(clean) > 90
    clean = clean.sample(40, random_state=0)
    real, without = (np.stack([_picture(real_data / "ngc-sdss" / f) for f in t["file"]]) for t in (plain, clean))
    stretch, where, random = Stretch(), measure_hosts(without), np.random.default_rng(0)
    without, where = without[where.measured], where.select(where.measured)
    maps, requested = prior(len(without), random), random.uniform(LEAST_DEPTH, rule.plain, len(without))
    injected, depth = inject(without, where, maps, stretch, random, seeing=0.6)
    for _ in range(DEEPENED):
        rows = np.flatnonzero(depth < requested)
        maps[rows] = deepen(maps[rows], DEEPER)
        injected[rows], depth[rows] = inject(without[rows], where.select(rows), maps[rows], stretch, random, seeing=0.6)
    contrast = [_contrast(images, stretch) for images in (injected[depth >= LEAST_DEPTH], real, without[::2])]
    made, true, none = (np.percentile(values, [16, 50, 84]) for values in contrast)
    assert 0.5 < made[1] / true[1] < 2 and true[0] < made[0] + 0.1 and abs(made[2] - true[2]) < 0.2
    assert none[1] < 0.25 * made[1]


def _picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((96, 96), Image.Resampling.LANCZOS))


def _contrast(images: np.ndarray, stretch: Stretch) -> np.ndarray:
    where = measure_hosts(images)
    maps, _ = measure(images[where.measured], where.select(where.measured), stretch)
    return maps[:, 0, 0, COLUMNS.index("brightness")]
