"""Reading of catalogs: exact ids, usual column names, one-line errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.table import Table

from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.base import Cutout
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import OBJID, only, picture, write


@pytest.mark.parametrize("form", ["csv", "csv.gz", "fits", "vot", "parquet"])
def test_objids_keep_every_digit_in_every_format(tmp_path: Path, form: str) -> None:
    ids = [OBJID, OBJID + 1]
    for i in ids:
        picture(tmp_path / f"{i}.png")
    table = pd.DataFrame({"objID": ids, "RA": [10.0, 20.0], "DEC": [-5.0, 5.0], "pixscale": [0.4, np.nan]})
    path = tmp_path / f"catalog.{form}"
    if form.startswith("csv"):
        table.to_csv(path, index=False)
    elif form == "parquet":
        table.to_parquet(path)
    else:
        Table.from_pandas(table).write(path, format="votable" if form == "vot" else "fits")
    survey = LocalSurvey(tmp_path, size=16)
    assert survey.id_dtype == np.int64
    objects = survey.objects(0, 2)
    assert objects["id"].tolist() == ids and objects["ra"].tolist() == [10, 20] and objects["dec"].tolist() == [-5, 5]
    first, second = survey.cutouts(0, 2)
    assert first.pixel_scale == pytest.approx(0.8) and np.isnan(second.pixel_scale)  # 32 -> 16 pixels


def test_nullable_and_unsigned_ids(tmp_path: Path) -> None:
    picture(tmp_path / f"{OBJID}.png")
    pd.DataFrame({"id": pd.array([OBJID], dtype="UInt64")}).to_parquet(tmp_path / "catalog.parquet")
    assert LocalSurvey(tmp_path).ids.tolist() == [OBJID]
    pd.DataFrame({"id": pd.array([OBJID, None], dtype="Int64")}).to_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(InputError, match="row 2"):
        LocalSurvey(tmp_path)


def test_float_ids_that_lost_digits_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Table({"id": [float(OBJID)]}).write(tmp_path / "catalog.fits")
    with pytest.raises(InputError, match="floating-point"):
        LocalSurvey(tmp_path)


@pytest.mark.parametrize("name", ["NA", "null", "007", "J000001.2-01", "99999999999999999999", "NGC 1"])
def test_text_ids_stay_as_they_are(tmp_path: Path, name: str) -> None:
    picture(tmp_path / f"{name}.png")
    write(tmp_path / "catalog.csv", f"iauname\n{name}\n")
    survey = LocalSurvey(tmp_path)
    assert survey.ids.tolist() == [name] and survey.id_dtype.kind == "U"
    assert isinstance(only(survey), Cutout)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\n1\n2\n2\n2\n", "'2'"),
        ("id\n" + "x" * 65 + "\n", "65"),
        ("id\n5.888489E+17\n", "5.888489E"),
        ("colour,size\n1,2\n", "colour, size"),
        ("dr7objid,dr8objid\n1,2\n", "dr7objid, dr8objid"),
        ("id,ra,dec\n1,12:30:00,5\n", "'12:30:00'"),
        ("id,ra,dec\n1,10,95\n", "dec of 1 is 95"),
        ("id,file\n1,../outside.png\n", "'../outside.png'"),
        ("id,file\n1,/etc/passwd.png\n", "'/etc/passwd.png'"),
        ("id\n77\n", "no row"),
        ("id\n", "no rows"),
        ("", "EmptyDataError"),
        ('id,ra,dec\n"1,2,3\n', "ParserError"),
    ],
)
def test_invalid_catalogs(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "1.png")
    write(tmp_path / "catalog.csv", text)
    with pytest.raises(InputError, match=message):
        LocalSurvey(tmp_path)


@pytest.mark.parametrize("suffix", ["fits", "parquet", "vot", "csv"])
def test_garbage_catalog(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / f"t.{suffix}").write_bytes(b"\xff\xfe\x00garbage\x80")
    with pytest.raises(InputError, match=f"t.{suffix} cannot be read"):
        LocalSurvey(tmp_path, tmp_path / f"t.{suffix}")


@pytest.mark.parametrize("form", ["fits", "vot"])
def test_columns_by_ucd(tmp_path: Path, form: str) -> None:
    """A table as VizieR gives it: main positions in sexagesimal text, computed ones beside them, others further on."""
    names = ("recno", "NGC", "RAJ2000", "DEJ2000", "_RA", "_DE", "RAgal")
    values = ([1, 2], ["N1", "N2"], ["00 07 16", "00 07 17"], ["+27", "+28"], [1.8, 1.9], [27.7, 27.8], [5.0, 6.0])
    table = Table(list(values), names=names)
    ucd = dict(zip(names, ("", "meta.id;meta.main", "pos.eq.ra;meta.main", "pos.eq.dec;meta.main", "pos.eq.ra",
                           "pos.eq.dec", ""), strict=True))  # fmt: skip
    table["_RA"].unit = "deg"
    path = tmp_path / f"table.{form}"
    if form == "fits":
        hdu = fits.table_to_hdu(table)
        hdu.header.update({f"TUCD{k}": ucd[c] for k, c in enumerate(names, 1)})
        hdu.writeto(path)
    else:
        tree = from_table(table)
        for field in tree.resources[0].tables[0].fields:
            field.ucd = ucd[field.name] or None
        tree.to_xml(str(path))
    frame = tables.read_table(path, {})
    assert frame.attrs["unit"]["_RA"] == "deg"
    found = [tables.find_column(frame, role, {}, "table") for role in ("id", "ra", "dec", "radius")]
    assert found == ["NGC", "_RA", "_DE", None]
    assert tables.find_column(frame, "ra", {"ra": "RAgal"}, "table") == "RAgal", "what the user says counts"
    assert tables.find_column(frame.assign(ra=1.0, dec=2.0), "ra", {}, "table") == "ra"
