from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits, votable
from astropy.table import Table

from galscan.candidates.export.formats import FOLDERS, FORMATS, SUFFIXES, export
from galscan.cli import main
from galscan.core.errors import ConflictError, InputError
from tests.candidate_tables import candidates, write_run

TABLES = [suffix for suffix, name in SUFFIXES.items() if name not in ("moc", "pdf")]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", candidates(text=True))


@pytest.fixture(scope="module")
def known(listed_run, tmp_path_factory):
    """Return a list of known objects: ranks 1 and 6, and one that was scored below the candidates."""
    scores = pd.read_parquet(listed_run / "scores" / "part-00000.parquet")
    path = tmp_path_factory.mktemp("known") / "list.csv"
    objects = scores.loc[scores["index"].isin([0, 5, 200]), ["ra", "dec"]]
    objects.assign(name=["a", "b", "c"]).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", TABLES)
def test_every_suffix(run, tmp_path, suffix):
    done = export(run, tmp_path / "out" / f"c{suffix}")
    assert done.bytes == done.path.stat().st_size > 100 and list(done.path.parent.iterdir()) == [done.path]
    assert (done.rows, done.of) == (20, 20) and done.format == SUFFIXES[suffix]


@pytest.mark.parametrize("name", [*FORMATS, ".moc.json"])
def test_every_format_of_a_scan(listed_run, tmp_path, name):
    for extra, formats in (("mocpy", ("moc", ".moc.json")), ("lsdb", ("hats",))):
        if name in formats:
            pytest.importorskip(extra)
    out = tmp_path / (f"c{name}" if name.startswith(".") else "out")
    for replaced in (False, True):
        summary = export(listed_run, out, format=None if name.startswith(".") else name).summary()
        assert summary["replaced"] is replaced and summary["bytes"] > 100 and summary["file"] == str(out)
        assert out.is_dir() == (name in FOLDERS) and list(tmp_path.iterdir()) == [out]
        assert summary["rows"] == (0 if "moc" in name else 40) and str(out) in summary["text"]


def test_fits(run, tmp_path):
    with fits.open(export(run, tmp_path / "c.fits", top=7), checksum=True) as hdus:
        header = hdus["CANDIDATES"].header
        assert len(hdus[1].data) == header["NCANDID"] == 7 and header["NRANKED"] == 20
        assert header["MODELSHA"] == "a" * 64 and header["SURVEY"] == "sdss" and header["PREVALHI"] == 0.01


def test_fits_is_that_of_the_scan(shared_run, tmp_path, capsys):
    arguments = ["export", str(shared_run.path), "--out", str(tmp_path / "c.fits")]
    assert main.run([*arguments, "--top", "19"]) == 0
    assert "19 of 120 candidates written to" in capsys.readouterr().out
    assert main.run([*arguments, "--json"]) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary["rows"] == 120 and summary["bytes"] == (tmp_path / "c.fits").stat().st_size and summary["replaced"]
    assert "(replacing the old one)" in output.err
    sums = [fits.getheader(folder / name, 1)["DATASUM"] for folder, name in (
        (tmp_path, "c.fits"), (shared_run.path, "candidates.fits"),
    )]  # fmt: skip
    assert sums[0] == sums[1]


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet", ".csv", ".reg"])
def test_empty_selection_is_a_valid_file(run, tmp_path, suffix):
    done = export(run, tmp_path / f"none{suffix}", min_purity=0.999)
    assert done.path.is_file() and "no rank reaches this purity: the maximum is 0.95" in done.summary()["text"]


def test_integer_ids_stay_integers(tmp_path):
    run = write_run(tmp_path / "run")
    assert fits.getdata(export(run, tmp_path / "c.fits"))["objid"].dtype.kind == "i"
    assert votable.parse_single_table(str(export(run, tmp_path / "c.vot").path)).array["objid"].dtype == np.int64


def test_format_overrules_the_suffix_and_old_files_are_replaced(run, tmp_path):
    out = tmp_path / "c.moc.fits"
    out.write_text("old")
    assert export(run, out, format="csv").path.read_text().startswith("designation,")


def test_known_objects(listed_run, known, tmp_path):
    done = export(listed_run, tmp_path / "c.fits", known=known)
    table = Table.read(done)
    assert table["known_name"][[0, 5]].tolist() == ["a", "b"] and (table["known_name"] != "").sum() == 2
    assert table["known_sep"].unit == "arcsec" and table["known_ref"][0] == "list"
    summary = done.summary()
    entry = summary["lists"][0]
    assert entry["recovered"]["found"] == 2 and entry["ranks"] == [1, 6] and entry["missed"][0]["name"] == "c"
    assert "2 of 3: 67 %" in summary["text"] and "2 of them are known, 38 are new" in summary["text"]
    best = export(listed_run, tmp_path / "c.csv", known=[known], top=2, radius=0.5)
    assert best.known == 1 and best.recovered[0].objects["rank"].tolist() == [1, 6, 0]  # of all ranks, not of the two


def test_known_objects_of_a_run_without_scores(run, tmp_path, capsys):
    candidates(text=True)[["ra", "dec"]].head(1).assign(name="x").to_csv(tmp_path / "k.csv", index=False)
    done = export(run, tmp_path / "c.vot", known=tmp_path / "k.csv")
    assert (done.known, done.new) == (1, 17) and "2 have no position" in done.summary()["text"]  # of 20
    assert done.recovered == [] and "scores is missing" in done.warnings[0]
    output = capsys.readouterr()
    assert done.summary()["warnings"] == done.warnings and done.warnings[0] in output.err and output.out == ""


def test_candidates_without_a_position_are_not_regions(run, tmp_path):
    assert "1 of them have no position and are left out" in export(run, tmp_path / "c.reg", top=19).summary()["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "c.fitz"}, "'.fitz'"),
        ({"out": "c"}, "--format"),
        ({"format": "fit"}, "'fit'"),
        ({"top": 0}, "--top 0"),
        ({"min_purity": 1.2}, "--min-purity 1.2"),
        ({"min_purity": -0.1}, "--min-purity"),
        ({"min_purity": float("nan")}, "--min-purity"),
        ({"order": 9}, "--order"),
        ({"radius": 3.0}, "--radius needs"),
        ({"contact": "me@x.org"}, "--contact"),
        ({"known": ["k.csv"], "radius": 0.0}, "--radius 0"),
        ({"known": ["k.csv"]}, "k.csv"),
        ({"out": "c.moc.fits", "top": 3}, "--top"),
        ({"format": "moc", "min_purity": 0.3}, "--min-purity"),
        ({"format": "moc", "known": ["k.csv"]}, "--known"),
    ],
)
def test_invalid_options(run, tmp_path, options, words):
    options = {"out": "c.fits"} | options
    with pytest.raises(InputError, match=words):
        export(run, tmp_path / options.pop("out"), **options)
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.parametrize("name", ["candidates.parquet", "run.json", "scores", "scores/x.fits", "vetting/c.fits", "."])
def test_files_of_the_run_are_not_overwritten(run, name):
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    for format in ("csv", "zooniverse"):
        with pytest.raises(ConflictError):
            export(run, run / name, format=format, top=1)
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file()) == before
    assert export(run, run / "mine.fits").path.is_file()


def test_files_and_folders_do_not_replace_each_other(run, tmp_path):
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(ConflictError, match=r"folder\.fits"):
        export(run, tmp_path / "folder.fits")
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="file"):
        export(run, tmp_path / "file", format="zooniverse")


def test_help_names_every_format(capsys):
    assert main.run(["export", "--help"]) == 0
    output = capsys.readouterr().out
    assert len(output.splitlines()) < 45 and all(name in output for name in FORMATS)
