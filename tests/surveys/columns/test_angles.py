"""Units of angles; more in tests/strangers/test_units.py."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.columns import angles


@pytest.mark.parametrize(
    "unit", [u for u in angles.DEGREES if u.isalpha() and u not in ("degs", "degr", "degrees", "amin")]
)
def test_units_are_those_of_astropy(unit: str) -> None:
    """Where astropy knows a unit of this name, and it is an angle, it is the same."""
    try:
        expected = units.Unit(unit).to(units.deg)
    except (ValueError, units.UnitsError):
        return
    assert angles.degrees_in(unit, hours=True) == pytest.approx(expected)


@given(st.floats(0.001, 1000))
def test_scaled_units_of_fits(factor: float) -> None:
    assert angles.degrees_in(f"{factor:.6f} arcsec") == pytest.approx(round(factor, 6) / 3600)


@pytest.mark.parametrize(
    ("text", "units_"),
    [("hour,deg", ("hour", "deg")), ("rad", ("rad", "rad")), ("h", ("h", "deg")), ("Deg", ("deg",) * 2)],
)
def test_position_unit(text: str, units_: tuple[str, str]) -> None:
    assert angles.parse_position_unit(text) == units_
    with pytest.raises(InputError, match="deg,hour"):
        angles.parse_position_unit("deg,hour")


def test_sexagesimal_of_the_wrong_form() -> None:
    import pandas as pd

    for text in ("12:30", "12:75:00", "abc", "1 2 3 4"):
        assert angles.parse_sexagesimal(pd.Series([text]), 15.0) is None
    assert np.isnan(angles.parse_sexagesimal(pd.Series(["12:30:00", None]), 15.0)[1])
