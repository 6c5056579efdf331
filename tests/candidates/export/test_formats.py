from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits, votable
from astropy.table import Table

from galscan.candidates.export.formats import FOLDERS, FORMATS, SUFFIXES
from galscan.candidates.export.formats import export as export_run
from galscan.core.errors import ConflictError, InputError
from tests.candidate_tables import candidates, scanned_run, write_run

TABLES = [suffix for suffix, name in SUFFIXES.items() if name not in ("moc", "pdf")]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", candidates(text=True))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A run with its scores and its store, and a list of known objects: ranks 1 and 6, one below the list."""
    place = tmp_path_factory.mktemp("scanned")
    run = scanned_run(place)
    scores = pd.read_parquet(run / "scores" / "part-00000.parquet")
    known = scores.loc[scores["index"].isin([0, 5, 200]), ["ra", "dec"]]
    known.assign(name=["a", "b", "c"]).to_csv(place / "list.csv", index=False)
    return run


@pytest.mark.parametrize("suffix", TABLES)
def test_every_suffix_writes_something_and_leaves_no_temporary_file(run, tmp_path, suffix):
    done = export_run(run, tmp_path / "out" / f"c{suffix}")
    assert done.bytes == done.path.stat().st_size > 100 and list(done.path.parent.iterdir()) == [done.path]
    assert (done.rows, done.of) == (20, 20) and done.format == SUFFIXES[suffix]


@pytest.mark.parametrize("name", [*FORMATS, ".moc.json"])
def test_every_format_of_a_scan(scanned, tmp_path, name):
    for extra, formats in (("mocpy", ("moc", ".moc.json")), ("lsdb", ("hats",))):
        if name in formats:
            pytest.importorskip(extra)
    out = tmp_path / (f"c{name}" if name.startswith(".") else "out")
    for replaced in (False, True):
        done = export_run(scanned, out, format=None if name.startswith(".") else name)
        told = done.summary()
        assert told["replaced"] is replaced and told["bytes"] > 100 and told["file"] == str(out)
        assert out.is_dir() == (name in FOLDERS) and list(tmp_path.iterdir()) == [out]
        assert told["rows"] == (0 if "moc" in name else 40) and str(out) in told["text"]


def test_what_was_exported_is_a_path(run, tmp_path):
    assert len(pd.read_csv(export_run(run, tmp_path / "c.csv"))) == 20
    assert len(Table.read(export_run(run, tmp_path / "c.fits", top=3))) == 3


def test_fits(run, tmp_path):
    with fits.open(export_run(run, tmp_path / "c.fits", top=7), checksum=True) as hdus:
        header = hdus["CANDIDATES"].header
        assert len(hdus[1].data) == header["NCANDID"] == 7 and header["NRANKED"] == 20
        assert header["MODELSHA"] == "a" * 64 and header["SURVEY"] == "sdss" and header["PREVALHI"] == 0.01


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet", ".csv", ".reg"])
def test_an_empty_selection_is_a_valid_file(run, tmp_path, suffix):
    done = export_run(run, tmp_path / f"none{suffix}", min_purity=0.999)
    assert done.path.is_file() and "no rank reaches this purity: the maximum is 0.95" in done.summary()["text"]


def test_integer_ids_stay_integers(tmp_path):
    run = write_run(tmp_path / "run")
    assert fits.getdata(export_run(run, tmp_path / "c.fits"))["objid"].dtype.kind == "i"
    assert votable.parse_single_table(str(export_run(run, tmp_path / "c.vot").path)).array["objid"].dtype == np.int64


def test_format_overrules_the_suffix_and_old_files_are_replaced(run, tmp_path):
    out = tmp_path / "c.moc.fits"
    out.write_text("old")
    assert export_run(run, out, format="csv").path.read_text().startswith("designation,")


def test_what_is_known_and_what_was_found_again(scanned, tmp_path):
    done = export_run(scanned, tmp_path / "c.fits", known=[scanned.parent / "list.csv"])
    table = Table.read(done)
    assert table["known_name"][[0, 5]].tolist() == ["a", "b"] and (table["known_name"] != "").sum() == 2
    assert table["known_sep"].unit == "arcsec" and table["known_ref"][0] == "list"
    told = done.summary()
    assert (told["known"], told["new"]) == (2, 38)
    entry = told["lists"][0]
    assert entry["recovered"]["found"] == 2 and entry["ranks"] == [1, 6] and entry["missed"][0]["name"] == "c"
    assert "2 of 3: 67 %" in told["text"] and "2 of them are known, 38 are new" in told["text"]
    best = export_run(scanned, tmp_path / "c.csv", known=[scanned.parent / "list.csv"], top=2, radius=0.5)
    assert best.known == 1 and best.recovered[0].objects["rank"].tolist() == [1, 6, 0]  # of all ranks, not of the two


def test_without_scores_candidates_are_matched_all_the_same(run, tmp_path):
    frame = candidates(text=True)
    frame[["ra", "dec"]].head(1).assign(name="x").to_csv(tmp_path / "k.csv", index=False)
    done = export_run(run, tmp_path / "c.vot", known=[tmp_path / "k.csv"])
    assert (done.known, done.new) == (1, 17) and "2 have no position" in done.summary()["text"]  # of 20
    assert done.recovered == [] and "scores is missing" in done.warnings[0]
    assert done.summary()["warnings"] == done.warnings


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
        ({"order": 9}, "--order is for a MOC"),
        ({"radius": 3.0}, "--radius needs known objects"),
        ({"known": ["k.csv"], "radius": 0.0}, "--radius 0"),
        ({"known": ["k.csv"]}, "no catalog at k.csv"),
        ({"out": "c.moc.fits", "top": 3}, "--top cannot be used with a MOC"),
        ({"format": "moc", "min_purity": 0.3}, "--min-purity cannot be used with a MOC"),
        ({"format": "moc", "known": ["k.csv"]}, "--known cannot be used with a MOC"),
    ],
)
def test_what_makes_no_sense_is_named_and_nothing_written(run, tmp_path, options, words):
    options = {"out": "c.fits"} | options
    with pytest.raises(InputError, match=words):
        export_run(run, tmp_path / options.pop("out"), **options)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.parametrize("place", ["candidates.parquet", "run.json", "scores", "scores/x.fits", "vetting/c.fits", "."])
def test_what_belongs_to_the_run_is_not_overwritten(run, place):
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    for name in ("csv", "zooniverse"):
        with pytest.raises(ConflictError):
            export_run(run, run / place, format=name, top=1)
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file()) == before
    assert export_run(run, run / "mine.fits").path.is_file()


def test_files_and_folders_are_not_taken_for_each_other(run, tmp_path):
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(ConflictError, match="is a folder; name a file"):
        export_run(run, tmp_path / "folder.fits")
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="zooniverse writes a folder"):
        export_run(run, tmp_path / "file", format="zooniverse")
