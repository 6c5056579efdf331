"""A seam is grey, straight, and nothing that a network learns to draw or to measure."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.errors import InputError
from galscan.generate import seam
from galscan.generate.flux import Stretch
from galscan.generate.maps import map_source
from galscan.settings import InjectRule, MapSettings
from tests.test_generate_dust_lane import hosts

STRETCHES = [Stretch(), Stretch(0.02)]
COLOURS = np.array([160, 120, 80], np.uint8)


def one(offset: float, angle: float, width: float, depth: float) -> np.ndarray:
    return np.array([offset, angle, width, depth], np.float32).reshape(1, 1, 1, 4)


def put(images: np.ndarray, maps: np.ndarray, stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
    return seam.inject(images, hosts(len(images), images.shape[1], radius=8), maps, stretch, np.random.default_rng(0))


def plain(count: int = 1, size: int = 48) -> np.ndarray:
    return np.broadcast_to(COLOURS, (count, size, size, 3)).copy()


@pytest.mark.parametrize("stretch", STRETCHES, ids=lambda s: str(s.softening))
def test_all_bands_are_dimmed_alike(stretch):
    images = plain(12)
    injected, depth = put(images, seam.prior(12, np.random.default_rng(0)), stretch)
    assert injected.dtype == np.uint8 and (injected <= images).all()
    through = stretch.to_flux(injected) / stretch.to_flux(images)
    assert np.ptp(through, axis=-1).max() < 0.02  # but for the rounding of levels
    assert (through.min((1, 2, 3)) < 0.9).all()
    assert ((depth > 0.25) & (depth <= 1)).all() and (depth >= seam.LEAST_DEPTH).all()


@pytest.mark.parametrize("stretch", STRETCHES, ids=lambda s: str(s.softening))
@pytest.mark.parametrize("offset", [-0.7, 0.0, 1.1])
@pytest.mark.parametrize("angle", [0.0, 0.06, np.pi / 2])
def test_it_is_a_thin_straight_line_where_its_map_says(stretch, offset, angle):
    image = plain()
    found = put(image, one(offset, angle, 1.2, 0.8), stretch)[0]
    row, column = np.indices((48, 48)) - 23.5
    away = np.abs(column * np.sin(angle) - row * np.cos(angle) - 8 * offset)
    np.testing.assert_array_equal(found[0][away > 2], image[0][away > 2])
    on = found[0][away < 0.51]
    assert len(on) > 40
    np.testing.assert_allclose(stretch.to_flux(on) / stretch.to_flux(image[0, 0, 0]), 0.2, atol=0.05)


def test_a_line_without_depth_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    for stretch in STRETCHES:
        np.testing.assert_array_equal(put(images, np.repeat(one(0, 0, 1, 0), 3, 0), stretch)[0], images)


def test_seams_run_along_rows_and_columns_and_differ():
    maps = seam.prior(400, np.random.default_rng(1))
    assert maps.shape == (400, 1, 1, 4) and maps.dtype == np.float32
    offset, angle, width, depth = maps.reshape(400, 4).T
    from_axis = np.abs(np.sin(2 * angle)) / 2
    assert from_axis.max() < 0.3 and 0.3 < (np.abs(np.sin(angle)) > 0.5).mean() < 0.7
    assert offset.std() > 0.3 and (width > 0.2).all() and ((depth > 0) & (depth <= 1)).all()
    np.testing.assert_array_equal(seam.prior(400, np.random.default_rng(1)), maps)


def test_it_is_not_measured():
    with pytest.raises(InputError) as caught:
        seam.measure(plain(), hosts(1, 48), STRETCHES[0])
    assert caught.value.exit_code == 2


def test_there_is_no_diffusion_model_of_it():
    assert not seam.CONDITIONS and seam.describe(seam.prior(5, np.random.default_rng(0))).shape == (5, 0)
    rule = InjectRule(feature="seam", hosts="t <= 0")
    source = map_source(rule, MapSettings(kind="maps"), None, np.empty((0, 1, 1, 4)), np.empty(0), device="cpu")
    expected = seam.prior(6, np.random.default_rng(2))
    np.testing.assert_array_equal(source(6, np.random.default_rng(2)), expected)
