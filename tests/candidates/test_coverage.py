from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from astropy import units
from astropy.io import fits

from galscan.candidates.coverage import cell, moc
from galscan.candidates.run import provenance
from galscan.core.errors import InputError
from galscan.scanning.run import open_run
from galscan.store.layout import open_store
from tests.candidate_tables import scanned_run

mocpy = pytest.importorskip("mocpy", reason="needs the extra moc")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scanned_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(run, tmp_path):
    """Return a copy of the run, with a copy of its store."""
    folder = shutil.copytree(run.parent, tmp_path / "copy")
    info = folder / run.name / "run.json"
    info.write_text(info.read_text().replace(str(run.parent), str(folder)))
    return folder / run.name


def write(run, out, order=None):
    opened = open_run(run)
    return moc(opened, out, order, provenance(opened.info))


@pytest.mark.parametrize("name", ["s.moc.fits", "s.moc.json"])
def test_scanned_objects_are_covered(run, tmp_path, name):
    summary = write(run, tmp_path / name)
    store = open_store(run.parent / "sky.zarr")
    ra, dec = store.column("ra"), store.column("dec")
    found = mocpy.MOC.load(tmp_path / name, format=name.rsplit(".", 1)[1])
    inside = found.contains_lonlat(ra * units.deg, dec * units.deg)
    assert inside[:591].all()  # the discarded, too
    assert not inside[591:].any()  # quarantined ones were not seen
    assert not found.contains_lonlat(ra[:591] * units.deg, (dec[:591] + 0.02) * units.deg).any()
    assert summary["objects"] == 591 and summary["order"] == found.max_order
    assert summary["square_degrees"] == pytest.approx(591 * (cell(summary["order"]) / 3600) ** 2, rel=1e-3)


def test_cells_are_no_wider_than_the_stamps_and_the_next_would_be(run, tmp_path):
    summary = write(run, tmp_path / "s.fits")
    stamp = 0.4 * 32
    assert cell(summary["order"]) <= stamp < cell(summary["order"] - 1)
    assert cell(0) ** 2 * 12 == pytest.approx(4 * math.pi * (math.degrees(1) * 3600) ** 2)


def test_header(run, tmp_path):
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
    output = subprocess.run(["fitsverify", tmp_path / "s.moc.fits"], capture_output=True, text=True, timeout=60).stdout
    assert "found 0 warning(s) and 0 error(s)" in output, output


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_reads_the_map(run, tmp_path):
    write(run, tmp_path / "s.moc.fits")
    store = open_store(run.parent / "sky.zarr")
    table = pd.DataFrame({"ra": store.column("ra")[::60], "dec": store.column("dec")[::60]})
    pd.concat([table, table.assign(dec=table["dec"] + 0.02)]).to_csv(tmp_path / "p.csv", index=False)
    output = subprocess.run(
        ["stilts", "tpipe", "ifmt=csv", f"in={tmp_path / 'p.csv'}", "ofmt=csv", "omode=out",
         f"cmd=addcol inside 'inMoc(\"{tmp_path / 's.moc.fits'}\", ra, dec)'"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert [line.rsplit(",", 1)[1] for line in output.split()[1:]] == ["true"] * 10 + ["false"] * 10


def test_without_pixel_scales_an_order_is_required(copied, tmp_path):
    zarr.open_group(copied.parent / "sky.zarr", mode="r+")["pixel_scale"][:] = np.nan
    with pytest.raises(InputError, match="--order 13"):
        write(copied, tmp_path / "s.fits")
    assert write(copied, tmp_path / "s.json", order=3)["order"] == 3
    assert max(map(int, json.loads((tmp_path / "s.json").read_text()))) <= 3


@pytest.mark.parametrize("order", [-1, 30])
def test_orders_out_of_range(run, tmp_path, order):
    with pytest.raises(InputError, match=f"--order {order}"):
        write(run, tmp_path / "s.fits", order=order)
    assert list(tmp_path.iterdir()) == []


def remove_positions(run, partition, rows):
    path = run / "scores" / f"part-{partition:05d}.parquet"
    table = pq.read_table(path)
    ra = table["ra"].to_numpy().copy()
    ra[rows] = np.nan
    pq.write_table(table.set_column(table.column_names.index("ra"), "ra", pa.array(ra)), path)


def test_objects_without_a_position_are_counted(copied, tmp_path):
    remove_positions(copied, 0, slice(0, 7))
    summary = write(copied, tmp_path / "s.fits")
    assert summary["without_position"] == 7 and fits.getheader(tmp_path / "s.fits", 1)["NNOPLACE"] == 7
    for partition in range(2):
        remove_positions(copied, partition, slice(None))
    with pytest.raises(InputError, match="591"):
        write(copied, tmp_path / "t.fits")


def test_mocpy_is_optional(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mocpy", None)
    with pytest.raises(InputError, match="moc"):
        write(run, tmp_path / "s.fits")
