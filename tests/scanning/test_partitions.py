"""What a part leaves: tables that are whole, in order, and say of which scan they are."""

from __future__ import annotations

import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from galscan.core.errors import GalscanError, StorageError
from galscan.scanning import partitions, worker
from galscan.scanning.partitions import FINGERPRINT, of_target, quarantine_path, scores_path
from galscan.scanning.plan import Partition
from galscan.store import layout
from tests.helpers import tiny_store
from tests.small_scans import make_job, mean_scorer, tables, whole


@pytest.fixture(autouse=True)
def by_brightness(monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: mean_scorer)


def test_text_ids_stay_text(tmp_path):
    path = tmp_path / "s.zarr"
    group = layout.create(path, survey="named", count=3, size=16, id_dtype=np.dtype("<U12"), schemas={}, provenance={})
    group["id"][:] = np.array(["NGC 1", "IC 2", "007"])
    group["images"][:] = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    layout.finish(path, "x")
    store = layout.open_store(path)
    worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    assert list(tables(tmp_path / "run")[0]["id"]) == ["NGC 1", "IC 2", "007"]


def test_the_same_part_has_the_same_bytes_and_carries_the_fingerprint(tmp_path):
    store = tiny_store(tmp_path / "s.zarr", 300, 16, unusable=3)
    for name in ("a", "b"):
        worker.score_partition(whole(store), make_job(store, tmp_path / name))
    for path in (scores_path, quarantine_path):
        assert path(tmp_path / "a", 0).read_bytes() == path(tmp_path / "b", 0).read_bytes()
        assert pq.read_metadata(path(tmp_path / "a", 0)).metadata[FINGERPRINT] == b"f" * 64


def test_a_full_disk_is_one_line_and_leaves_no_score(tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 20, 16)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partitions.pq, "write_table", full)
    with pytest.raises(StorageError, match="disk is full"):
        worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    assert [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == []


def test_quarantine_is_written_before_scores(tmp_path, monkeypatch):
    written = []
    real = os.replace
    store = tiny_store(tmp_path / "s.zarr", 20, 16)
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(b.parent.name), real(a, b)))
    worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    assert written == ["quarantine", "scores"]


@pytest.mark.parametrize("kind", ["int64", "<U6"])
def test_lost_ids_are_an_error_and_not_objects_of_one_name(kind, tmp_path):
    group = layout.create(
        tmp_path / "s.zarr", survey="s", count=600, size=16, id_dtype=np.dtype(kind), schemas={}, provenance={}
    )
    group["id"][:] = np.arange(1, 601).astype(kind)
    group["images"][:] = tiny_store(tmp_path / "t.zarr", 600, 16).images()
    layout.finish(tmp_path / "s.zarr", "s")
    store = layout.open_store(tmp_path / "s.zarr")
    job = make_job(store, tmp_path / "run")
    assert worker.score_partition(whole(store), job).scored == 600
    (tmp_path / "s.zarr" / "id" / "c" / "1").unlink()
    lost = Partition(1, 0, store.shard, min(2 * store.shard, 600))
    with pytest.raises(GalscanError, match=r"lost the ids of rows 256 to 511; restore the files below .*s\.zarr/id"):
        worker.score_partition(lost, job)
    assert not scores_path(tmp_path / "run", 1).exists()


def test_columns_are_named_after_their_target_where_there_are_several():
    assert of_target("score", "ring", ["ring"]) == "score"
    assert of_target("score", "ring", ["dustlane", "ring"]) == "score_ring"
