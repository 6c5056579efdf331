"""Lenses: deflections as published, several images inside the cut, and arcs of the colour and size of their map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from galscan.core.errors import InputError
from galscan.synthesis.features import lens
from galscan.synthesis.features.lens import COLUMNS, LEAST_DEPTH, colours, deflection, inject, prior, sersic, trace
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts

RING = {
    "einstein": 1.3, "flatness": 0.28, "turn": 0, "shear": 0, "shear_angle": 0, "offset": 0, "direction": 0,
    "source_radius": 0.15, "source_index": 1, "source_ratio": 1, "source_angle": 0, "slope": -1.4, "flux": 0.3,
}  # fmt: skip
directions = st.floats(0, 2 * np.pi)
ratios = st.floats(0.4, 0.97)


def one(**changes: float) -> np.ndarray:
    """Return the map of a round lens with a ring, or with `changes`."""
    named = RING | changes
    return np.array([named[name] for name in COLUMNS], np.float32).reshape(1, 1, 1, -1)


def put(image: np.ndarray, where, maps: np.ndarray, **options) -> tuple[np.ndarray, float]:
    """Return what was added, in flux, and the depth."""
    injected, depth = inject(image, where, maps, STRETCH, np.random.default_rng(0), **options)
    return (STRETCH.to_flux(injected) - STRETCH.to_flux(image))[0], float(depth[0])


def number_of_images(named: dict[str, float], axis_ratio: float) -> int:
    """Count images of a tiny source on a fine grid."""
    line = np.linspace(-3, 3, 401)
    return ndimage.label(trace(line[None], line[:, None], named | {"source_radius": 0.04}, axis_ratio=axis_ratio) > 1)[
        1
    ]


@given(
    st.floats(0.3, 3),
    ratios,
    directions,
    st.floats(0, 0.1),
    directions,
    st.tuples(st.floats(-4, 4), st.floats(-4, 4)),
)
@settings(max_examples=50)
def test_deflections_are_those_of_lenstronomy(einstein, axis_ratio, angle, shear, shear_angle, place):
    models = pytest.importorskip("lenstronomy.LensModel.lens_model", reason="lenstronomy is not installed")
    units = pytest.importorskip("lenstronomy.Util.param_util")
    e1, e2 = units.phi_q2_ellipticity(angle, axis_ratio)
    plus, cross = units.shear_polar2cartesian(shear_angle, shear)
    named = [{"theta_E": einstein, "e1": e1, "e2": e2}, {"gamma1": plus, "gamma2": cross}]
    x, y = np.add(place, 0.01)
    expected = models.LensModel(["SIE", "SHEAR"]).alpha(x, y, named)
    found = deflection(
        x, y, einstein=einstein, axis_ratio=axis_ratio, angle=angle, shear=shear, shear_angle=shear_angle
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(st.floats(0.3, 3), ratios, directions, directions, st.floats(0.2, 3))
def test_the_divergence_of_the_deflection_is_twice_the_surface_density(einstein, axis_ratio, angle, direction, radius):
    x, y, step = radius * np.cos(direction), radius * np.sin(direction), 1e-5
    mass = {"einstein": einstein, "axis_ratio": axis_ratio, "angle": angle}
    to_x, to_y = (np.array([-step, step]), np.zeros(2)), (np.zeros(2), np.array([-step, step]))
    bent_x = np.diff(deflection(x + to_x[0], y + to_x[1], **mass)[0])[0]
    bent_y = np.diff(deflection(x + to_y[0], y + to_y[1], **mass)[1])[0]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    density = einstein / (2 * np.sqrt(axis_ratio * along**2 + across**2 / axis_ratio))
    assert (bent_x + bent_y) / (2 * step) == pytest.approx(2 * density, rel=1e-4)


@given(directions, st.floats(0.01, 3))
def test_a_round_lens_is_a_singular_isothermal_sphere(direction, radius):
    towards = np.array([np.cos(direction), np.sin(direction)])
    found = deflection(*(radius * towards), einstein=1.5, axis_ratio=1.0, angle=0.3)
    np.testing.assert_allclose(found, 1.5 * towards, atol=1e-4)


@given(ratios, directions, st.floats(0.1, 0.65))
@settings(max_examples=12, deadline=None)
def test_sources_inside_the_cut_have_several_images(axis_ratio, direction, offset):
    inside = RING | {"flatness": 0, "einstein": 1, "direction": direction, "offset": offset}
    assert number_of_images(inside, axis_ratio) >= 2
    assert number_of_images(inside | {"offset": 1.6}, max(axis_ratio, 0.7)) == 1


def test_the_half_light_ellipse_has_half_of_the_light():
    line = np.linspace(-12, 12, 1201)
    x, y = line[None], line[:, None]
    for index in (0.5, 1, 2):
        light = sersic(x, y, radius=1, index=index, axis_ratio=0.5, angle=0.7)
        along, across = x * np.cos(0.7) + y * np.sin(0.7), y * np.cos(0.7) - x * np.sin(0.7)
        inside = along**2 * 0.5 + across**2 / 0.5 < 1
        assert light[inside].sum() / light.sum() == pytest.approx(0.5, abs=0.01)
        source = RING | {"einstein": 1, "source_radius": 1, "source_index": index}
        assert lens._source_flux(source) * 50**2 == pytest.approx(light.sum(), rel=0.01)


def test_lenses_of_the_prior_are_of_the_sizes_and_colours_of_real_ones():
    maps = prior(2000, np.random.default_rng(0))
    assert maps.shape == (2000, 1, 1, len(COLUMNS)) and maps.dtype == np.float32
    named = dict(zip(COLUMNS, maps.reshape(2000, -1).T, strict=True))
    ranges = {
        "einstein": lens.RELATIVE, "shear": (0, lens.SHEAR), "offset": (0, 1), "source_index": lens.INDEX,
        "source_ratio": (0.3, 1), "flux": lens.FLUX, "slope": lens.SLOPE[2:],
    }  # fmt: skip
    for name, (least, most) in ranges.items():
        assert least - 1e-6 <= named[name].min() < named[name].max() <= most + 1e-6
        assert np.ptp(named[name]) > 0.8 * (most - least) or name == "offset"
    assert np.std(named["turn"]) == pytest.approx(np.radians(10), rel=0.1)
    np.testing.assert_array_equal(prior(2000, np.random.default_rng(0)), maps)
    # AB colours of flat spectra are 0: of the source alone, without that of the host.
    assert colours(-2, "irg") == pytest.approx([10 ** (-0.4 * 0.39), 1, 10 ** (0.4 * 0.77)], rel=1e-5)
    assert (np.diff(colours(-1.4, "zirgu")) > 0).all() and (colours(-2.4, "g") > colours(0, "g")).all()


@pytest.mark.parametrize("angle", [0.0, 0.8])
def test_a_ring_is_as_wide_as_its_map_says_and_bluer_than_its_host(angle):
    image, where = galaxies(1, noise=0), hosts(1, radius=14, angle=angle)
    added, depth = put(image, where, one(), seeing=1.0)
    row, column = np.indices((96, 96)) - 47.5
    light, distance = added.mean(-1), np.hypot(row, column)
    assert depth > LEAST_DEPTH and light.sum() > 0
    assert (light * distance).sum() / light.sum() == pytest.approx(1.3 * 14, rel=0.05)
    host = (STRETCH.to_flux(image)[0][distance < 35] - 0.006).sum(0)  # above the sky
    red, green, blue = added.sum((0, 1)) / host
    assert green == pytest.approx(0.3, rel=0.15) and blue / green == pytest.approx(colours(-1.4, "g")[0], rel=0.1)
    assert blue > green > red > 0


def test_an_arc_is_on_the_side_of_its_source_and_turns_with_the_host():
    image = galaxies(1, noise=0)
    for angle in (0.0, 1.0, 2.5):
        added, _ = put(image, hosts(1, radius=12, angle=angle), one(offset=0.5, direction=0.4), seeing=1.0)
        light = added.mean(-1)
        y, x = ((light * axis).sum() / light.sum() - 47.5 for axis in np.indices(light.shape))
        assert np.cos(np.arctan2(y, x) - angle - 0.4) > 0.97


def test_more_flux_is_deeper_and_seeing_spreads_it():
    image, where = galaxies(1, noise=0), hosts(1, radius=14)
    depths, maps = [], one(flux=0.05)
    for _ in range(4):
        depths.append(put(image, where, maps)[1])
        maps = lens.deepen(maps, 2)
    assert (np.diff(depths) > 0.02).all() and 0 < depths[0] < depths[-1] < 1
    assert lens.deepen(one(flux=0.9), 2)[0, 0, 0, -1] == lens.BRIGHTEST
    sharp, blurred = (put(image, where, one(), seeing=s)[0].mean(-1) for s in (0.5, 3.0))
    assert sharp.max() > 1.5 * blurred.max() and sharp.sum() == pytest.approx(blurred.sum(), rel=0.1)


@pytest.mark.parametrize(
    ("radius", "changes", "seeing"),
    [
        (3, {}, 3.5),  # both sides of the ring overlap
        (14, {"source_radius": 0.03, "offset": 0.65}, 4.0),  # the arc is a point
        (14, {"offset": 0.97}, 1.0),  # hardly magnified
        (40, {}, 1.0),  # outside the image
    ],
)
def test_hosts_too_small_or_too_large_for_the_arcs_are_left_as_they_are(radius, changes, seeing):
    images = galaxies(2)
    maps = np.concatenate([one(**changes), one()])
    where = hosts(2, radius=14)._replace(radius=np.array([radius, 14.0]))
    injected, depth = inject(images, where, maps, STRETCH, np.random.default_rng(0), seeing=np.array([seeing, 1.0]))
    np.testing.assert_array_equal(injected[0], images[0])
    assert depth[0] == 0 and depth[1] > LEAST_DEPTH and (injected[1] != images[1]).any()


def test_it_is_not_measured():
    with pytest.raises(InputError) as caught:
        lens.measure(galaxies(1), hosts(1), STRETCH)
    assert caught.value.exit_code == 2
