from __future__ import annotations

import json

import pytest

from galscan.candidates import table_stream
from galscan.candidates.run import max_purity, open_candidates, provenance, select
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
