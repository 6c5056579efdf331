from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.core.sky import check_cone, designation, in_cone


def _name(ra: float, dec: float) -> str:
    return str(designation(np.array([ra]), np.array([dec]))[0])


def _hms(h: int, m: int, s: float) -> float:
    return 15 * (h + m / 60 + s / 3600)


def test_truncates_where_rounding_would_go_up():
    assert _name(_hms(19, 57, 40.558), 33 + 38 / 60 + 27.96 / 3600) == "J195740.55+333827.9"


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (0.0, 0.0, "J000000.00+000000.0"),
        (360.0, 0.0, "J000000.00+000000.0"),
        (-1e-20, 0.0, "J000000.00+000000.0"),
        (359.9999999, 10.0, "J235959.99+100000.0"),
        (-15.0, -0.5, "J230000.00-003000.0"),
        (10.0, -0.0001, "J004000.00-000000.3"),
        (150.0, -90.0, "J100000.00-900000.0"),
        (150.0, 90.0, "J100000.00+900000.0"),
        (np.nan, 0.0, ""),
        (0.0, np.inf, ""),
        (0.0, 90.1, ""),
    ],
)
def test_corners(ra, dec, name):
    assert _name(ra, dec) == name


@given(st.floats(0, 360, exclude_max=True), st.floats(-90, 90))
def test_never_rounds_up_and_is_within_one_tick(ra, dec):
    pattern = r"J(\d\d)(\d\d)(\d\d\.\d\d)([+-])(\d\d)(\d\d)(\d\d\.\d)"
    h, m, s, sign, d, dm, ds = re.fullmatch(pattern, _name(ra, dec)).groups()
    assert int(h) < 24 and int(m) < 60 and float(s) < 60 and int(dm) < 60 and float(ds) < 60
    ticks = (int(h) * 3600 + int(m) * 60 + Fraction(s)) * 100
    exact = Fraction(ra) * 24000
    wrapped = exact - ticks - (8_640_000 if ticks == 0 and exact > 1 else 0)  # within the guard of 360 degrees it is 0
    assert -Fraction(2, 10**6) <= wrapped < 1
    ticks = (int(d) * 3600 + int(dm) * 60 + Fraction(ds)) * 10
    assert -Fraction(2, 10**6) <= abs(Fraction(dec)) * 36000 - ticks < 1
    assert sign == ("-" if dec < 0 else "+")


@given(st.integers(0, 8_639_999), st.integers(-3_240_000, 3_240_000))
def test_exact_ticks_keep_their_name(across, up):
    """A position that is a whole number of ticks must not lose one to floating point."""
    name = _name(across / 24000, up / 36000)
    assert name[1:10] == f"{across // 360000:02d}{across // 6000 % 60:02d}{across % 6000 // 100:02d}.{across % 100:02d}"
    assert name[11:] == f"{abs(up) // 36000:02d}{abs(up) // 600 % 60:02d}{abs(up) % 600 // 10:02d}.{abs(up) % 10}"


def test_vectorised_with_gaps():
    assert designation(np.array([1.0, np.nan]), np.array([2.0, 2.0])).tolist() == ["J000400.00+020000.0", ""]
    assert designation(np.array([]), np.array([])).shape == (0,)


@pytest.mark.parametrize("cone", [(361, 0, 1), (0, 91, 1), (0, 0, 0), (0, 0, 181), (np.nan, 0, 1)])
def test_a_cone_that_is_not_on_the_sky(cone):
    with pytest.raises(InputError, match=r"--cone .*: give right ascension 0 to 360"):
        check_cone(cone)


def test_in_a_cone():
    check_cone((0.0, 89.5, 1.0))
    ra, dec = np.array([180.0, 0.0, 359.9, np.nan]), np.array([89.6, 88.0, 89.0, 0.0])
    assert in_cone(ra, dec, (0.0, 89.5, 1.0)).tolist() == [True, False, True, False], "over the pole, across 0 h"
