"""Text tables; their many kinds are in tests/strangers/test_csv.py."""

from __future__ import annotations

from pathlib import Path

from galscan.surveys.table_files.text import header_of, read_text


def test_units_below_the_names(tmp_path: Path) -> None:
    path = tmp_path / "v.tsv"
    path.write_text("#RESOURCE\n\nRAJ2000\tr\ndeg\tarcmin\n-----\t---\n10.5\t2\n", encoding="utf-8")
    frame = read_text(path, None, "\t", lambda name: False)
    assert frame.attrs["unit"] == {"RAJ2000": "deg", "r": "arcmin"} and frame["r"].tolist() == [2]
    assert header_of(path, None, "\t") == ["RAJ2000", "r"]


def test_text_columns_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\n007,007\nNA,NA\n", encoding="utf-8")
    frame = read_text(path, None, ",", lambda name: name == "id")
    assert frame["id"].tolist() == ["007", "NA"] and frame["x"].tolist()[0] == 7
