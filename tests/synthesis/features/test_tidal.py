"""Tidal features: bands, arcs and fans of the host's colour, where their parameters say."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.synthesis.features import tidal
from galscan.synthesis.features.tidal import COLUMNS, COMPONENTS, PLUME, SHELL, STRENGTH, STRONGEST, TAIL, WARP
from galscan.synthesis.hosts import Hosts, measure_hosts
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts
from tests.synthesis.features.test_light import disk

SIZE = 96
PLAIN = {
    "strength": 0.5, "kind": TAIL, "angle": 0.0, "pitch": 1.5, "start": 1.0, "length": 2.0, "width": 0.15, "blue": 0.0,
    "ratio": 1.0, "lean": 0.0,
}  # fmt: skip


def one(**changes: float) -> np.ndarray:
    """Return a map with one component: by default a tail that is almost radial."""
    maps = np.zeros((1, 1, COMPONENTS, len(COLUMNS)), np.float32)
    maps[0, 0, 0] = [(PLAIN | changes)[name] for name in COLUMNS]
    return maps


def put(images: np.ndarray, where: Hosts, maps: np.ndarray, seed: int = 0, **options):
    return tidal.inject(images, where, maps, STRETCH, np.random.default_rng(seed), **options)


def round_host(**options: float) -> Hosts:
    return hosts(1, **options)._replace(axis_ratio=np.ones(1))


def light(where: Hosts, maps: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    image = galaxies(1, noise=0)[0] if image is None else image
    return tidal.tidal_light(image, where, 0, maps, STRETCH, np.random.default_rng(0), seeing=0.5)


def test_the_prior_has_tails_shells_and_plumes_of_all_strengths():
    maps = tidal.prior(400, np.random.default_rng(0))
    assert maps.shape == (400, 1, COMPONENTS, len(COLUMNS)) and maps.dtype == np.float32
    named = dict(zip(COLUMNS, np.moveaxis(maps[:, 0], -1, 0), strict=True))
    used = named["strength"] > 0
    assert used[:, 0].all() and 0.5 < used[:, 1].mean() < 0.8 and 0.5 < used[:, 2].mean() < 0.7
    assert (named["strength"][used] >= STRENGTH[0] - 1e-6).all() and (named["strength"] <= STRENGTH[1] + 1e-6).all()
    assert set(np.unique(named["kind"])) == {TAIL, SHELL, PLUME, WARP}
    assert 0.5 < (named["kind"][:, 0] == TAIL).mean() < 0.8 and (named["kind"][:, :2] != WARP).all()
    apart = np.cos(named["angle"][:, 1] - named["angle"][:, 0])
    assert (apart < -0.5).mean() > 0.9  # on opposite sides
    assert (np.sign(named["pitch"]) == np.sign(named["pitch"][:, :1])).all()
    np.testing.assert_array_equal(maps, tidal.prior(400, np.random.default_rng(0)))


@pytest.mark.parametrize("turned", [0.0, 0.8, np.pi / 2])
def test_a_tail_begins_at_its_radius_and_points_its_way_in_the_frame_of_the_host(turned):
    where = round_host(angle=turned)
    found = light(where, one()).mean(2)
    row, column = np.indices(found.shape) - (SIZE - 1) / 2
    along = (column * np.cos(turned) + row * np.sin(turned)) / 11
    across = (row * np.cos(turned) - column * np.sin(turned)) / 11
    inside = (along > 0.8) & (along < 3.2) & (np.abs(across) < 0.7)
    assert found[inside].sum() > 0.95 * found.sum() > 0
    middle, end = (found[(np.abs(along - at) < 0.2) & (np.abs(across) < 0.4)].mean() for at in (1.6, 2.9))
    assert middle > 2 * end
    spread = [np.sqrt(np.average(across[part] ** 2, weights=found[part])) for part in (along < 1.6, along > 2.2)]
    assert spread[1] > 1.2 * spread[0]  # wider outwards


@pytest.mark.parametrize("turn", [-1, 1])
def test_a_spiral_turns_as_its_pitch_says(turn):
    found = light(round_host(), one(pitch=turn * np.radians(30), length=3.0)).mean(2)
    row, column = np.indices(found.shape) - (SIZE - 1) / 2
    angle, radius = np.arctan2(row, column), np.hypot(row, column) / 11
    for s in (0.5, 1.5, 2.2):
        r = 1 + s * np.sin(np.radians(30))
        ring = np.where(np.abs(radius - r) < 0.06, found, 0)
        at = np.angle((ring * np.exp(1j * angle)).sum())
        assert at == pytest.approx(turn * np.log(r) / np.tan(np.radians(30)), abs=0.2)


@pytest.mark.parametrize("angle", [0.0, np.pi / 2])
def test_a_tail_begins_at_the_isophote_of_a_flat_host(angle):
    flat = hosts(1)._replace(axis_ratio=np.array([0.25]))
    begins = []
    for where in (round_host(), flat):
        found = light(where, one(angle=angle)).mean(2)
        u, v = where.frame(0, SIZE)
        begins.append(np.hypot(u, v)[found > 0.3 * found.max()].min() / 11)
    assert begins[1] / begins[0] == pytest.approx(2 if angle == 0 else 0.5, rel=0.25)


def test_a_shell_ends_sharply_outside_and_a_plume_does_not():
    where, line = hosts(1, radius=10), slice(48, None)
    shell, plume = (
        light(where, one(kind=kind, start=1.0, length=2.0, width=0.25, pitch=0.6)).mean(2)[46:50, line].mean(0)
        for kind in (SHELL, PLUME)
    )
    rise, fall = np.diff(shell).max(), -np.diff(shell).min()
    assert np.argmax(shell) == pytest.approx(20, abs=2.5) and fall > 1.7 * rise
    assert -np.diff(plume).min() < 2 * np.diff(plume).max() and np.argmax(plume) == pytest.approx(15, abs=3)


@pytest.mark.parametrize("pitch", [0.6, -0.6])
def test_a_warp_moves_the_outer_parts_and_keeps_their_light(pitch):
    image = disk(6)
    where = measure_hosts(image[None])
    moved = light(where, one(kind=WARP, strength=0.4, pitch=pitch, angle=np.pi / 2), image)
    flux = STRETCH.to_flux(image)
    host = flux - np.median(flux[:2], axis=(0, 1))
    assert np.abs(moved).sum() > 0.1 * host.sum()
    assert abs(float(moved.sum())) < 0.05 * host.sum()
    u, v = (axis / where.radius[0] for axis in where.frame(0, SIZE))
    near = np.hypot(u, v) < 0.3
    assert np.abs(moved[near]).max() < 0.15 * host.max()
    after = (host + moved).mean(2).clip(0)
    far = np.abs(u) > 1.2
    right, left = (np.average(v[side & far], weights=after[side & far]) for side in (u > 0, u < 0))
    # S-shaped, or to the same side
    assert right > 0.1 and (left < -0.1 if pitch > 0 else left > 0.1)


def test_a_host_that_reaches_the_border_is_not_warped():
    large, small = (light(hosts(1), one(kind=WARP), disk(radius)) for radius in (20, 6))
    assert (large == 0).all() and (small != 0).any()


def test_the_light_has_the_colour_of_the_host_or_is_bluer():
    image = galaxies(1, noise=0)
    where = measure_hosts(image)
    same, bluer = (light(where, one(blue=blue), image[0]).sum((0, 1)) for blue in (0.0, 0.4))
    flux = STRETCH.to_flux(image[0])
    u, v = where.frame(0, SIZE)
    host = flux[np.hypot(u, v) < where.radius[0]].mean(0)
    assert same[2] / same[0] == pytest.approx(host[2] / host[0], rel=0.1)
    assert bluer[2] / bluer[0] == pytest.approx(1.5 * same[2] / same[0], rel=0.01)


def test_brightness_is_relative_to_the_light_at_the_half_light_radius():
    image, where = galaxies(1, noise=0), hosts(1)
    faint, bright = (light(where, one(strength=s), image[0]) for s in (0.1, 0.4))
    np.testing.assert_allclose(bright, 4 * faint, rtol=1e-3, atol=1e-8)
    flux = STRETCH.to_flux(image[0]).mean(2)
    u, v = where.frame(0, SIZE)
    level = flux[np.abs(np.hypot(u, v) / 11 - 1) < 0.15].mean()
    assert 0.05 * level < faint.mean(2).max() < 0.25 * level


def test_features_of_no_strength_change_nothing_and_stronger_ones_are_more_visible():
    images = galaxies(3, noise=2)
    where, maps = measure_hosts(images), tidal.prior(3, np.random.default_rng(1))
    nothing = maps.copy()
    nothing[..., 0] = 0
    same, depth = put(images, where, nothing)
    np.testing.assert_array_equal(same, images)
    assert (depth == 0).all()
    depths = [put(images, where, tidal.deepen(maps, factor))[1] for factor in (0.3, 1, 3)]
    assert (np.diff(depths, axis=0) > 0).all()
    assert tidal.deepen(maps, 1e6)[..., 0].max() == np.float32(STRONGEST)
    assert (tidal.deepen(nothing, 2)[..., 0] == 0).all()  # unused components stay unused


def test_the_same_seed_adds_the_same():
    images, maps = galaxies(2, noise=2), tidal.prior(2, np.random.default_rng(1))
    first, again, other = (put(images, hosts(2), maps, seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_it_is_not_measured():
    with pytest.raises(InputError) as caught:
        tidal.measure(galaxies(1), hosts(1), STRETCH)
    assert caught.value.exit_code == 2
