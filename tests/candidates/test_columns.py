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


@pytest.mark.parametrize("column", [*columns.COLUMNS, columns.describe_columns(candidates())[-1]], ids=lambda c: c.name)
def test_every_ucd_is_in_the_vocabulary(column):
    assert check_ucd(column.ucd, check_controlled_vocabulary=True)
    assert len(column.comment) <= 66  # one header card


@pytest.mark.parametrize("text", [False, True])
def test_round_trip_with_units_and_meanings(tmp_path, text):
    frame = candidates(text=text)
    path = columns.write_fits(frame, tmp_path / "c.fits", PROVENANCE, ["visible_dust"])
    with fits.open(path, checksum=True) as hdus:
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


def test_no_warning_about_checksums(tmp_path, recwarn):
    with fits.open(columns.write_fits(candidates(), tmp_path / "c.fits", PROVENANCE), checksum=True) as hdus:
        for hdu in hdus:
            assert hdu.verify_checksum() == 1 and hdu.verify_datasum() == 1
    assert not [w for w in recwarn if "checksum" in str(w.message).lower()]


def test_bytes_follow_from_the_input(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    a, b = (columns.write_fits(candidates(), tmp_path / name, PROVENANCE).read_bytes() for name in ("a.fits", "b.fits"))
    assert a == b
    assert fits.getheader(tmp_path / "a.fits")["DATE"] == "2023-11-14T22:13:20"


@pytest.mark.parametrize(
    "provenance", [{}, {"stores": ["x" * 30] * 9, "target": "línea\nnueva", "model": None, "notes": ["ü" * 200]}]
)
def test_sparse_and_strange_provenance(tmp_path, provenance):
    with fits.open(columns.write_fits(candidates(), tmp_path / "c.fits", provenance), checksum=True) as hdus:
        assert hdus[1].header["NCANDID"] == 20


@pytest.mark.parametrize("n", [0, 3, 20])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.skipif(shutil.which("fitsverify") is None, reason="fitsverify is not installed")
def test_fitsverify_finds_nothing(tmp_path, n, text):
    path = columns.write_fits(
        candidates(20, text=text).head(n), tmp_path / "c.fits", PROVENANCE | {"stores": ["s" * 40] * 4}
    )
    said = subprocess.run(["fitsverify", path], capture_output=True, text=True, timeout=60).stdout
    assert "found 0 warning(s) and 0 error(s)" in said, said


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_reads_units_and_ucds(tmp_path):
    frame = candidates()
    path = columns.write_fits(frame, tmp_path / "c.fits", PROVENANCE)
    command = ["stilts", "tpipe", f"in={path}", "cmd=meta name units ucd description", "ofmt=csv"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = {line.split(",")[0]: line for line in said.splitlines()}
    for column in columns.describe_columns(frame):
        assert f",{column.unit}," in rows[column.name] and column.ucd in rows[column.name]
        assert column.comment.split(",")[0] in rows[column.name]


@pytest.mark.parametrize("size", [1, 7, 20])
def test_pieces_leave_no_trace_in_the_file(tmp_path, monkeypatch, size):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    frame = candidates(text=True).assign(known_name=["é" * k for k in range(20)], known_ref="k", known_sep=1.5)
    whole = columns.write_fits(frame, tmp_path / "whole.fits", PROVENANCE).read_bytes()
    monkeypatch.setattr(table_stream, "PIECE", size)
    assert (
        columns.write_fits(table_stream.from_frame(frame), tmp_path / "pieces.fits", PROVENANCE).read_bytes() == whole
    )
    frame.to_parquet(tmp_path / "c.parquet", index=False, row_group_size=9)
    again = table_stream.from_parquet(tmp_path / "c.parquet")
    assert columns.write_fits(again, tmp_path / "again.fits", PROVENANCE).read_bytes() == whole


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "?"])
def test_every_kind_of_number_is_kept(tmp_path, dtype):
    values = np.array([0, 1, 100], dtype)
    path = columns.write_fits(candidates(3).assign(answer=values), tmp_path / "c.fits", {})
    read = Table.read(path)["answer"]
    assert read.tolist() == values.tolist() and read.dtype.kind in (
        "iu" if values.dtype.kind in "iu" else values.dtype.kind
    )
