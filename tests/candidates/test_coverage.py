from __future__ import annotations

import builtins
import json
import math
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from galscan.candidates import coverage
from galscan.candidates.coverage import cell, moc
from galscan.candidates.run import provenance
from galscan.core.errors import InputError
from galscan.core.files import read_json
from galscan.store.layout import open_store
from tests.candidate_tables import scanned_run

mocpy = pytest.importorskip("mocpy", reason="needs the extra moc")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scanned_run(tmp_path_factory.mktemp("run"))


def write(run, out, order=None):
    info = read_json(run / "run.json")
    return moc(run, out, info, order, provenance(info))


@given(
    st.lists(st.integers(0, 12 * 4**4 - 1), max_size=400), st.integers(0, 12 * 4**4), st.integers(0, 4**4), st.data()
)
def test_cells_are_joined_as_mocpy_joins_them(some, start, length, data):
    """Random cells, and a run of them, in parts of any size."""
    cells = np.array([*some, *range(start, min(start + length, 12 * 4**4))], np.uint64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(cells)), max_size=5)))
    merged = coverage._merged(np.unique(part) for part in np.split(cells, cuts))
    assert np.array_equal(merged, np.unique(cells))
    orders = coverage._hierarchy(merged, 4)
    expected = mocpy.MOC.from_healpix_cells(cells, np.full(len(cells), 4, np.uint8), 4).serialize("json")
    assert {str(k): v.tolist() for k, v in orders.items()} == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("name", ["s.moc.fits", "s.moc.json"])
def test_all_that_was_scanned_is_covered_and_nothing_else(run, tmp_path, name):
    told = write(run, tmp_path / name)
    store = open_store(run.parent / "sky.zarr")
    ra, dec = store.column("ra"), store.column("dec")
    found = mocpy.MOC.load(tmp_path / name, format=name.rsplit(".", 1)[1])
    inside = found.contains_lonlat(ra * units.deg, dec * units.deg)
    assert inside[:591].all()  # the discarded, too
    assert not inside[591:].any()  # quarantined ones were not seen
    assert not found.contains_lonlat(ra[:591] * units.deg, (dec[:591] + 0.02) * units.deg).any()
    assert told["objects"] == 591 and told["order"] == found.max_order
    assert told["square_degrees"] == pytest.approx(591 * (cell(told["order"]) / 3600) ** 2, rel=1e-3)


def test_cells_are_no_wider_than_the_stamps_and_the_next_would_be(run, tmp_path):
    told = write(run, tmp_path / "s.fits")
    stamp = 0.4 * 32
    assert cell(told["order"]) <= stamp < cell(told["order"] - 1)
    assert cell(0) ** 2 * 12 == pytest.approx(4 * math.pi * (math.degrees(1) * 3600) ** 2)


def test_the_header_says_what_was_scanned_and_how_finely(run, tmp_path):
    write(run, tmp_path / "s.moc.fits", order=9)
    with fits.open(tmp_path / "s.moc.fits", checksum=True) as hdus:
        header = hdus["SCANNED"].header
        assert header["MOCORDER"] == 9 and header["CELLSIZE"] == pytest.approx(412, abs=0.5)
        assert header["MODELSHA"] and header["NSCANNED"] == 591 and header["NNOPLACE"] == 0
        assert hdus[0].header["CREATOR"].startswith("galscan ")
        assert all(hdu.verify_checksum() == 1 for hdu in hdus)


@pytest.mark.skipif(shutil.which("fitsverify") is None, reason="fitsverify is not installed")
def test_fitsverify_finds_nothing(run, tmp_path):
    write(run, tmp_path / "s.moc.fits")
    said = subprocess.run(["fitsverify", tmp_path / "s.moc.fits"], capture_output=True, text=True, timeout=60).stdout
    assert "found 0 warning(s) and 0 error(s)" in said, said


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_asks_the_map(run, tmp_path):
    write(run, tmp_path / "s.moc.fits")
    store = open_store(run.parent / "sky.zarr")
    table = pd.DataFrame({"ra": store.column("ra")[::60], "dec": store.column("dec")[::60]})
    pd.concat([table, table.assign(dec=table["dec"] + 0.02)]).to_csv(tmp_path / "p.csv", index=False)
    said = subprocess.run(
        ["stilts", "tpipe", "ifmt=csv", f"in={tmp_path / 'p.csv'}", "ofmt=csv", "omode=out",
         f"cmd=addcol inside 'inMoc(\"{tmp_path / 's.moc.fits'}\", ra, dec)'"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert [line.rsplit(",", 1)[1] for line in said.split()[1:]] == ["true"] * 10 + ["false"] * 10


def test_without_pixel_scales_an_order_is_asked_for(tmp_path):
    run = scanned_run(tmp_path)
    import zarr

    zarr.open_group(tmp_path / "sky.zarr", mode="r+")["pixel_scale"][:] = np.nan
    with pytest.raises(InputError, match="--order 13 for cells of 26 arcsec"):
        write(run, tmp_path / "s.fits")
    assert write(run, tmp_path / "s.json", order=3)["order"] == 3
    assert max(map(int, json.loads((tmp_path / "s.json").read_text()))) <= 3


@pytest.mark.parametrize("order", [-1, 30])
def test_orders_that_are_none(run, tmp_path, order):
    with pytest.raises(InputError, match="orders 0 to 29"):
        write(run, tmp_path / "s.fits", order=order)
    assert list(tmp_path.iterdir()) == []


def test_objects_without_a_position_are_counted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = scanned_run(tmp_path)
    for part, some in ((0, slice(0, 7)), (1, slice(0, 0))):
        path = run / "scores" / f"part-{part:05d}.parquet"
        table = pq.read_table(path)
        ra = table["ra"].to_numpy().copy()
        ra[some] = np.nan
        pq.write_table(table.set_column(table.column_names.index("ra"), "ra", pa.array(ra)), path)
    told = write(run, tmp_path / "s.fits")
    assert told["without_position"] == 7 and fits.getheader(tmp_path / "s.fits", 1)["NNOPLACE"] == 7
    for part in range(2):
        path = run / "scores" / f"part-{part:05d}.parquet"
        table = pq.read_table(path)
        nowhere = pa.array(np.full(len(table), np.nan))
        pq.write_table(table.set_column(table.column_names.index("ra"), "ra", nowhere), path)
    with pytest.raises(InputError, match="none of the 591 scanned objects"):
        write(run, tmp_path / "t.fits")


def test_without_mocpy_the_line_that_installs_it_is_told(run, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *more):
        if name == "mocpy":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'galscan\[moc\]'"):
        write(run, tmp_path / "s.fits")
