"""Stretches recorded by stores, and their inversion."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from galscan.core.errors import InputError
from galscan.surveys.files.images import Rendering
from galscan.surveys.simulated import rendering as render
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.flux import JPEG_SOFTENING, Stretch, stretch_of
from galscan.synthesis.hosts import measure_hosts

STRETCHES = st.builds(Stretch, st.floats(3e-4, 0.5))
SIMULATED = SimulatedSurvey(count=10, size=32).describe()


def rendering(softening: float = 8.0) -> Rendering:
    units, subtract = dict.fromkeys("irg", 1.0), dict.fromkeys("irg", False)
    return Rendering("i", "r", "g", units, subtract, stretch=10.0, softening=softening)


@given(stretch=STRETCHES, pixels=arrays.arrays(np.uint8, (2, 3, 3)))
def test_stretched_again_a_picture_is_what_it_was(stretch, pixels):
    again = stretch.to_pixels(stretch.to_flux(pixels))
    assert np.abs(again - pixels).max() <= 1


@given(stretch=STRETCHES, level=st.integers(0, 254))
def test_white_has_flux_1_and_what_is_brighter_has_more(stretch, level):
    darker, brighter, white = (stretch.to_flux(np.full((1, 1, 3), v))[0, 0, 1] for v in (level, level + 1, 255))
    assert 0 <= darker < brighter and white == pytest.approx(1, rel=1e-4)


def test_flux_below_zero_is_black_and_above_white_is_white():
    flux = np.array([[[-1.0, -0.1, -3.0], [9.0, 9.0, 9.0]]])
    assert Stretch().to_pixels(flux).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_the_ratios_of_the_bands_are_kept_below_white():
    kept = Stretch().to_pixels(np.array([[[0.04, 0.02, 0.01]]]))[0, 0]
    assert kept.max() < 255 and kept[0] / kept[2] == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize(
    "provenance",
    [{}, {"stretch": None}, {"stretch": "as SDSS made it"}, {"rendering": None, "stretch": ""}],
    ids=["nothing", "none", "text", "empty text"],
)
def test_a_picture_that_came_stretched_is_taken_for_a_jpeg_of_sdss(provenance):
    assert stretch_of(provenance) == Stretch(JPEG_SOFTENING)


@pytest.mark.parametrize(
    "record",
    [
        {"stretch": {"kind": "histogram equalised"}}, {"stretch": {"kind": "Lupton asinh"}},
        {"stretch": {"kind": "Lupton asinh", "Q": "much"}}, {"rendering": {"method": "lupton2004 of something"}},
        {"rendering": {"method": 3}}, {"stretch": 4.0}, {"rendering": ["lupton2004"]},
    ],
)  # fmt: skip
def test_a_stretch_that_cannot_be_undone_is_refused(record):
    with pytest.raises(InputError, match=r"here\.zarr") as caught:
        stretch_of(record, "here.zarr")
    assert caught.value.exit_code == 2


def test_light_that_is_dimmed_looks_as_the_simulated_survey_shows_it():
    random = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48] - 23.5
    light = np.exp(-np.hypot(x, y) / 8) * np.array([0.15, 0.35, 0.6])[:, None, None]  # g, r, i
    through = random.uniform(0.2, 1, (3, 48, 48))
    floor = (render.PEDESTAL / render.BAND_SCALE)[:, None, None]  # the survey adds it, and it is dimmed as well
    bands, dimmed = (np.float32(b)[None] for b in (light, (light + floor) * through - floor))
    before, expected = render.lupton(bands)[0], render.lupton(dimmed)[0]
    stretch = stretch_of(SIMULATED)
    # Bands run from blue to red, the colours of a picture from red to blue.
    found = stretch.to_pixels(stretch.to_flux(before) * np.moveaxis(through, 0, -1)[..., ::-1])
    linear = (before < 255).all(-1)
    assert linear.mean() > 0.8 and np.abs(found - expected)[linear].max() <= 2
    assert np.abs(before.astype(float) - expected)[linear].max() > 30  # it is dimmed in earnest


@pytest.mark.parametrize("softening", [4.0, 8.0, 12.0])
def test_light_that_is_dimmed_looks_as_fits_images_do_that_are_dimmed(softening):
    given = rendering(softening)
    stretch = stretch_of({"stretch": "measured", "rendering": given.describe()})
    random = np.random.default_rng(0)
    flux = dict(zip("irg", np.exp(random.uniform(np.log(2), np.log(60), (3, 500))), strict=True))
    before, expected = given.colours(flux), given.colours({band: 0.6 * plane for band, plane in flux.items()})
    found = stretch.to_pixels(stretch.to_flux(before) * 0.6)
    linear = (before < 254).all(-1)  # levels are rounded down: 254 may be too bright for a byte
    assert linear.sum() > 100 and np.abs(found - expected)[linear].max() <= 2
    assert np.abs(before.astype(float) - expected)[linear].max() > 10


def test_jpegs_of_sdss_keep_the_colours_of_ellipticals_from_the_middle_outwards(real_data):
    catalog = pd.read_csv(real_data / "ngc-sdss" / "catalog.csv")
    clean = catalog[(catalog["efigi_t"] <= -2) & (catalog["efigi_visible_dust"] == 0)].iloc[:40]
    files = [real_data / "ngc-sdss" / name for name in clean["file"]]
    images = np.stack([np.asarray(Image.open(file).resize((96, 96))) for file in files])
    hosts = measure_hosts(images)
    y, x = np.mgrid[:96, :96]
    ratios = []
    for k in np.flatnonzero(hosts.measured):
        radius = np.hypot(x - hosts.x[k], y - hosts.y[k]) / hosts.radius[k]
        edges = ((0.2, 0.5), (0.6, 1), (1.2, 1.8))
        rings = [np.median(images[k][(radius >= low) & (radius < high)], axis=0) for low, high in edges]
        ratios.append([ring[2] / ring[0] for ring in rings])
    assert len(ratios) > 30 and np.ptp(np.median(ratios, axis=0)) < 0.03
