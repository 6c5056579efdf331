from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table

from galscan.candidates import columns, table_stream
from tests.candidate_tables import PROVENANCE, candidates


def test_every_ucd_is_in_the_vocabulary():
    for column in [*columns.COLUMNS, columns.describe_columns(candidates())[-1]]:
        assert check_ucd(column.ucd, check_controlled_vocabulary=True), column
        assert len(column.comment) <= 66, column  # one header card


@pytest.mark.parametrize("text", [False, True])
def test_round_trip_with_units_and_ucds(tmp_path, text):
    frame = candidates(text=text)
    path = columns.write_fits(frame, tmp_path / "c.fits", PROVENANCE, ["visible_dust"])
    with fits.open(path, checksum=True) as hdus:
        assert all(hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1 for hdu in hdus)
        header = hdus["CANDIDATES"].header
        assert hdus[0].header["CREATOR"].startswith("galscan ") and hdus[0].header["REFERENC"] == "arXiv:2506.16233"
        assert header["RADESYS"] == "ICRS" and header["SURVEY"] == "sdss, legacy" and header["TARGET"] == "dustlane"
        assert header["MODELSHA"] == "a" * 64 and header["NSCANNED"] == 16_753 and header["NCANDID"] == 20
        assert header["PREVAL"] == 0.004 and "PREVALHI" not in header  # FITS has no NaN
        assert "CHECKSUM" in header and "DATASUM" in header and not any("HIERARCH" in str(c) for c in header.cards)
        assert "13 positives" in str(header["HISTORY"])
        for number, column in enumerate(columns.describe_columns(frame), 1):
            assert header[f"TTYPE{number}"] == column.name
            assert header[f"TUCD{number}"] == column.ucd and header[f"TCOMM{number}"] == column.comment
            assert header.get(f"TUNIT{number}", "") == column.unit
    again = Table.read(path, hdu="CANDIDATES")
    assert again["rank"].tolist() == frame["rank"].tolist() and again["in_train"].tolist() == frame["in_train"].tolist()
    assert np.array_equal(again["ra"].filled(np.nan), frame["ra"], equal_nan=True)
    assert again["objid"].tolist() == (
        [s.replace("é", "\\xe9") for s in frame["objid"]] if text else frame["objid"].tolist()
    )


@pytest.mark.parametrize(
    "provenance", [{}, {"stores": ["x" * 30] * 9, "target": "línea\nnueva", "model": None, "notes": ["ü" * 200]}]
)
def test_sparse_and_unusual_provenance(tmp_path, provenance):
    assert fits.getheader(columns.write_fits(candidates(), tmp_path / "c.fits", provenance), 1)["NCANDID"] == 20


@pytest.mark.parametrize("n", [0, 3, 20])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.skipif(shutil.which("fitsverify") is None, reason="fitsverify is not installed")
def test_fitsverify_finds_nothing(tmp_path, n, text):
    path = columns.write_fits(
        candidates(20, text=text).head(n), tmp_path / "c.fits", PROVENANCE | {"stores": ["s" * 40] * 4}
    )
    output = subprocess.run(["fitsverify", path], capture_output=True, text=True, timeout=60).stdout
    assert "found 0 warning(s) and 0 error(s)" in output, output


@pytest.mark.parametrize("size", [1, 7, 20])
def test_bytes_do_not_depend_on_the_pieces(tmp_path, monkeypatch, size):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    frame = candidates(text=True).assign(known_name=["é" * k for k in range(20)], known_ref="k", known_sep=1.5)
    frame.to_parquet(tmp_path / "c.parquet", index=False, row_group_size=9)
    whole = columns.write_fits(frame, tmp_path / "whole.fits", PROVENANCE)
    assert fits.getheader(whole)["DATE"] == "2023-11-14T22:13:20"
    monkeypatch.setattr(table_stream, "PIECE", size)
    for rows in (table_stream.from_frame(frame), table_stream.from_parquet(tmp_path / "c.parquet")):
        assert columns.write_fits(rows, tmp_path / "c.fits", PROVENANCE).read_bytes() == whole.read_bytes()


def test_types_of_numbers(tmp_path):
    types = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "?"]
    values = {dtype: np.array([0, 1, 100], dtype) for dtype in types}
    read = Table.read(columns.write_fits(candidates(3).assign(**values), tmp_path / "c.fits", {}))
    for dtype in types:
        assert read[dtype].tolist() == values[dtype].tolist()
        assert read[dtype].dtype.kind.replace("u", "i") == values[dtype].dtype.kind.replace("u", "i")
