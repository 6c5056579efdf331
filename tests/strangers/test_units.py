"""Units of columns: positions, radii and pixel scales are converted by them, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table
from hypothesis import given
from hypothesis import strategies as st

from galscan.candidates.reference_catalog import read_known
from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.columns.angles import degrees_in, parse_sexagesimal, plain, split_name
from galscan.surveys.columns.values import arcseconds
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import picture, write

RA, DEC = np.array([10.5, 200.25, 359.9]), np.array([-5.0, 60.0, 0.25])


@pytest.mark.parametrize("form", ["fits", "vot", "ecsv"])
@pytest.mark.parametrize("units", [("rad", "rad"), ("hourangle", "deg"), ("arcmin", "arcsec"), ("deg", "deg")])
def test_positions_in_other_units(tmp_path: Path, form: str, units: tuple[str, str]) -> None:
    """Of the list of known objects, where nothing matched, and of a survey."""
    if (form, units[0]) == ("fits", "hourangle"):
        pytest.skip("astropy cannot write it")
    table = QTable({"name": ["a", "b", "c"], "ra": RA * u.deg, "dec": DEC * u.deg})
    table["ra"], table["dec"] = table["ra"].to(units[0]), table["dec"].to(units[1])
    path = tmp_path / f"t.{form}"
    table.write(path, format={"vot": "votable", "ecsv": "ascii.ecsv"}.get(form, form))
    known = read_known(path)
    np.testing.assert_allclose(known.ra, RA, rtol=1e-9)
    np.testing.assert_allclose(known.dec, DEC, rtol=1e-9)
    assert known.warnings == []


@pytest.mark.parametrize(
    ("text", "ra", "dec"),
    [
        ("name,ra_hours,dec_deg\na,12.5,-5\n", 187.5, -5),
        ("name,RA [h],Dec [deg]\na,12.5,-5\n", 187.5, -5),
        ("name,ra (rad),dec (rad)\na,1,-0.5\n", np.degrees(1), np.degrees(-0.5)),
        ("name,ra,dec\na,12h30m00s,-05d30m00s\n", 187.5, -5.5),
    ],
)
def test_units_in_the_header_of_a_csv(tmp_path: Path, text: str, ra: float, dec: float) -> None:
    known = read_known(write(tmp_path / "t.csv", text))
    np.testing.assert_allclose([known.ra[0], known.dec[0]], [ra, dec])


@pytest.mark.parametrize("unit", ["pixel", "kpc", "mag", "s", "furlong"])
def test_positions_that_are_no_angles(tmp_path: Path, unit: str) -> None:
    frame = tables.read_table(write(tmp_path / "t.csv", "id,ra,dec\n1,10,20\n"), {})
    frame.attrs["unit"] = {"ra": unit}
    from galscan.surveys.columns.positions import read_positions

    with pytest.raises(InputError, match=unit):
        read_positions(frame, "ra", "dec", np.arange(1), "t")


@pytest.mark.parametrize(
    ("name", "unit", "value", "expected"),
    [
        ("radius", "arcmin", 0.5, 30.0), ("radius", "deg", 0.01, 36.0), ("radius", "", 3.0, 3.0),
        ("radius_arcmin", "", 0.5, 30.0), ("r [arcmin]", "", 0.5, 30.0), ("half_light_rad", "", 2.0, 2.0),
        ("radius", "pixel", 12.0, None), ("radius", "kpc", 12.0, None), ("radius_pix", "", 12.0, None),
        ("FLUX_RADIUS", "", 4.0, None), ("radius", "hour", 1.0, None),
    ],
)  # fmt: skip
def test_radii(name: str, unit: str, value: float, expected: float | None, tmp_path: Path) -> None:
    frame = tables.read_table(write(tmp_path / "t.csv", f"id,{name}\n1,{value}\n"), {})
    frame.attrs["unit"] = {name: unit}
    if expected is None:
        with pytest.raises(InputError, match=name.split()[0]):
            arcseconds(frame, name, "radius", "t")
    else:
        np.testing.assert_allclose(arcseconds(frame, name, "radius", "t"), [expected])


@pytest.mark.parametrize("unit", ["deg", "deg / pix", "arcsec / pix", "arcsec", "rad/pixel"])
def test_pixel_scales(tmp_path: Path, unit: str) -> None:
    picture(tmp_path / "1.png")
    per = u.pix if "/" in unit else u.dimensionless_unscaled
    scale = (0.4 * u.arcsec).to(unit.partition("/")[0].strip()).value
    table = Table({"id": [1], "ra": [10.0], "dec": [20.0], "pixel_scale": [scale]})
    table["pixel_scale"].unit = u.Unit(unit.partition("/")[0].strip()) / per
    table.write(tmp_path / "catalog.fits")
    assert LocalSurvey(tmp_path, size=32).pixel_scale[0] == pytest.approx(0.4)


def test_a_pixel_scale_in_degrees_without_a_unit(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    write(tmp_path / "catalog.csv", "id,ra,dec,pixel_scale\n1,10,20,7.3e-5\n")
    with pytest.raises(InputError, match=r"7\.3e-05"):
        LocalSurvey(tmp_path, size=32)
    write(tmp_path / "catalog.csv", "id,ra,dec,pixel_scale_deg\n1,10,20,7.3e-5\n")
    assert LocalSurvey(tmp_path, size=32).pixel_scale[0] == pytest.approx(0.2628)


def test_the_unit_of_a_radius_arrives_in_frames_and_services(tmp_path: Path) -> None:
    from galscan.surveys.services.cutouts import ServiceSurvey

    table = Table({"id": [1], "ra": [180.0], "dec": [1.0], "petroR90_r": [0.1]})
    table["petroR90_r"].unit = "arcmin"
    table.write(tmp_path / "t.fits")
    assert ServiceSurvey("sdss", tmp_path / "t.fits", frame=2.0, size=32).sides[0] == pytest.approx(12)
    table["petroR90_r"].unit = "pixel"
    table.write(tmp_path / "t.fits", overwrite=True)
    with pytest.raises(InputError, match="pix"):
        ServiceSurvey("sdss", tmp_path / "t.fits", frame=2.0, size=32)


@given(st.integers(0, 23), st.integers(0, 59), st.floats(0, 59.9), st.sampled_from([":", " "]))
def test_sexagesimal_text(hours: int, minutes: int, seconds: float, mark: str) -> None:
    import pandas as pd

    text = pd.Series([f"-{hours}{mark}{minutes:02d}{mark}{seconds:.3f}"])
    expected = -(hours + minutes / 60 + round(seconds, 3) / 3600)
    assert parse_sexagesimal(text, 1.0)[0] == pytest.approx(expected)
    assert parse_sexagesimal(text, None) is None, "hours or degrees?"


@pytest.mark.parametrize(
    ("name", "word", "unit"),
    [("RA(deg)", "ra", "deg"), ("ra_rad", "ra", "rad"), ("RA (J2000)", "raj2000", ""), ("objid", "objid", ""),
     ("pixscale_arcsec_per_pixel", "pixscale", "arcsec"), ("petroRad_r", "petroradr", "")],
)  # fmt: skip
def test_names_with_units(name: str, word: str, unit: str) -> None:
    assert (plain(name), split_name(name)[1]) == (word, unit)
    assert degrees_in("furlong") is None and degrees_in("h") is None and degrees_in("h", hours=True) == 15
