"""Extinction by a layer of dust inside the stars, compared with analytic results."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.surveys.simulated import population
from galscan.surveys.simulated.starlight import EXTINCTION, transmission


def test_dust_hides_only_what_is_behind_it() -> None:
    """A face-on opaque sheet through the centre hides half the light; an inclined one, F(y tan i)."""
    sky = {name: values[:1].copy() for name, values in population.draw(3, 0, 1.0).items()}
    zero = ("dust_arms", "dust_warp", "dust_clumps", "dust_ring", "dust_angle", "angle", "x", "y")
    values = dict.fromkeys(zero, 0.0) | {
        "dust_tau": 1e4, "dust_thickness": 1e-3, "dust_radius": 0.4, "dust_core": 0.01, "dust_side": 1.0,
        "dust_cos": 1.0,
    }  # fmt: skip
    sky |= {name: np.array([value]) for name, value in values.items()}
    face_on = transmission(sky, 64)[0, 0]
    assert face_on[30:34, 30:34] == pytest.approx(0.5, abs=0.015) and face_on[0, 0] > 0.9
    sky["dust_cos"] = np.array([0.5])
    y = (np.arange(64) + 0.5) / 64 - 0.5
    # F at depth y tan 60, on the minor axis
    expected = 0.5 * (1 + y * np.sqrt(3) / np.sqrt(3 * y**2 + y**2 + y[32] ** 2 + 0.01**2))
    inside = np.abs(y) < 0.15
    assert transmission(sky, 64)[0, 0, :, 32][inside] == pytest.approx(expected[inside], abs=0.01)
    sky |= {"dust_tau": np.array([0.3]), "dust_cos": np.array([1.0])}
    thin = transmission(sky, 64)[0, :, 32, 32]
    # Half of the light, each band with its own extinction.
    assert thin == pytest.approx((1 + np.exp(-0.3 * 1.6 * EXTINCTION)) / 2, abs=0.01)
