"""Scale and zero point of pixels by their header."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.flux_scale import LUPTITUDE, check_zero_points, flux_scale, zero_point


@given(st.floats(0.01, 100), st.floats(-5, 5), st.floats(1, 1000), st.floats(-50, 5000))
def test_asinh_is_undone(softening: float, offset: float, exposure: float, flux: float) -> None:
    scale = flux_scale({"BSOFTEN": softening, "BOFFSET": str(offset), "EXPTIME": exposure})
    stored = LUPTITUDE * np.arcsinh((np.array([flux * exposure]) - offset) / (2 * softening))
    assert scale.linear(stored)[0] == pytest.approx(flux, abs=1e-6, rel=1e-6)


def test_linear_pixels_are_not_copied() -> None:
    values = np.ones(3, np.float32)
    assert flux_scale({"BUNIT": "MJy/sr", "EXPTIME": 3}).linear(values) is values


@pytest.mark.parametrize("header", [{"BSOFTEN": 0}, {"BSOFTEN": 1, "EXPTIME": 0}, {"BSOFTEN": "x"}, {"BUNIT": "dex"}])
def test_headers_that_cannot_be_used(header: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"BSOFTEN|BUNIT"):
        flux_scale(header)


def test_zero_points() -> None:
    assert zero_point({"FLUXMAG0": 1e9, "BUNIT": "nJy"}) == 22.5 and zero_point({"MAGZERO": "23.9"}) == 23.9
    assert zero_point({"BUNIT": "adu"}) is None
    check_zero_points([("g", "a", {"MAGZERO": 22.5}), ("g", "b", {"MAGZERO": 22.7}), ("r", "c", {"MAGZERO": 25})])
    with pytest.raises(InputError, match=r"a and b are 22\.50 and 23\.00"):
        check_zero_points([("g", "a", {"MAGZERO": 22.5}), ("g", "b", {"MAGZERO": 23.0})])
