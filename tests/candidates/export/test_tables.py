from __future__ import annotations

import csv
import shutil
import subprocess

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import votable
from astropy.io.votable.ucd import check_ucd

from galscan.candidates import table_stream
from galscan.candidates.export import tables
from tests.candidate_tables import PROVENANCE, candidates

WRITERS = {"vot": tables.votable, "parquet": tables.parquet, "csv": tables.csv, "reg": tables.ds9}


def frame() -> pd.DataFrame:
    """Return candidates of which the second is known."""
    known = np.arange(20) == 1
    return candidates(text=True).assign(
        known_name=np.where(known, "{a} <b> & 'c' é", ""), known_ref=np.where(known, "list", ""),
        known_sep=np.where(known, 1.5, np.nan),
    )  # fmt: skip


@pytest.fixture
def table():
    return table_stream.from_frame(frame())


@pytest.mark.parametrize("suffix", WRITERS)
def test_bytes_do_not_depend_on_the_pieces(tmp_path, monkeypatch, suffix):
    for size in (7, 65_536):
        monkeypatch.setattr(table_stream, "PIECE", size)
        WRITERS[suffix](table_stream.from_frame(frame()), tmp_path / f"{size}.{suffix}", PROVENANCE)
    if suffix == "parquet":
        pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / f"{n}.parquet") for n in (7, 65_536)))
    else:
        assert (tmp_path / f"7.{suffix}").read_bytes() == (tmp_path / f"65536.{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # and nothing temporary


def test_votable_keeps_numbers_units_ucds_and_provenance(table, tmp_path):
    tables.votable(table, tmp_path / "c.vot", PROVENANCE)
    document = votable.parse(tmp_path / "c.vot", verify="exception")
    first = document.get_first_table()
    fields = {field.name: field for field in first.fields}
    assert str(fields["ra"].unit) == "deg" and fields["ra"].ucd == "pos.eq.ra;meta.main" and fields["ra"].ref == "icrs"
    assert all(check_ucd(f.ucd, check_controlled_vocabulary=True) and f.description for f in first.fields)
    infos = {info.name: info.value for info in document.resources[0].infos}
    assert infos["model"] == "a" * 64 and infos["target"] == "dustlane" and "13 positives" in infos["note"]
    expected = frame()
    for name in ("ra", "score", "rank", "p_target", "in_train", "flags", "known_sep"):
        read = first.array[name]
        read = np.ma.filled(read, np.nan) if read.dtype.kind == "f" else read
        np.testing.assert_array_equal(read, expected[name], err_msg=name)
    assert first.array["objid"][1] == "NGC 1 \\xe9" and first.array["known_name"][1] == "{a} <b> & 'c' \\xe9"


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
@pytest.mark.parametrize("n", [0, 20])
def test_stilts_accepts_the_votable(tmp_path, n):
    infinite = frame().assign(p_target=np.inf, purity=-np.inf).head(n)
    tables.votable(table_stream.from_frame(infinite), tmp_path / "c.vot", PROVENANCE | {"notes": ["<\"&'\x07 ü"]})
    done = subprocess.run(
        ["stilts", "votlint", f"votable={tmp_path / 'c.vot'}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not done.stdout.strip() and "ERROR" not in done.stderr, done.stdout + done.stderr


def test_parquet_with_units_and_provenance(table, tmp_path):
    tables.parquet(table, tmp_path / "c.parquet", PROVENANCE)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "c.parquet"), frame(), check_dtype=False)
    schema = pq.read_schema(tmp_path / "c.parquet")
    assert schema.field("ra").metadata[b"unit"] == b"deg" and b"dustlane" in schema.metadata[b"galscan"]


def test_csv(table, tmp_path):
    tables.csv(table, tmp_path / "c.csv", PROVENANCE)
    with open(tmp_path / "c.csv", newline="") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == 20 and read[0]["objid"] == "'=HYPERLINK(0)" and read[1]["objid"] == "NGC 1 é"
    assert float(read[0]["dec"]) == candidates()["dec"][0] and read[-1]["ra"] == ""
    assert np.float32(read[3]["score"]) == candidates()["score"][3]


def test_csv_escapes_formulas_and_quotes(tmp_path):
    formulas = ["=1", "+1", "-1", "@x", "\t=1", '="a,b"']
    texts = [*formulas, "NGC 1=2", None, 'a,"b"\nc', "x"]
    comments = candidates(10).assign(comment=np.array(texts, object))
    tables.csv(table_stream.from_frame(comments), tmp_path / "c.csv", PROVENANCE)
    with open(tmp_path / "c.csv", newline="") as handle:
        written = [row["comment"] for row in csv.DictReader(handle)]
    assert written == [f"'{text}" for text in formulas] + ["NGC 1=2", "", 'a,"b"\nc', "x"]


def test_ds9_regions(table, tmp_path):
    assert tables.ds9(table, tmp_path / "c.reg", PROVENANCE) == {"left_out": 2}
    lines = (tmp_path / "c.reg").read_text().splitlines()
    assert sum(line.startswith("circle(") for line in lines) == 18
    assert "icrs" in lines and any("2 of 20 candidates have no coordinates" in line for line in lines)
    assert lines[-1].endswith("text={18}")
    assert "# color=cyan text={2: (a) <b> & 'c' \\xe9}" in lines[6]


def test_astropy_regions_reads_the_regions(table, tmp_path):
    regions = pytest.importorskip("regions", reason="astropy-regions is not installed")
    tables.ds9(table, tmp_path / "c.reg", PROVENANCE)
    found = regions.Regions.read(tmp_path / "c.reg", format="ds9")
    assert len(found) == 18 and found[0].radius.to_value("arcsec") == pytest.approx(10)
    assert found[0].center.ra.deg == pytest.approx(frame()["ra"][0], abs=1e-6)
    assert [str(region.meta["text"]) for region in found[2:4]] == ["3", "4"]
