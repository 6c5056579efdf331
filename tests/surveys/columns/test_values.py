"""Ids, numbers and angles of a column; more in tests/surveys/test_tables.py and tests/strangers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.surveys.columns.values import arcseconds, identifiers, numbers


def test_numbers_as_text() -> None:
    np.testing.assert_array_equal(numbers(pd.Series([" 1.5", "", None]), "t"), [1.5, np.nan, np.nan])
    with pytest.raises(InputError, match="'x'"):
        numbers(pd.Series(["1", "x"], name="a"), "t")


def test_ids() -> None:
    assert identifiers(pd.Series([3.0, 4.0]), "t").dtype == np.int64
    with pytest.raises(InputError, match="'a'"):
        identifiers(pd.Series(["a", "b", "a"], name="id"), "t")


def test_arcseconds() -> None:
    frame = pd.DataFrame({"r": [1.0]})
    assert arcseconds(frame, "r", "radius", "t").tolist() == [1]
    frame.attrs["unit"] = {"r": "arcmin"}
    assert arcseconds(frame, "r", "radius", "t").tolist() == [60]
