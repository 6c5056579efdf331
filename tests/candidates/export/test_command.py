"""`galscan export`, as it is called: after a real scan, from the command line and from Python."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import galscan
from galscan.cli import main
from tests.candidate_tables import write_run
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def run(tmp_path_factory, scans_here, no_pages):
    """A scan of 700 objects, of which three cannot be scored; 120 are ranked."""
    place = tmp_path_factory.mktemp("export")
    store = tiny_store(place / "sky.zarr", 700, 32, survey="sky", unusable=3)
    galscan.scan(store=store.path, model=tiny_bundle(place / "model").path, out=place / "run", top=120, workers=1)
    return place / "run"


def test_says_what_it_wrote(run, tmp_path, capsys):
    assert main.run(["export", str(run), "--out", str(tmp_path / "c.fits"), "--top", "19"]) == 0
    assert "19 of 120 candidates written to" in capsys.readouterr().out
    assert main.run(["export", str(run), "--out", str(tmp_path / "c.fits"), "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["rows"] == 120 and told["bytes"] == (tmp_path / "c.fits").stat().st_size and told["replaced"]
    assert "(replacing the old one)" in said.err


def test_what_the_scan_wrote_is_what_export_writes(run, tmp_path):
    from astropy.io import fits

    done = galscan.export(run, tmp_path / "c.fits")
    assert fits.getheader(done, 1)["DATASUM"] == fits.getheader(run / "candidates.fits", 1)["DATASUM"]


def test_a_known_list_after_a_real_scan(run, tmp_path, capsys):
    scores = pd.concat([pd.read_parquet(path) for path in sorted((run / "scores").iterdir())])
    aside = pd.concat([pd.read_parquet(path) for path in sorted((run / "quarantine").iterdir())])
    ranked = pd.read_parquet(run / "candidates.parquet")
    below = scores[~scores["index"].isin(ranked["index"])].head(4)
    known = pd.concat([ranked.head(3), below, aside.head(2)])[["ra", "dec"]]
    known.assign(name=[f"K{k}" for k in range(9)]).to_csv(tmp_path / "kaviraj2012.csv", index=False)
    out = tmp_path / "c.csv"
    assert (
        main.run(["export", str(run), "--out", str(out), "--known", str(tmp_path / "kaviraj2012.csv"), "--json"]) == 0
    )
    entry = json.loads(capsys.readouterr().out)["lists"][0]
    assert entry["fates"] == {
        "candidate": 3, "scored below the list": 4, "rejected by the prefilter": 0, "quarantined": 2, "not scanned": 0
    }  # fmt: skip
    assert entry["recovered"]["value"] == 3 / 7 and entry["ranks"] == [1, 2, 3]
    assert pd.read_csv(out)["known_name"].head(4).fillna("").tolist() == ["K0", "K1", "K2", ""]


def test_the_map_is_of_all_that_was_scored(run, tmp_path, capsys):
    pytest.importorskip("mocpy", reason="needs the extra moc")
    assert main.run(["export", str(run), "--out", str(tmp_path / "s.moc.fits"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["objects"] == 697 and told["without_position"] == 0


def test_warnings_reach_whoever_reads_them(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    pd.DataFrame({"ra": [1, 2, 3], "dec": [1, 2, 3]}).to_csv(tmp_path / "hours.csv", index=False)
    done = galscan.export(run, tmp_path / "c.vot", known=tmp_path / "hours.csv")
    said = capsys.readouterr()
    assert "if they are in hours" in said.err and said.out == "" and done.known == 0


def test_regions_say_what_is_left_out(tmp_path):
    done = galscan.export(write_run(tmp_path / "run"), tmp_path / "c.reg", top=19)
    assert "1 of them have no position and are left out" in done.summary()["text"]


def test_help_is_short_and_names_every_format(capsys):
    assert main.run(["export", "--help"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 45
    assert all(
        word in said for word in ("fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats")
    )
