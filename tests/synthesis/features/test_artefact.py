"""Linear artefacts: straight, grey or in one band, without diffusion model or measurement."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.labels.settings import InjectRule, MapSettings
from galscan.synthesis.diffusion.maps import map_source
from galscan.synthesis.features import artefact
from galscan.synthesis.flux import Stretch
from tests.synthesis.features.test_dust_lane import hosts

STRETCHES = [Stretch(), Stretch(0.02)]
COLOURS = np.array([160, 120, 80], np.uint8)


def one(offset: float, angle: float, width: float, colour: tuple[float, ...], ends: tuple[float, float] = (-9, 9)):
    return np.array([offset, angle, width, *ends, *colour], np.float32).reshape(1, 1, 1, 8)


def put(images: np.ndarray, maps: np.ndarray, stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
    where = hosts(len(images), images.shape[1], radius=8)
    return artefact.inject(images, where, maps, stretch, np.random.default_rng(0))


def plain(count: int = 1, size: int = 48) -> np.ndarray:
    return np.broadcast_to(COLOURS, (count, size, size, 3)).copy()


@pytest.mark.parametrize("stretch", STRETCHES, ids=lambda s: str(s.softening))
def test_dark_lines_dim_all_bands_alike_and_trails_brighten_one(stretch):
    images, maps = plain(60), artefact.prior(60, np.random.default_rng(0))
    injected, depth = put(images, maps, stretch)
    through = stretch.to_flux(injected) / stretch.to_flux(images)
    dark = maps.reshape(60, 8)[:, 5] < 0
    assert injected.dtype == np.uint8 and 0.5 < dark.mean() < 0.95
    assert (injected[dark] <= images[dark]).all()
    assert np.ptp(through[dark], axis=-1).max() < 0.02  # but for the rounding of levels
    changed = dark & (through.min((1, 2, 3)) < 0.9)
    assert changed.sum() > 0.8 * dark.sum()  # some begin and end beside the picture
    bright = through[~dark].max((1, 2))
    assert (bright.max(1) > 1.005).mean() > 0.8 and (np.median(bright, 1) < bright.max(1)).all()
    assert ((depth > 0) & (depth <= 1)).all() and (depth >= artefact.LEAST_DEPTH).all()


@pytest.mark.parametrize("stretch", STRETCHES, ids=lambda s: str(s.softening))
@pytest.mark.parametrize("offset", [-0.7, 0.0, 1.1])
@pytest.mark.parametrize("angle", [0.0, 0.06, np.pi / 2])
def test_it_is_a_thin_straight_line_where_its_map_says(stretch, offset, angle):
    image = plain()
    found = put(image, one(offset, angle, 1.2, (-0.8,) * 3), stretch)[0]
    row, column = np.indices((48, 48)) - 23.5
    away = np.abs(column * np.sin(angle) - row * np.cos(angle) - 8 * offset)
    np.testing.assert_array_equal(found[0][away > 2], image[0][away > 2])
    on = found[0][away < 0.51]
    assert len(on) > 40
    np.testing.assert_allclose(stretch.to_flux(on) / stretch.to_flux(image[0, 0, 0]), 0.2, atol=0.05)


def test_it_begins_and_ends_where_its_map_says():
    changed = (put(plain(), one(0, 0, 1.2, (-0.8,) * 3, (-0.25, 0.5)), STRETCHES[0])[0] != plain())[0].any((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), np.arange(18, 36))  # 23.5 - 6 to 23.5 + 12


def test_a_trail_adds_light_to_its_band_also_where_there_is_none():
    dark = np.zeros((1, 48, 48, 3), np.uint8)
    dark[0, :4, :4] = 255
    found = put(dark, one(0, 0, 1.2, (0.2, 0, 0)), Stretch(0.02))[0][0, 23]
    assert (found[10:, 0] > 50).all() and (found[10:, 1:] == 0).all()


def test_a_line_without_depth_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    for stretch in STRETCHES:
        np.testing.assert_array_equal(put(images, np.repeat(one(0, 0, 1, (0, 0, 0)), 3, 0), stretch)[0], images)


def test_most_lines_run_along_rows_and_columns_and_they_differ():
    maps = artefact.prior(900, np.random.default_rng(1))
    assert maps.shape == (900, 1, 1, 8) and maps.dtype == np.float32
    offset, angle, width, begin, end = maps.reshape(900, 8).T[:5]
    along = np.abs(np.sin(2 * angle)) / 2 < 0.25
    assert 0.65 < along.mean() < 0.85 and 0.3 < (np.abs(np.sin(angle)) > 0.5).mean() < 0.7
    assert offset.std() > 0.3 and (width > 0.2).all() and (begin < 0).all() and (end > 0).all()
    np.testing.assert_array_equal(artefact.prior(900, np.random.default_rng(1)), maps)


def test_it_is_not_measured():
    with pytest.raises(InputError) as caught:
        artefact.measure(plain(), hosts(1, 48), STRETCHES[0])
    assert caught.value.exit_code == 2


def test_there_is_no_diffusion_model_of_it():
    assert not artefact.CONDITIONS and artefact.describe(artefact.prior(5, np.random.default_rng(0))).shape == (5, 0)
    rule = InjectRule(feature="artefact", hosts="t <= 0")
    source = map_source(rule, MapSettings(kind="maps"), None, np.empty((0, 1, 1, 8)), np.empty(0), device="cpu")
    expected = artefact.prior(6, np.random.default_rng(2))
    np.testing.assert_array_equal(source(6, np.random.default_rng(2)), expected)
