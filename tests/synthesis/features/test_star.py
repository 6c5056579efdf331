"""Point sources: of the flux, place, colour and width that their map says."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.synthesis.features import lens, star
from galscan.synthesis.features.light import light_within
from galscan.synthesis.features.star import COLUMNS, DISTANCE, EXTENT, FLUX, LOCUS, SOURCES, WINGS
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts

SIZE = 96
PLAIN = {"distance": 2.5, "angle": 0.0, "flux": 0.02, "galaxy": 0, "colour": 0.6, "extent": 0, "wings": 4.5}


def one(**changes: float) -> np.ndarray:
    """Return the map of one source."""
    maps = np.zeros((1, 1, SOURCES, len(COLUMNS)), np.float32)
    maps[0, 0, 0] = [(PLAIN | changes)[name] for name in COLUMNS]
    return maps


def added(maps: np.ndarray, *, angle: float = 0.0, seeing: float = 2.0, **options) -> np.ndarray:
    """Return the light that is added to a galaxy, in flux."""
    image, where = galaxies(1, noise=0), hosts(1, angle=angle)
    injected, _ = star.inject(image, where, maps, STRETCH, np.random.default_rng(0), seeing=seeing, **options)
    return (STRETCH.to_flux(injected) - STRETCH.to_flux(image))[0]


def test_the_prior_has_one_to_three_sources_of_all_kinds():
    maps = star.prior(600, np.random.default_rng(0))
    assert maps.shape == (600, 1, SOURCES, len(COLUMNS)) and maps.dtype == np.float32
    named = dict(zip(COLUMNS, np.moveaxis(maps[:, 0], -1, 0), strict=True))
    used = named["flux"] > 0
    assert used[:, 0].all() and 0.3 < used[:, 1].mean() < 0.6 and 0.1 < used[:, 2].mean() < used[:, 1].mean()
    for name, (low, high) in (("distance", DISTANCE), ("flux", FLUX), ("wings", WINGS)):
        assert low - 1e-6 <= named[name][used].min() < named[name][used].max() <= high + 1e-6
    galaxy = named["galaxy"] == 1
    assert 0.3 < galaxy[used].mean() < 0.5
    assert (named["extent"][~galaxy] == 0).all() and (named["extent"][galaxy] >= EXTENT[0] - 1e-6).all()
    of_stars = named["colour"][~galaxy]
    assert of_stars.min() >= LOCUS[0, 0] - 1e-6 and of_stars.max() > 2 and (of_stars < star.BLUE).mean() > 0.6
    np.testing.assert_array_equal(maps, star.prior(600, np.random.default_rng(0)))


@pytest.mark.parametrize("turned", [0.0, 1.0])
def test_a_source_is_where_its_map_says_and_as_bright(turned):
    found = added(one(angle=0.5), angle=turned)
    y, x = np.unravel_index(found.mean(2).argmax(), found.shape[:2])
    middle = (SIZE - 1) / 2
    assert x == pytest.approx(middle + 2.5 * 11 * np.cos(0.5 + turned), abs=1)
    assert y == pytest.approx(middle + 2.5 * 11 * np.sin(0.5 + turned), abs=1)
    host = light_within(galaxies(1, noise=0)[0], hosts(1, angle=turned), 0, STRETCH)
    assert found.sum((0, 1)) == pytest.approx(0.02 * host * star.colours(0.6, "irg"), rel=0.1)


@pytest.mark.parametrize("wings", [2.5, 5.0])
def test_its_width_is_that_of_the_seeing(wings):
    distance = np.linspace(0, 200, 40001)
    profile = star.moffat(distance, width=3.0, wings=wings)
    assert np.interp(1.5, distance, profile) == pytest.approx(profile[0] / 2, rel=1e-3)
    assert np.trapezoid(2 * np.pi * distance * profile, distance) == pytest.approx(1, abs=0.01)
    narrow, wide = added(one(wings=wings), seeing=2.0), added(one(wings=wings), seeing=4.0)
    assert narrow.max() > 2 * wide.max()
    compact = added(one(wings=wings, galaxy=1, colour=-1.4, extent=0.9))
    assert compact[..., 1].max() < 0.8 * added(one(wings=wings))[..., 1].max()


def test_stars_are_on_the_stellar_locus_and_galaxies_as_blue_as_lensed_ones():
    # An elliptical has the colours of the host, which calibrate the bands.
    for colour, *_, g_r, r_i, _ in LOCUS:
        blue, red = star.colours(colour, "gri")[[0, 2]]
        assert -2.5 * np.log10(blue) + lens.HOST_COLOURS["g"] == pytest.approx(g_r, abs=1e-4)
        assert 2.5 * np.log10(red) - lens.HOST_COLOURS["i"] == pytest.approx(r_i, abs=1e-4)
    assert np.isfinite(star.colours(1.1, "ugrizy")).all()
    blue, red, galaxy = (added(one(colour=c, galaxy=k)).sum((0, 1)) for c, k in ((0.3, 0), (2.6, 0), (-2.0, 1)))
    ratio = [light[2] / light[0] for light in (red, blue, galaxy)]
    assert ratio == sorted(ratio) and ratio[1] > 3 * ratio[0]


def test_sources_outside_the_image_are_left_out():
    image = galaxies(1)
    injected, depth = star.inject(image, hosts(1), one(distance=6), STRETCH, np.random.default_rng(0))
    np.testing.assert_array_equal(injected, image)
    assert depth == [0]


def test_it_is_not_measured():
    with pytest.raises(InputError) as caught:
        star.measure(galaxies(1), hosts(1), STRETCH)
    assert caught.value.exit_code == 2
