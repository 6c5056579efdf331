"""The format of a file is found from its content."""

from __future__ import annotations

from pathlib import Path

import pytest
from astropy.table import Table

from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.table_files.reading import read_file

TABLE = Table({"id": [1, 2], "ra": [1.0, 2.0], "dec": [3.0, 4.0]})


def read(path: Path):
    return read_file(path, lambda name: False, lambda names: 1)


@pytest.mark.parametrize("form", ["fits", "votable", "ascii.ecsv", "ascii.ipac", "ascii.csv"])
def test_a_wrong_suffix_does_not_matter(tmp_path: Path, form: str) -> None:
    TABLE.write(tmp_path / "t.dat", format=form)
    assert read(tmp_path / "t.dat")["ra"].tolist() == [1, 2]


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        read(tmp_path / "absent.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    (tmp_path / "t.csv.gz").write_bytes(b"not compressed")
    for name in ("t.xlsx", "t.csv.gz"):
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)
