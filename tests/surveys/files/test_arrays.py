"""Rendering of planes, and planes that are stretched already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.arrays import Stretched, as_picture
from galscan.surveys.files.cutana import CutanaSurvey
from galscan.surveys.files.local import LocalSurvey
from tests.packed_on_disk import pictures, planes, write_cutana
from tests.pictures_on_disk import frame


def test_planes_are_rendered_as_fits_files(tmp_path: Path) -> None:
    flux = planes(4)
    write_cutana(tmp_path / "c", np.moveaxis(flux, 1, -1), ids=range(4))
    (tmp_path / "f").mkdir()
    for k, image in enumerate(flux):
        for band, plane in zip("irg", image, strict=True):
            frame(tmp_path / "f" / f"{k}_{band}.fits", plane)
    packed, files = CutanaSurvey(tmp_path / "c", size=20), LocalSurvey(tmp_path / "f", size=20)
    assert list(packed.rendering.unit.values()) == list(files.rendering.unit.values())
    for one, other in zip(packed.cutouts(0, 4), files.cutouts(0, 4), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.image[2:4].mean() > 2 * one.image[-4:-2].mean()  # north is up


def test_stretched_planes_are_not_stretched_again(tmp_path: Path) -> None:
    shown = pictures(4)
    write_cutana(tmp_path / "f", shown.astype(np.float32) / 255)
    write_cutana(tmp_path / "u", shown)
    floats, bytes_ = CutanaSurvey(tmp_path / "f", size=20), CutanaSurvey(tmp_path / "u", size=20)
    for one, other in zip(floats.cutouts(0, 4), bytes_.cutouts(0, 4), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert floats.notes == ["all pixels are within 0 to 1: no stretch is applied"] and not bytes_.notes
    assert floats.describe()["rendering"]["method"].startswith("linear") and bytes_.describe()["rendering"] is None


@given(st.floats(-3, 3), st.floats(0.1, 5))
def test_noise_is_not_stretched(level: float, sigma: float) -> None:
    plane = np.random.default_rng(0).normal(level, sigma, (40, 40))
    assert not Stretched.is_stretched(plane - plane.mean())


def test_bad_pixels(tmp_path: Path) -> None:
    flux = planes(6)
    flux[1], flux[2, 1], flux[3], flux[4, :, :5] = np.nan, np.nan, 7.0, np.nan
    write_cutana(tmp_path, np.moveaxis(flux, 1, -1))
    outcomes = list(CutanaSurvey(tmp_path, size=20).cutouts(0, 6))
    assert [getattr(o, "flag", None) for o in outcomes[1:4]] == [Flag.NONFINITE, Flag.NONFINITE, Flag.BLANK]
    assert outcomes[4].flags == Flag.EDGE and not outcomes[4].image[-5:].any()
    assert isinstance(outcomes[0], Cutout) and outcomes[5].flags == Flag.OK


def test_stretched_and_bad(tmp_path: Path) -> None:
    stretched = Stretched()
    nothing = np.full((8, 8), np.nan)
    assert stretched.picture({"r": nothing}, 8, 1.0).flag == Flag.NONFINITE
    two = stretched.picture({"a": np.eye(8), "b": np.eye(8)}, 8, 1.0)
    assert isinstance(two, Failed) and "2 stretched planes" in two.reason
    grey = stretched.picture({"a": np.eye(8)}, 8, 1.0)
    assert isinstance(grey, Cutout) and grey.image[0, 7].tolist() == [255] * 3 and grey.image[0, 0].tolist() == [0] * 3


@pytest.mark.parametrize("shape", [(9, 9, 3), (3, 9, 9), (9, 9, 1), (1, 9, 9)])
def test_channels_first_or_last(shape: tuple[int, ...]) -> None:
    found = as_picture(np.zeros(shape, np.uint8))
    assert isinstance(found, np.ndarray) and found.shape == (9, 9, 3)
