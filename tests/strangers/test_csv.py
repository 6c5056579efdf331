"""CSV as people have it: blanks, comments, separators, encodings; never NaN without a word."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from galscan.candidates.reference_catalog import read_known
from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import OBJID, picture, write

IDS, RA, DEC = [OBJID, OBJID + 1], [10.5, 200.25], [-5.0, 60.5]
ROWS = [(str(i), str(a), str(d)) for i, a, d in zip(IDS, RA, DEC, strict=True)]


def lines(separator: str, header: str = "objid,ra,dec", end: str = "") -> str:
    head = separator.join(header.split(",")) + end + "\n"
    return head + "".join(separator.join(row) + end + "\n" for row in ROWS)


FILES = {
    "blanks": lines(", "),
    "blanks everywhere": lines("  ,  "),
    "SkyServer": "#Table1\n" + lines(","),
    "comments before": "# from a survey\n#\n# 2024, by someone, in a hurry\n" + lines(","),
    "comments between": lines(",").replace("\n5", "\n# a comment, with commas, and more, than three\n5"),
    "a row commented out": lines(",") + "#587,nonsense,1\n",
    "header in a comment": "# objid,ra,dec\n" + lines(",").partition("\n")[2],
    "header in a comment, blanks": "# objid ra dec\n" + lines(" ").partition("\n")[2],
    "header in a comment of several": "# made by x\n# objid ra dec\n# units none deg\n" + lines(" ").partition("\n")[2],
    "semicolons": lines(";"),
    "semicolons and decimal commas": lines(";").replace(".", ","),
    "tabs": lines("\t"),
    "bars": lines("|"),
    "columns of blanks": lines("   "),
    "empty lines": "\n\n" + lines(",").replace("\n", "\n\n"),
    "Windows": lines(",").replace("\n", "\r\n"),
    "quotes": lines(",").replace("objid,ra,dec", '"objid", "ra", "dec"'),
    "separator at the end": lines(",", end=","),
    "separator at the end of rows": lines(",", end=",").replace("dec,", "dec"),
    "dashes below units": "objid\tRAJ2000\tDEJ2000\n\tdeg\tdeg\n---\t---\t---\n" + lines("\t").partition("\n")[2],
    "other names": lines(",", "objid, R.A. , Decl. "),
}


@pytest.mark.parametrize("suffix", ["csv", "txt"])
@pytest.mark.parametrize("kind", FILES)
def test_kinds(tmp_path: Path, kind: str, suffix: str) -> None:
    for i in IDS:
        picture(tmp_path / "images" / f"{i}.png", (16, 16))
    path = write(tmp_path / f"t.{suffix}", FILES[kind])
    survey = LocalSurvey(tmp_path / "images", path, size=16)
    assert survey.ids.tolist() == IDS and survey.ra.tolist() == RA and survey.dec.tolist() == DEC
    known = read_known(path)
    assert known.names.tolist() == [str(i) for i in IDS] and known.ra.tolist() == RA and known.dec.tolist() == DEC


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("name,ra,dec,observer\nBöhm 1,10,20,Chrétien – à Genève\n".replace(
        "–", "-" if encoding == "latin-1" else "–").encode(encoding))  # fmt: skip
    known = read_known(tmp_path / "t.csv")
    assert known.names.tolist() == ["Böhm 1"] and known.ra.tolist() == [10] and known.dec.tolist() == [20]


def test_bytes_that_are_no_text_in_a_column_nobody_needs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,ra,dec,comment\n7,10,20,\xff\xfe\x80ok\n8,30,40,fine\n")
    assert read_known(tmp_path / "t.csv").names.tolist() == ["7", "8"]


@pytest.mark.parametrize("text", ["id,ra,dec\n1,10,20,30\n", "id,ra,dec\n1,10,20\n2,10,20,30\n3,1,2\n",
                                  "id,ra,dec\n1,10,20,30,40\n"])  # fmt: skip
def test_more_fields_than_the_header(tmp_path: Path, text: str) -> None:
    """pandas takes the first field for an index, and every column moves by one."""
    with pytest.raises(InputError, match=r"t\.csv"):
        tables.read_table(write(tmp_path / "t.csv", text), {})


def test_text_that_holds_marks_of_comments_and_missing_values(tmp_path: Path) -> None:
    text = 'id,ra,dec,note\nNA,1,2,"see #3, and more"\nArp #220,3,--,null\n'
    frame = tables.read_table(write(tmp_path / "t.csv", text), {})
    assert frame["id"].tolist() == ["NA", "Arp #220"] and frame["note"].tolist()[0] == "see #3, and more"
    assert frame["dec"].isna().tolist() == [False, True]


def test_compressed_and_in_a_zip_of_several(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(FILES["SkyServer"].encode()))
    assert read_known(tmp_path / "t.csv.gz").ra.tolist() == RA
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("__MACOSX/._t.csv", "rubbish")
        archive.writestr("readme.txt", "some words\n")
        archive.writestr("objects.csv", FILES["blanks"])
    assert read_known(tmp_path / "t.zip").ra.tolist() == RA
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr("more.csv", "objid,ra,dec\n1,2,3\n")
    with pytest.raises(InputError, match=r"objects\.csv.*more\.csv"):
        read_known(tmp_path / "t.zip")
    assert read_known(tables.Catalog(tmp_path / "t.zip", table="more.csv")).ra.tolist() == [2]


@pytest.mark.parametrize("content", [b"\0\0\0binary", b"# only a comment\n", b"id,ra,dec\n"])
def test_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"catalog"):
        tables.read_table(tmp_path / "t.csv", {})
