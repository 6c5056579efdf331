"""Reading catalogs: exact ids, columns by their usual names, one clear line for what cannot work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from galscan.errors import InputError
from galscan.surveys.base import Cutout
from galscan.surveys.local import LocalSurvey
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
    with pytest.raises(InputError, match=r"id column 'id' .* is empty in 1 row\(s\), the first is row 2"):
        LocalSurvey(tmp_path)


def test_float_ids_that_lost_digits_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Table({"id": [float(OBJID)]}).write(tmp_path / "catalog.fits")
    with pytest.raises(InputError, match="floating-point numbers, so digits are lost"):
        LocalSurvey(tmp_path)


def test_ids_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "catalog.csv", "id\n5.888489E+17\n")
    with pytest.raises(InputError, match="spreadsheet rounded it"):
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
        ("id\n1\n2\n2\n2\n", r"'2' occurs more than once \(2 duplicate row"),
        ("id\n" + "x" * 65 + "\n", "has 65 characters, at most 64"),
        ("colour,size\n1,2\n", "no id column; it has colour, size; name it"),
        ("dr7objid,dr8objid\n1,2\n", "several columns that may be the id: dr7objid, dr8objid; choose one"),
        ("id,ra\n1,12:30:00\n", "column 'ra' .*'12:30:00' is not a number"),
        ("id,ra,dec\n1,10,95\n", "dec of 1 is 95"),
        ("id,file\n1,../outside.png\n", r"file '../outside.png' lies outside"),
        ("id,file\n1,/etc/passwd.png\n", "file '/etc/passwd.png' lies outside"),
        ("id\n77\n", "no row of .* has an image"),
        ("id\n", "has no rows"),
        ("", "cannot be read"),
        ('id,ra\n"1,2\n', "cannot be read"),
    ],
)
def test_catalogs_that_cannot_work(tmp_path: Path, text: str, message: str) -> None:
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
