from __future__ import annotations

import csv
import shutil
import subprocess

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable

from galscan.candidates.export import SUFFIXES, export_run, select
from galscan.errors import ConflictError, InputError, NotFoundError
from tests.candidate_tables import candidates, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", candidates(text=True))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_writes_something_and_leaves_no_temporary_file(run, tmp_path, suffix):
    out = export_run(run, tmp_path / "out" / f"c{suffix}")
    assert out.stat().st_size > 100 and list(out.parent.iterdir()) == [out]


def test_fits(run, tmp_path):
    with fits.open(export_run(run, tmp_path / "c.fits", top=7), checksum=True) as hdus:
        header = hdus["CANDIDATES"].header
        assert len(hdus[1].data) == header["NCANDID"] == 7 and header["NRANKED"] == 20
        assert header["MODELSHA"] == "a" * 64 and header["SURVEY"] == "sdss" and header["PREVALHI"] == 0.01


def test_votable_keeps_units_ucds_and_provenance(run, tmp_path):
    document = votable.parse(export_run(run, tmp_path / "c.vot"))
    first = document.get_first_table()
    fields = {field.name: field for field in first.fields}
    assert str(fields["ra"].unit) == "deg" and fields["ra"].ucd == "pos.eq.ra;meta.main" and fields["ra"].ref == "icrs"
    assert fields["purity"].description and len(first.array) == 20
    infos = {info.name: info.value for info in document.resources[0].infos}
    assert infos["model"] == "a" * 64 and infos["target"] == "dustlane"


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
@pytest.mark.parametrize("top", [None, 3])
def test_stilts_accepts_the_votable(run, tmp_path, top):
    out = export_run(run, tmp_path / "c.vot", top=top)
    said = subprocess.run(["stilts", "votlint", f"votable={out}"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and "ERROR" not in said.stdout + said.stderr, said.stdout + said.stderr


def test_parquet_is_the_table_with_meanings(run, tmp_path):
    out = export_run(run, tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(run / "candidates.parquet"))
    assert pq.read_schema(out).field("ra").metadata[b"unit"] == b"deg"


def test_csv_runs_no_formula(run, tmp_path):
    with open(export_run(run, tmp_path / "c.csv"), newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[0]["objid"] == "'=HYPERLINK(0)" and rows[1]["objid"] == "NGC 1 é"
    assert float(rows[0]["dec"]) == pytest.approx(candidates()["dec"][0])
    assert rows[-1]["ra"] == ""


def test_ds9_regions_leave_out_and_count_what_has_no_place(run, tmp_path):
    lines = export_run(run, tmp_path / "c.reg").read_text().splitlines()
    assert sum(line.startswith("circle(") for line in lines) == 18
    assert "icrs" in lines and any("2 of 20 candidates have no coordinates" in line for line in lines)
    assert lines[-1].endswith("text={18}")


def test_selection():
    frame = candidates()
    assert len(select(frame, top=500)) == 20
    pure = select(frame, min_purity=0.7)
    assert pure["purity"].min() >= 0.7 and frame["purity"][len(pure)] < 0.7
    assert len(select(frame, min_purity=0.7, top=2)) == 2 and len(select(frame, min_purity=0.7, top=19)) == len(pure)
    assert len(select(frame, min_purity=0.99)) == 0 and len(select(frame, min_purity=0.0)) == 20


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet", ".csv", ".reg"])
def test_an_empty_selection_is_a_valid_file(run, tmp_path, suffix):
    assert export_run(run, tmp_path / f"none{suffix}", min_purity=0.999).is_file()


def test_integer_ids_stay_integers(tmp_path):
    run = write_run(tmp_path / "run")
    assert fits.getdata(export_run(run, tmp_path / "c.fits"))["objid"].dtype.kind == "i"
    assert votable.parse_single_table(export_run(run, tmp_path / "c.vot")).array["objid"].dtype == np.int64


def test_format_overrules_the_suffix_and_old_files_are_replaced(run, tmp_path):
    out = tmp_path / "c.txt"
    out.write_text("old")
    assert export_run(run, out, format="csv").read_text().startswith("designation,")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "c.fitz"}, "did you mean '.fit'"),
        ({"out": "c"}, "--format"),
        ({"format": "fit"}, "did you mean 'fits'"),
        ({"top": 0}, "--top 0"),
        ({"min_purity": 1.2}, "--min-purity 1.2"),
        ({"min_purity": -0.1}, "--min-purity"),
        ({"min_purity": float("nan")}, "--min-purity"),
    ],
)
def test_what_makes_no_sense_is_named_and_nothing_written(run, tmp_path, options, words):
    options = {"out": "c.fits"} | options
    with pytest.raises(InputError, match=words):
        export_run(run, tmp_path / options.pop("out"), **options)
    assert list(tmp_path.iterdir()) == [run]


def test_places_that_must_not_be_overwritten(run, tmp_path):
    before = (run / "candidates.parquet").read_bytes()
    with pytest.raises(ConflictError, match="belongs to the run"):
        export_run(run, run / "candidates.parquet", top=1)
    assert (run / "candidates.parquet").read_bytes() == before
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(ConflictError, match="is a folder"):
        export_run(run, tmp_path / "folder.fits")


def test_unfinished_or_absent_runs(tmp_path):
    with pytest.raises(InputError, match="not finished"):
        export_run(write_run(tmp_path / "run", status="running"), tmp_path / "c.fits")
    with pytest.raises(NotFoundError, match="no run"):
        export_run(tmp_path / "nothing", tmp_path / "c.fits")
