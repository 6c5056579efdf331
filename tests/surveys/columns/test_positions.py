"""Positions of a table: units, limits, and what is said about them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.surveys.columns.positions import position_columns, read_positions


@pytest.mark.parametrize(
    ("unit", "value", "message"),
    [("mag", 12.0, "'mag'"), ("pixel", 1.0, "'pixel'"), ("deg", 400.0, "is 400"), ("deg", np.inf, "is inf")],
)
def test_invalid_positions(unit: str, value: float, message: str) -> None:
    frame = pd.DataFrame({"id": [1], "ra": [value], "dec": [0.0]})
    frame.attrs["unit"] = {"ra": unit}
    with pytest.raises(InputError, match=message):
        read_positions(frame, "ra", "dec", np.array([1]), "t.fits")


@pytest.mark.parametrize(("unit", "expected"), [("h", 180.0), ("rad", np.degrees(12) % 360), ("", 12.0)])
def test_units(unit: str, expected: float) -> None:
    frame = pd.DataFrame({"ra": [12.0 if unit != "rad" else 12.0 - 2 * np.pi], "dec": [0.0]})
    frame.attrs["unit"] = {"ra": unit}
    assert read_positions(frame, "ra", "dec", np.array([1]), "t").ra[0] == pytest.approx(expected)


def test_positions_are_wrapped() -> None:
    frame = pd.DataFrame({"ra": [-10.0, 360.0, np.nan], "dec": [1.0, -90.0, 2.0]})
    found = read_positions(frame, "ra", "dec", np.arange(3), "t")
    np.testing.assert_array_equal(found.ra, [350, 0, np.nan])
    np.testing.assert_array_equal(found.dec, [1, -90, 2])
    assert len(found.notes) == 1, "one coordinate without the other"
    assert np.isnan(read_positions(frame, None, "dec", np.arange(3), "t").ra).all()
    assert position_columns(frame.drop(columns=["ra", "dec"]), {}, "t") == (None, None)
