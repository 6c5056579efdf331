"""Coverage maps as people have them: compressed, under any suffix; what is none is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma

import numpy as np
import pytest
from astropy import units
from astropy.io import fits

from galscan.cli import main
from galscan.core.errors import InputError
from galscan.scanning.selection import make_selection

mocpy = pytest.importorskip("mocpy", reason="needs the extra moc")


@pytest.fixture(scope="module")
def moc():
    return mocpy.MOC.from_cone(120 * units.deg, 20 * units.deg, radius=40 * units.deg, max_depth=6)


def content(moc, path, form):
    moc.save(path, format=form)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "form", "compress"),
    [
        ("m.fits.gz", "fits", gzip.compress), ("m.moc", "fits", bytes), ("m.FIT", "fits", bytes),
        ("m.fits.bz2", "fits", bz2.compress), ("m", "fits", lzma.compress), ("m.json.gz", "json", gzip.compress),
        ("m.txt", "json", bytes), ("m.fits", "ascii", bytes), ("m.ascii.gz", "ascii", gzip.compress),
    ],
)  # fmt: skip
def test_content_tells_the_form(moc, shared_store, tmp_path, name, form, compress):
    (tmp_path / name).write_bytes(compress(content(moc, tmp_path / "plain", form)))
    rows = slice(0, shared_store.count)
    expected = moc.contains_lonlat(shared_store.column("ra") * units.deg, shared_store.column("dec") * units.deg)
    assert 20 < expected.sum() < 680
    np.testing.assert_array_equal(make_selection(None, None, tmp_path / name).mask(shared_store, rows), expected)


def sky_map(path):
    """Write a multi-order map of probabilities, as of gravitational waves, which covers the whole sky."""
    uniq = np.arange(4, 16)
    columns = [fits.Column("UNIQ", "K", array=uniq), fits.Column("PROBDENSITY", "D", array=np.linspace(0, 1, 12))]
    table = fits.BinTableHDU.from_columns(columns)
    table.header.update({"PIXTYPE": "HEALPIX", "ORDERING": "NUNIQ", "COORDSYS": "C", "MOCORDER": 0})
    table.writeto(path)


def galactic(path):
    table = fits.BinTableHDU.from_columns([fits.Column("UNIQ", "K", array=np.arange(4, 9))])
    table.header.update({"PIXTYPE": "HEALPIX", "ORDERING": "NUNIQ", "COORDSYS": "G", "MOCORDER": 0})
    table.writeto(path)


@pytest.mark.parametrize(
    "write",
    [
        sky_map, galactic,
        lambda path: fits.PrimaryHDU(np.zeros((8, 8))).writeto(path),
        lambda path: path.write_text("# Region file format: DS9\nfk5\ncircle(120, 20, 40)\n"),
        lambda path: path.write_bytes(gzip.compress(b"SIMPLE  = T")[:-6]),
        lambda path: path.write_bytes(bytes(range(256))),
        lambda path: path.write_text(""),
    ],
)  # fmt: skip
def test_what_is_no_map_of_coverage_is_refused(write, tmp_path, shared_store, shared_model, capsys):
    path = tmp_path / "m.fits"
    write(path)
    with pytest.raises(InputError, match=r"m\.fits"):
        make_selection(None, None, path)
    arguments = ["--store", str(shared_store.path), "--model", str(shared_model.path), "--out", str(tmp_path / "run")]
    assert main.run(["scan", *arguments, "--moc", str(path), "--dry-run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
