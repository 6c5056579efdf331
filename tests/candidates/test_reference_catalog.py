"""Reference lists as people have them, and what is wrong with some."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from galscan.candidates import reference_catalog
from galscan.core import sky
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


def test_vizier_gives_hours_as_text_and_degrees_beside(tmp_path):
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


def test_names_are_text_and_never_empty(tmp_path):
    found = reference_catalog.read_known(
        write(tmp_path / "list.v2.csv", name=["", " a \n b ", None], ra=[200] * 3, dec=[1] * 3)
    )
    assert found.names.tolist() == ["list.v2 1", "a b", "list.v2 3"]
    assert reference_catalog.read_known(write(tmp_path / "n.csv", ra=[200.0], dec=[1])).names.tolist() == ["n 1"]
    assert reference_catalog.read_known(write(tmp_path / "i.csv", objid=[2**60 + 1], ra=[200.0], dec=[1])).names[
        0
    ] == str(2**60 + 1)


def test_hours_are_warned_of(tmp_path):
    hours = write(tmp_path / "h.csv", ra=[0.5, 12.1, 23.9], dec=[1, 2, 3])
    assert "if they are in hours, multiply them by 15" in reference_catalog.read_known(hours).warnings[0]
    assert (
        reference_catalog.read_known(write(tmp_path / "d.csv", ra_deg=[0.5, 12.1, 23.9], dec=[1, 2, 3])).warnings == []
    )
    assert reference_catalog.read_known(write(tmp_path / "e.csv", ra=[0.5, 12.1, 24.1], dec=[1, 2, 3])).warnings == []


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"name": ["a"], "x": [1]}, r"no column for ra \(it has: name, x\); name one 'ra'"),
        ({"ra": [1.0], "name": ["a"]}, "no column for dec"),
        ({"ra": ["12:30:00"], "dec": [5]}, "'12:30:00' is not a number .positions are in decimal degrees"),
        ({"ra": [10.0, 400.0], "dec": [5, 5]}, "row 2: ra 400, dec 5 is not on the sky"),
        ({"ra": [10.0], "dec": [-91.0]}, "row 1: ra 10, dec -91 is not on the sky"),
        ({"ra": [None], "dec": [None], "name": ["a"]}, "no row with a position in ra and dec"),
        ({"ra": [], "dec": []}, "has no rows"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, columns, words):
    with pytest.raises(InputError, match=words):
        reference_catalog.read_known(write(tmp_path / "k.csv", **columns))


def test_no_list_at_all(tmp_path):
    with pytest.raises(NotFoundError, match="no catalog at"):
        reference_catalog.read_known(tmp_path / "nothing.csv")


@pytest.mark.parametrize("radius", [0, -1, 60.1, float("nan"), float("inf")])
def test_radii_out_of_range(radius):
    with pytest.raises(InputError, match="more than 0 and at most 60 arcsec"):
        reference_catalog.check_radius(radius)
    assert reference_catalog.check_radius(60) == 60


@given(st.floats(0, 360), st.floats(-90, 90), st.floats(0, 360), st.floats(0, 60))
def test_separations_are_astropys(ra, dec, angle, arcsec):
    here = SkyCoord(ra, dec, unit="deg")
    there = here.directional_offset_by(angle * units.deg, arcsec * units.arcsec)  # not exact near a pole
    separation = here.separation(there).arcsec
    a, b = sky.unit_vectors(np.array([ra, there.ra.deg]), np.array([dec, there.dec.deg]))
    assert sky.arcseconds(np.linalg.norm(a - b)) == pytest.approx(separation, abs=1e-7)
    assert sky.chord(separation) == pytest.approx(np.linalg.norm(a - b), abs=1e-12)
