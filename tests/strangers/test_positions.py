"""Positions: columns of any usual name are found, and it is said when none is, or when one looks wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import FK4, SkyCoord
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

from galscan.candidates.reference_catalog import read_known
from galscan.cli import main
from galscan.core.errors import InputError
from galscan.surveys.columns.names import PAIRS
from galscan.surveys.columns.positions import position_columns, read_positions
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import picture, write

RA, DEC = [10.5, 200.25, 359.9], [-5.0, 60.0, 0.25]
NAMES = [
    ("ra", "dec"), ("RA", "DEC"), (" ra", " dec"), ("ra", "decl"), ("RAdeg", "DEdeg"), ("RA(deg)", "DEC(deg)"),
    ("RA [deg]", "Dec [deg]"), ("RAJ2000", "DEJ2000"), ("ALPHA_J2000", "DELTA_J2000"), ("coord_ra", "coord_dec"),
    ("raMean", "decMean"), ("RIGHT_ASCENSION", "DECLINATION"), ("Right Ascension", "Declination"), ("s_ra", "s_dec"),
    ("R.A.", "Decl."), ("TARGET_RA", "TARGET_DEC"), ("X_WORLD", "Y_WORLD"), ("RA_ICRS", "DE_ICRS"),
    ("ra_deg", "dec_deg"), ("ra_j2000", "dec_j2000"), ("RA (J2000)", "Dec (J2000)"),
    ("ALPHAWIN_J2000", "DELTAWIN_J2000"), ("alpha", "delta"),
    ("ra_degrees", "dec_degrees"), ("sky_centroid.ra", "sky_centroid.dec"), ("RA_ICRS", "DEJ2000"),
]  # fmt: skip


def images(folder: Path, ids: object = (1, 2, 3)) -> Path:
    for i in ids:  # type: ignore[attr-defined]
        picture(folder / "images" / f"{i}.png", (16, 16))
    return folder / "images"


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_usual_names(tmp_path: Path, names: tuple[str, str]) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], names[0]: RA, "mag": [20.0, 21.0, 22.0], names[1]: DEC})
    frame.to_csv(tmp_path / "t.csv", index=False)
    survey = LocalSurvey(images(tmp_path), tmp_path / "t.csv", size=16)
    assert survey.ra.tolist() == RA and survey.dec.tolist() == DEC and survey.position_notes == []
    known = read_known(tmp_path / "t.csv")
    assert known.ra.tolist() == RA and known.dec.tolist() == DEC


@given(st.sampled_from(PAIRS), st.sampled_from([str.upper, str.lower, str.title]), st.sampled_from(["", " ", "  "]))
def test_case_and_blanks_do_not_matter(pair: tuple[str, str], case: object, blank: str) -> None:
    names = [blank + case(name) + blank for name in pair]  # type: ignore[operator]
    assert position_columns(pd.DataFrame({n: [1.0] for n in names}), {}, "t") == tuple(names)


def test_columns_that_are_not_there_are_said_with_those_that_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "t.csv", "id,lon,lat\n1,10,20\n2,30,40\n3,50,60\n")
    line = ["ingest", "--survey", "local", "--path", str(images(tmp_path)), "--catalog", str(tmp_path / "t.csv")]
    assert main.run([*line, "--out", str(tmp_path / "s.zarr"), "--size", "32"]) == 0
    assert "lon, lat" in capsys.readouterr().err
    with pytest.raises(InputError, match="lon, lat"):
        read_known(tmp_path / "t.csv")


def test_no_catalog_at_all_is_said(tmp_path: Path) -> None:
    assert len(LocalSurvey(images(tmp_path), size=16).position_notes) == 1


@pytest.mark.parametrize(("columns", "other"), [("id,ra,mag", "dec"), ("id,mag,DEC", "ra"), ("id,coord_ra,x", "dec")])
def test_one_coordinate_without_the_other(tmp_path: Path, columns: str, other: str) -> None:
    write(tmp_path / "t.csv", f"{columns}\n1,10,20\n")
    with pytest.raises(InputError, match=f"--column {other}="):
        LocalSurvey(images(tmp_path), tmp_path / "t.csv", size=16)
    with pytest.raises(InputError, match=f"'{other}'"):
        read_known(tmp_path / "t.csv")


def test_a_named_column_finds_its_partner(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "id,ra,dec,raMean,decMean\n1,1,2,10,20\n2,1,2,30,40\n3,1,2,50,60\n")
    survey = LocalSurvey(images(tmp_path), tmp_path / "t.csv", size=16, columns={"dec": "decMean"})
    assert survey.ra.tolist() == [10, 30, 50] and survey.dec.tolist() == [20, 40, 60]


def test_pairs_that_differ_are_not_chosen_from(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "RAJ2000": RA, "DEJ2000": DEC, "RA_ICRS": RA, "DE_ICRS": DEC})
    assert position_columns(frame, {}, "t") == ("RA_ICRS", "DE_ICRS"), "they agree"
    with pytest.raises(InputError, match="RAJ2000, DEJ2000"):
        position_columns(frame.assign(DEJ2000=[1.0, 2.0, 3.0]), {}, "t")
    named = position_columns(frame.assign(ra=["00 42 44", "b", "c"], dec=["41 16 09", "e", "f"]), {}, "t")
    assert named == ("RA_ICRS", "DE_ICRS"), "sexagesimal text is not preferred to numbers"


def test_main_ucds_come_before_names() -> None:
    frame = pd.DataFrame({"ra": [1.0], "dec": [2.0], "x": [3.0], "y": [4.0]})
    frame.attrs["ucd"] = {"x": "pos.eq.ra;meta.main", "y": "pos.eq.dec;meta.main"}
    assert position_columns(frame, {}, "t") == ("x", "y")
    frame.attrs["ucd"] = {"x": "pos.eq.ra", "y": "pos.eq.dec"}
    assert position_columns(frame, {}, "t") == ("ra", "dec")


@pytest.mark.parametrize("bad", [-999.0, 1e20, np.inf, 9999.0])
def test_a_row_outside_the_sky_has_no_position(tmp_path: Path, bad: float) -> None:
    frame = pd.DataFrame({"id": [1, 2, 3], "ra": [10.5, bad, 359.9], "dec": [-5.0, bad, 0.25]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    survey = LocalSurvey(images(tmp_path), tmp_path / "t.csv", size=16)
    np.testing.assert_array_equal(survey.ra, [10.5, np.nan, 359.9])
    np.testing.assert_array_equal(survey.dec, [-5, np.nan, 0.25])
    assert len(survey.position_notes) == 1 and f"{bad:g}" in survey.position_notes[0]
    known = read_known(tmp_path / "t.csv")
    assert known.names.tolist() == ["1", "3"] and known.without_position == 1 and len(known.warnings) == 1


def test_minus_99_is_not_wrapped_to_261() -> None:
    found = read_positions(pd.DataFrame({"a": [1.0, 2.0, -99.0], "b": [1.0, 2.0, -99.0]}), "a", "b", np.arange(3), "t")
    np.testing.assert_array_equal(found.ra, [1, 2, np.nan])


def test_most_rows_outside_the_sky_are_refused() -> None:
    frame = pd.DataFrame({"ra": [1e6, 2e6, 3.0], "dec": [1e6, 2e6, 3.0]})
    with pytest.raises(InputError, match="1e\\+06"):
        read_positions(frame, "ra", "dec", np.arange(3), "t")


WHOLE_SKY = np.linspace(0.01, 0.99, 50)


@pytest.mark.parametrize(
    ("ra", "dec", "unit"),
    [
        (24 * WHOLE_SKY, 160 * WHOLE_SKY - 80, "hour,deg"),
        (2 * np.pi * WHOLE_SKY, 3 * WHOLE_SKY - 1.5, "rad"),
        (np.full(50, 0.93) + WHOLE_SKY / 100, -0.49 + WHOLE_SKY / 100, "rad"),  # one field of LSST
        (360 * WHOLE_SKY, 160 * WHOLE_SKY - 80, None),
        (10 + WHOLE_SKY, 5 + WHOLE_SKY, None),  # one field in degrees
    ],
)
def test_positions_that_look_like_other_units(
    tmp_path: Path, ra: np.ndarray, dec: np.ndarray, unit: str | None
) -> None:
    frame = pd.DataFrame({"id": range(50), "ra": ra, "dec": dec})
    found = read_positions(frame, "ra", "dec", np.arange(50), "t")
    assert [unit in note for note in found.notes] == [True] * bool(unit)
    if unit:
        frame.to_csv(tmp_path / "t.csv", index=False)
        from galscan.surveys.tables import Catalog

        known = read_known(Catalog(tmp_path / "t.csv", position_unit=unit))
        factors = (15, 1) if "hour" in unit else (180 / np.pi, 180 / np.pi)
        np.testing.assert_allclose(known.ra, ra * factors[0])
        np.testing.assert_allclose(known.dec, dec * factors[1])
        assert known.warnings == []


@pytest.mark.parametrize("text", ["parsec", "deg,hour", "hour,deg,deg", "pixel"])
def test_position_units_that_are_none(tmp_path: Path, text: str) -> None:
    write(tmp_path / "t.csv", "id,ra,dec\n1,10,20\n")
    line = ["ingest", "--survey", "local", "--path", str(images(tmp_path)), "--catalog", str(tmp_path / "t.csv")]
    assert main.run([*line, "--position-unit", text, "--out", str(tmp_path / "s.zarr")]) == 2


def test_position_unit_of_an_ingest(tmp_path: Path) -> None:
    """The default catalog of the folder; a store of another unit is another survey."""
    from galscan import ingest
    from galscan.core.errors import ConflictError

    folder = images(tmp_path)
    write(folder / "catalog.csv", "id,ra,dec\n1,12:30:00,-05:30:00\n2,0 42 44.3,+41 16 09\n3,13.5,10\n")
    settings = {"path": folder, "out": tmp_path / "s.zarr", "size": 32, "workers": 1}
    with pytest.raises(InputError, match="--position-unit hour,deg"):
        ingest("local", **settings)
    write(folder / "catalog.csv", "id,ra,dec\n1,12:30:00,-05:30:00\n2,0 42 44.3,+41 16 09\n3,13:30:00,-0:06:00\n")
    store = ingest("local", position_unit="hour,deg", **settings)
    np.testing.assert_allclose(store.column("ra"), [187.5, 10.6845833, 202.5])
    np.testing.assert_allclose(store.column("dec"), [-5.5, 41.2691667, -0.1])
    with pytest.raises(ConflictError, match="position_unit"):
        ingest("local", position_unit="deg", **settings)


@pytest.mark.parametrize("form", ["ecsv", "fits", "parquet"])
@pytest.mark.parametrize("system", ["icrs", "galactic", "fk4"])
def test_sky_coordinates_of_astropy(tmp_path: Path, form: str, system: str) -> None:
    """A column of SkyCoord, in whatever system it is, is converted to ICRS."""
    place = SkyCoord(RA, DEC, unit="deg")
    kept = {"icrs": place, "galactic": place.galactic, "fk4": place.transform_to(FK4(equinox="B1950"))}[system]
    table = Table({"id": [1, 2, 3], "sky_centroid": kept, "flux": [1.0, 2.0, 3.0] * u.Jy})
    path = tmp_path / f"t.{form}"
    table.write(path)
    for found in (LocalSurvey(images(tmp_path), path, size=16), read_known(path)):
        np.testing.assert_allclose(found.ra, RA, atol=1e-7)
        np.testing.assert_allclose(found.dec, DEC, atol=1e-7)


def test_b1950_is_refused(tmp_path: Path) -> None:
    table = fits.table_to_hdu(Table({"id": [1], "ra": [10.0], "dec": [20.0]}))
    table.header["RADESYS"] = "FK4"
    table.writeto(tmp_path / "t.fits")
    with pytest.raises(InputError, match="FK4"):
        read_known(tmp_path / "t.fits")
    write(tmp_path / "t.vot", """<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE>
        <COOSYS ID="old" system="eq_FK4" equinox="B1950"/><TABLE><FIELD name="ra" datatype="double" ref="old"/>
        <FIELD name="dec" datatype="double" ref="old"/><DATA><TABLEDATA><TR><TD>10</TD><TD>20</TD></TR></TABLEDATA>
        </DATA></TABLE></RESOURCE></VOTABLE>""")  # fmt: skip
    with pytest.raises(InputError, match="FK4"):
        read_known(tmp_path / "t.vot")
