from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import QTable

import galscan
from galscan.candidates import table_stream
from galscan.candidates.run import max_purity, open_candidates, open_run, provenance, select
from galscan.core.errors import InputError, NotFoundError
from galscan.scanning.run_info import RunInfo
from tests.candidate_tables import candidates, run_of, write_run


def test_selection(monkeypatch):
    monkeypatch.setattr(table_stream, "PIECE", 6)
    frame = candidates()
    table = table_stream.from_frame(frame)
    assert select(table, top=500).count == 20
    pure = select(table, min_purity=0.7)
    purities = [p for piece in pure for p in piece["purity"].to_pylist()]
    assert min(purities) >= 0.7 and len(purities) == pure.count and frame["purity"][pure.count] < 0.7
    assert select(table, min_purity=0.7, top=2).count == 2
    assert select(table, min_purity=0.7, top=19).count == pure.count
    assert select(table, min_purity=0.99).count == 0 and select(table, min_purity=0.0).count == 20


def test_the_largest_rank_counts_where_purity_goes_up_and_down(monkeypatch):
    monkeypatch.setattr(table_stream, "PIECE", 3)
    frame = candidates(8).assign(purity=[0.9, 0.4, 0.4, 0.4, 0.4, 0.4, 0.6, 0.1])
    assert select(table_stream.from_frame(frame), min_purity=0.5).count == 7
    assert max_purity(table_stream.from_frame(frame)) == 0.9 and max_purity(table_stream.from_frame(frame.head(0))) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"top": 0}, "--top 0"), ({"min_purity": 1.2}, "--min-purity 1.2"), ({"min_purity": float("nan")}, "nan")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        select(table_stream.from_frame(candidates()), **options)


def test_the_graded_table_is_taken_where_there_is_one(tmp_path):
    run = write_run(tmp_path / "run")
    assert "grade" not in open_candidates(run)[0].names
    candidates().assign(grade="A").to_parquet(run / "candidates-graded.parquet", index=False)
    (run / "purity.json").write_text(json.dumps({"after": {"notes": ["graded"]}}))
    table, opened = open_candidates(run)
    assert "grade" in table.names and provenance(opened.info, opened.purity)["notes"] == ["graded"]


def test_unfinished_or_absent_runs(tmp_path):
    with pytest.raises(InputError, match="not finished"):
        open_candidates(write_run(tmp_path / "run", status="running"))
    with pytest.raises(NotFoundError, match="no run"):
        open_candidates(tmp_path / "nothing")


def test_provenance():
    full = provenance(run_of().info)
    assert full["stores"] == ["sdss"] and full["prevalence_hi"] == 0.01
    bare = provenance(RunInfo(status="done", fingerprint="f", identity={}))
    assert set(bare) == set(full) and bare["notes"] == []


def test_the_table_is_that_of_the_fits_export(tmp_path):
    run = open_run(write_run(tmp_path / "run"))
    table = run.table()
    written = QTable.read(galscan.export(run.path, tmp_path / "c.fits"))
    assert table.colnames == written.colnames and len(table) == 20
    for name in table.colnames:
        assert table[name].unit == written[name].unit and table[name].info.description
        assert table[name].info.meta["ucd"]
    history = ["".join(found.meta.pop("HISTORY")) for found in (table, written)]  # FITS wraps long lines
    assert history[0] == history[1] and "13 positives" in history[0]
    assert {key: written.meta[key] for key in table.meta} == table.meta and table.meta["PURITY"] == "estimated"
    assert (table["ra"][:18] == written["ra"][:18]).all() and table["ra"].unit == "deg" and np.isnan(table["ra"][-1])
    assert (table["objid"] == written["objid"]).all() and table["in_train"].dtype == bool
    assert SkyCoord(table["ra"], table["dec"])[0].ra.deg == table["ra"][0].value
    table.write(tmp_path / "again.fits")
    assert QTable.read(tmp_path / "again.fits").meta["RUNSHA"] == table.meta["RUNSHA"]
    table.write(tmp_path / "table.vot", format="votable")
    assert 'ucd="pos.eq.ra;meta.main"' in (tmp_path / "table.vot").read_text()


def test_parts_of_the_table(tmp_path):
    run = open_run(write_run(tmp_path / "run", candidates(text=True)))
    assert run.table(top=3)["rank"].tolist() == [1, 2, 3] and run.table(top=3).meta["NCANDID"] == 3
    assert run.table("dustlane")["objid"][1] == "NGC 1 é", "text is not restricted to ASCII"
    with pytest.raises(InputError, match="top=0"):
        run.table(top=0)
    empty = open_run(write_run(tmp_path / "empty", candidates().head(0)))
    assert len(empty.table()) == 0 and empty.table().colnames == run.table().colnames
