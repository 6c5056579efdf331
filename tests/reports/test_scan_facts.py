"""Summaries read from the tables of a run: areas, examples per reason, and each known target once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galscan.reports import scan_facts as facts
from galscan.stats.histogram import ScoreHistogram
from tests.candidate_tables import run_of
from tests.helpers import tiny_bundle
from tests.reports.test_scan import labelled_store


def parts(folder: Path, ra: np.ndarray, dec: np.ndarray, pieces: int = 3) -> Path:
    (folder / "scores").mkdir(parents=True)
    for k, rows in enumerate(np.array_split(np.arange(len(ra)), pieces)):
        pq.write_table(pa.table({"ra": ra[rows], "dec": dec[rows]}), folder / "scores" / f"part-{k:05d}.parquet")
    return folder


@pytest.mark.parametrize(
    ("west", "width", "south", "north", "count"),
    [(350, 20, -8, 4, 40_000), (0, 360, -60, 60, 60_000), (100, 2, 30, 31.5, 4_000), (200, 30, 80, 90, 20_000)],
)
def test_areas_and_limits_are_those_of_the_field(tmp_path, west, width, south, north, count):
    rng = np.random.default_rng(0)
    ra = np.mod(west + width * rng.random(count), 360)
    up = rng.uniform(*np.sin(np.radians([south, north])), count)
    found = facts.footprint(parts(tmp_path, ra, np.degrees(np.arcsin(up))))
    true = facts.WHOLE_SKY * (width / 360) * (np.sin(np.radians(north)) - np.sin(np.radians(south))) / 2
    edge = 2 * (width * np.cos(np.radians((south + north) / 2)) + north - south) * np.sqrt(found.cell)
    assert true - 0.01 * true <= found.area <= true + 1.5 * edge  # cells that are cut count whole
    assert found.dec == pytest.approx((south, north), abs=0.2)
    assert found.ra is None if width == 360 else found.ra == pytest.approx((west, (west + width) % 360), abs=0.3)


def test_few_objects_have_no_area_and_none_no_map(tmp_path):
    rng = np.random.default_rng(0)
    assert facts.footprint(parts(tmp_path / "few", rng.uniform(0, 360, 50), rng.uniform(-60, 60, 50))).area is None
    nowhere = np.full(50, np.nan)
    assert facts.footprint(parts(tmp_path / "none", nowhere, nowhere)) is None
    assert facts.footprint(tmp_path / "nothing") is None


def test_each_reason_has_a_few_examples(tmp_path):
    (tmp_path / "quarantine").mkdir()
    rows = np.arange(100)
    reasons = np.where(rows % 10 == 0, "rare", np.where(rows < 50, "early", "late"))
    for k in range(4):
        here = rows[k * 25 : k * 25 + 25]
        table = {"store": "sky", "index": here, "id": here + 1000, "reason": reasons[here]}
        pd.DataFrame(table).to_parquet(tmp_path / "quarantine" / f"part-{k:05d}.parquet")
    found = facts.quarantine(tmp_path, {"rare": 10, "early": 45, "late": 45}, each=3)
    assert {why: list(some["id"]) for why, some in found.items()} == {
        "rare": ["1000", "1010", "1020"], "early": ["1001", "1002", "1003"], "late": ["1051", "1052", "1053"],
    }  # fmt: skip
    assert facts.quarantine(tmp_path, {}) == {} == facts.quarantine(tmp_path / "nothing", {"rare": 1})


def test_every_known_target_is_told_of_once_and_where_it_went(tmp_path):
    """Of 21: four are candidates, twelve below the list, two discarded, one quarantined, two not scanned."""
    from galscan.models.model import open_model

    store, bundle = labelled_store(tmp_path / "sky.zarr"), open_model(tiny_bundle(tmp_path / "model").path)
    rows = np.array([*range(4, 18), 300])
    scored = pd.DataFrame({"store": "sky", "index": rows, "id": rows + 1000, "score": -rows / 10.0 - 0.01})
    stage = pd.Categorical(np.where(rows < 16, "full", "prefilter"), categories=["full", "rescored", "prefilter"])
    scored.loc[rows >= 16, "score"] = np.nan
    for name, table in (
        ("scores", scored.assign(stage=stage)),
        ("quarantine", pd.DataFrame({"store": ["sky"], "index": [395], "id": [1395], "reason": ["blank image"]})),
    ):
        (tmp_path / "run" / name).mkdir(parents=True)
        table.to_parquet(tmp_path / "run" / name / "part-00000.parquet")
    frame = pd.DataFrame({"store": "sky", "index": range(4), "rank": range(1, 5), "score": [9.0, 8.0, 7.0, 6.0]})
    histogram = ScoreHistogram.of(np.concatenate([frame["score"], scored["score"].dropna(), np.full(50, -1.02)]))
    known = facts.known_targets(tmp_path / "run", frame, bundle, [store], histogram)
    assert sorted(known["index"]) == [*range(20), 395]
    assert known["fate"].value_counts().to_dict() == {
        facts.BELOW: 12, facts.CANDIDATE: 4, facts.DISCARDED: 2, facts.NOT_SCANNED: 2, facts.QUARANTINED: 1,
    }  # fmt: skip
    by_row = known.set_index("index")
    assert set(by_row.loc[range(5), "role"]) == {facts.TRAINED} and by_row.loc[11, "role"] == facts.INDEPENDENT
    assert by_row.loc[395, "why"] == "blank image" and by_row.loc[2, "rank"] == 3 and by_row.loc[11, "rank"] == 0
    assert by_row.loc[4, "about"] == 5 and by_row.loc[11, "about"] == 5 + 7 + 50  # after the fifty, and those above it
    assert list(known["role"] == facts.TRAINED) == sorted(
        known["role"] == facts.TRAINED
    )  # objects not trained on come first


def test_a_store_without_labels_tells_of_none(tmp_path):
    from galscan.models.model import open_model
    from tests.helpers import tiny_store

    bundle = open_model(tiny_bundle(tmp_path / "model").path)
    frame = pd.DataFrame({"store": [], "index": [], "rank": [], "score": []})
    store = tiny_store(tmp_path / "sky.zarr", 20)
    assert facts.known_targets(tmp_path, frame, bundle, [store], ScoreHistogram()).empty


def test_time_is_told_as_far_as_it_is_known(tmp_path):
    assert facts.timing(run_of(tmp_path, wall_s=None, images_per_s=None)) == [("total", "not measured")]
    lines = [{"part": k, "worker": f"host:{k % 2}"} for k in (0, 1, 2, 3, 3)]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = {"prepare": 2.0, "first look": 12.5, "scan": 180.0, "rank": 3.0}
    whole = {"wall_s": 200.0, "seconds": seconds, "images_per_s": 4315.2, "busy": 0.934}
    assert facts.timing(run_of(tmp_path, **whole)) == [
        ("total", "3.3 min"), ("prepare", "2.0 s"), ("prefilter", "12.5 s"), ("scan", "3.0 min"), ("rank", "3.0 s"),
        ("rate", "4,315 images/s"), ("workers", "2, for 4 partitions, networks busy for 93% of the scan"),
    ]  # fmt: skip
    assert facts.timing(run_of(tmp_path, wall_s=2.0, images_per_s=None))[1:] == [("workers", "2, for 4 partitions")]
    for damaged in ("[1]", "{}", "\xff"):
        (tmp_path / "ledger.jsonl").write_text(damaged)
        assert [name for name, _ in facts.timing(run_of(tmp_path, **whole))][-1] == "rate"
