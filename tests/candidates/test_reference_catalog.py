"""Reference lists in all formats, and invalid ones."""

from __future__ import annotations

import pandas as pd
import pytest
from astropy.table import Table

from galscan.candidates import reference_catalog
from galscan.core.errors import InputError, NotFoundError


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", ["csv", "fits", "vot", "parquet"])
def test_every_kind_of_table(tmp_path, suffix):
    path = tmp_path / f"kaviraj2012.{suffix}"
    frame = pd.DataFrame({"name": ["NGC 1", "NGC 2"], "ra": [10.5, 200.25], "dec": [-5.0, 60.0]})
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        Table.from_pandas(frame).write(path, format="fits" if suffix == "fits" else "votable")
    found = reference_catalog.read_known(path)
    assert found.title == "kaviraj2012" and found.names.tolist() == ["NGC 1", "NGC 2"] and len(found) == 2
    assert found.ra.tolist() == [10.5, 200.25] and found.dec.tolist() == [-5, 60]
    assert found.without_position == 0 and found.warnings == []


def test_vizier_table_with_hours_as_text_beside_degrees(tmp_path):
    path = write(
        tmp_path / "v.csv", RAJ2000=["00 42 44.3"], DEJ2000=["+41 16 09"], _RAJ2000=[10.6846], _DEJ2000=[41.269],
        Name=["M 31"],
    )  # fmt: skip
    found = reference_catalog.read_known(path)
    assert found.ra[0] == 10.6846 and found.names[0] == "M 31"


def test_rows_without_a_position_are_counted(tmp_path):
    found = reference_catalog.read_known(
        write(tmp_path / "k.csv", name=["a", "b", "c"], ra=[10, None, 300.0], dec=[1, 2, None])
    )
    assert found.names.tolist() == ["a"] and found.without_position == 2


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"name": ["", " a \n b ", None]}, ["list.v2 1", "a b", "list.v2 3"]),
        ({}, ["list.v2 1", "list.v2 2", "list.v2 3"]),
        ({"objid": [2**60 + 1, 7, 8]}, [str(2**60 + 1), "7", "8"]),
    ],
)
def test_names_are_text_and_never_empty(tmp_path, columns, names):
    path = write(tmp_path / "list.v2.csv", **columns, ra=[200] * 3, dec=[1] * 3)
    assert reference_catalog.read_known(path).names.tolist() == names


@pytest.mark.parametrize(("column", "largest", "warnings"), [("ra", 23.9, 1), ("ra_deg", 23.9, 0), ("ra", 24.1, 0)])
def test_warning_about_hours(tmp_path, column, largest, warnings):
    path = write(tmp_path / "h.csv", **{column: [0.5, 12.1, largest]}, dec=[1, 2, 3])
    assert len(reference_catalog.read_known(path).warnings) == warnings


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"name": ["a"], "x": [1]}, "'ra'"),
        ({"ra": [1.0], "name": ["a"]}, "'dec'"),
        ({"ra": ["12:30:00"], "dec": [5]}, "'12:30:00'"),
        ({"ra": [10.0, 400.0, 500.0], "dec": [5, 5, 5]}, "row 2 is 400"),
        ({"ra": [10.0], "dec": [-91.0]}, "row 1 is -91"),
        ({"ra": [None], "dec": [None], "name": ["a"]}, "k.csv has no row with a position"),
        ({"ra": [], "dec": []}, "k.csv has no rows"),
    ],
)
def test_invalid_lists(tmp_path, columns, words):
    with pytest.raises(InputError, match=words):
        reference_catalog.read_known(write(tmp_path / "k.csv", **columns))
    with pytest.raises(NotFoundError, match=r"nothing\.csv"):
        reference_catalog.read_known(tmp_path / "nothing.csv")


@pytest.mark.parametrize("radius", [0, -1, 60.1, float("nan"), float("inf")])
def test_radii_out_of_range(radius):
    with pytest.raises(InputError, match="--radius"):
        reference_catalog.check_radius(radius)
    assert reference_catalog.check_radius(60) == 60
