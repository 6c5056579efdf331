from __future__ import annotations

import csv
import os
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


def frame(n: int = 20, text: bool = True) -> pd.DataFrame:
    """Return candidates of which the second is known."""
    table = candidates(n, text=text)
    name = np.array(["{a} <b> & 'c' é" if k == 1 else "" for k in range(n)], object)
    return table.assign(
        known_name=name, known_ref=np.where(name == "", "", "list"), known_sep=np.where(name == "", np.nan, 1.5)
    )


@pytest.fixture(params=[7, 65_536])
def table(request, monkeypatch):
    """Rows in pieces that are smaller, and larger, than the table."""
    monkeypatch.setattr(table_stream, "PIECE", request.param)
    return table_stream.from_frame(frame())


@pytest.mark.parametrize("suffix", WRITERS)
def test_pieces_leave_no_trace_in_the_file(tmp_path, monkeypatch, suffix):
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
    said = subprocess.run(
        ["stilts", "votlint", f"votable={tmp_path / 'c.vot'}"], capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0 and not said.stdout.strip() and "ERROR" not in said.stderr, said.stdout + said.stderr


def test_parquet_is_the_table_with_meanings(table, tmp_path):
    tables.parquet(table, tmp_path / "c.parquet", PROVENANCE)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "c.parquet"), frame(), check_dtype=False)
    schema = pq.read_schema(tmp_path / "c.parquet")
    assert schema.field("ra").metadata[b"unit"] == b"deg" and b"dustlane" in schema.metadata[b"galscan"]


def test_csv_runs_no_formula(table, tmp_path):
    tables.csv(table, tmp_path / "c.csv", PROVENANCE)
    with open(tmp_path / "c.csv", newline="") as handle:
        read = list(csv.DictReader(handle))
    assert len(read) == 20 and read[0]["objid"] == "'=HYPERLINK(0)" and read[1]["objid"] == "NGC 1 é"
    assert float(read[0]["dec"]) == candidates()["dec"][0] and read[-1]["ra"] == ""
    assert np.float32(read[3]["score"]) == candidates()["score"][3]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        *((t, f"'{t}") for t in ("=1", "+1", "-1", "@x", "\t=1", '="a,b"')),
        ("NGC 1=2", "NGC 1=2"),
        (None, ""),
        ('a,"b"\nc', 'a,"b"\nc'),
    ],
)
def test_what_a_spreadsheet_would_run_is_quoted_and_the_rest_is_whole(tmp_path, text, written):
    odd = candidates(3, text=True).assign(comment=np.array(["x", text, "y"], object))
    tables.csv(table_stream.from_frame(odd), tmp_path / "c.csv", PROVENANCE)
    with open(tmp_path / "c.csv", newline="") as handle:
        assert [row["comment"] for row in csv.DictReader(handle)] == ["x", written, "y"]


def test_ds9_regions_leave_out_and_count_what_has_no_place(table, tmp_path):
    tables.ds9(table, tmp_path / "c.reg", PROVENANCE)
    lines = (tmp_path / "c.reg").read_text().splitlines()
    assert sum(line.startswith("circle(") for line in lines) == 18
    assert "icrs" in lines and any("2 of 20 candidates have no coordinates" in line for line in lines)
    assert lines[-1].endswith("text={18}") and tables.without_coordinates(table) == 2
    assert "# color=cyan text={2: (a) <b> & 'c' \\xe9}" in lines[6]


def test_astropy_regions_reads_the_regions(table, tmp_path):
    regions = pytest.importorskip("regions", reason="astropy-regions is not installed")
    tables.ds9(table, tmp_path / "c.reg", PROVENANCE)
    found = regions.Regions.read(tmp_path / "c.reg", format="ds9")
    assert len(found) == 18 and found[0].radius.to_value("arcsec") == pytest.approx(10)
    assert found[0].center.ra.deg == pytest.approx(frame()["ra"][0], abs=1e-6)
    assert [str(region.meta["text"]) for region in found[2:4]] == ["3", "4"]


@pytest.mark.skipif(
    not all(map(shutil.which, ("ds9", "Xvfb"))), reason="DS9 and a display of its own are not installed"
)
def test_ds9_itself_loads_every_region(table, tmp_path):
    tables.ds9(table, tmp_path / "c.reg", PROVENANCE)
    read, write = os.pipe()
    display = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    try:
        number = os.read(read, 16).decode().strip()
        out = tmp_path / "saved.reg"
        # A picture with a place on the sky: without one DS9 has nowhere to put a circle in degrees.
        image = sky(tmp_path / "sky.fits")
        command = ["ds9", image, "-regions", "load", tmp_path / "c.reg", "-regions", "save", out, "-exit"]
        subprocess.run(
            command, env=os.environ | {"DISPLAY": f":{number}", "HOME": str(tmp_path)}, timeout=100, check=True
        )
        saved = [line for line in out.read_text().splitlines() if line.startswith("circle(")]
        assert len(saved) == 18 and "text={1}" in saved[0] and "color=cyan" in saved[1]
    finally:
        display.terminate()
        display.wait(20)
        os.close(read)
        os.close(write)


def sky(path):
    """Write an all-sky picture with a WCS."""
    from astropy.io import fits
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crpix, wcs.wcs.cdelt, wcs.wcs.crval = ["RA---CAR", "DEC--CAR"], [181, 91], [-1, 1], [180, 0]
    fits.writeto(path, np.zeros((180, 360), np.float32), wcs.to_header())
    return path
