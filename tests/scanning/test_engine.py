"""The window of parts in flight, what is kept of a scan that stops, and a first look on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import GalscanError, Interrupted, StorageError
from galscan.models.model import PREFILTER_FILE
from galscan.scanning import engine, merge, partitions, worker
from galscan.scanning.plan import Partition
from galscan.scanning.selection import Selection
from tests.helpers import tiny_store
from tests.small_scans import coarse_scorer, noisy, planned, scan


@pytest.fixture(autouse=True)
def by_brightness(monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: coarse_scorer)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [
        tiny_store(folder / "a.zarr", 1100, 8, survey="zebra", unusable=5),
        tiny_store(folder / "b.zarr", 700, 8, survey="aardvark", seed=1),
    ]


def test_every_object_of_every_store_is_scored_or_quarantined_once(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    done = scan(plan, client)
    assert (done.scored, done.quarantined) == (1795, 5)
    assert done.seconds > 0 and 0 < done.busy < 1
    seen = [
        pd.read_parquet(path(plan.out, partition.number), columns=["store", "index"])
        for partition in plan.partitions
        for path in (partitions.scores_path, partitions.quarantine_path)
    ]
    rows = pd.concat([frame.astype({"store": "str"}) for frame in seen])
    assert sorted(zip(rows["store"], rows["index"], strict=True)) == sorted(
        (store.name, row) for store in stores for row in range(store.count)
    )
    ledger = [json.loads(line) for line in (plan.out / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["part"] for line in ledger) == [partition.number for partition in plan.partitions]
    assert sum(line["scored"] for line in ledger) == 1795
    assert merge.pending(plan) == []


def test_a_scan_goes_on_from_the_parts_that_are_there(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    first = list(plan.partitions)[:3]
    engine.run_scan(plan, client, first)
    before = {
        partition.number: partitions.scores_path(plan.out, partition.number).stat().st_mtime_ns for partition in first
    }
    (plan.out / "scores" / ".part-00004.parquet.abcd.tmp").write_bytes(b"half")
    assert merge.pending(plan) == list(plan.partitions)[3:]
    assert not list((plan.out / "scores").glob(".*.tmp"))
    scan(plan, client)
    assert before == {
        partition.number: partitions.scores_path(plan.out, partition.number).stat().st_mtime_ns for partition in first
    }
    assert merge.merge(plan)[0].scored == 1795


def test_few_parts_are_in_flight_however_many_there_are(stores, client, tmp_path):
    plan = planned(stores[:1], tmp_path / "run")
    many = [Partition(k, 0, k, k + 1) for k in range(60)]
    plan = dataclasses.replace(plan, partitions=tuple(many))
    in_flight = []
    real = client.submit

    class Watched:
        def __getattr__(self, name):
            return getattr(client, name)

        def submit(self, *args, **kwargs):
            in_flight.append(len(client.futures))
            return real(*args, **kwargs)

    assert engine.run_scan(plan, Watched(), many).scored == 60
    assert max(in_flight) <= engine.window(client) == 4


def test_an_error_names_the_part_and_says_that_the_rest_is_kept(stores, client, tmp_path, monkeypatch):
    plan = planned(stores[:1], tmp_path / "run")
    seen = []

    def second_fails(images):
        seen.append(len(images))
        if len(seen) == 2:
            raise RuntimeError("shapes do not match\nand more")
        return coarse_scorer(images)

    monkeypatch.setattr(worker, "load_scorer", lambda job: second_fails)
    with pytest.raises(
        GalscanError,
        match=r"partition 1 \(rows 256-511 of .*a\.zarr\) failed with RuntimeError: shapes do not match; .*kept",
    ) as caught:
        scan(plan, client)
    assert "\n" not in str(caught.value)
    assert partitions.scores_path(plan.out, 0).exists()
    assert all(state.status != "pending" for state in client.futures.values())  # nothing goes on in the background


def test_a_full_disk_on_a_worker_stays_a_storage_error_of_one_line(stores, client, tmp_path, monkeypatch):
    plan = planned(stores[:1], tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partitions.pq, "write_table", full)
    with pytest.raises(StorageError, match=r"disk is full.*partition \d") as caught:
        scan(plan, client)
    assert "\n" not in str(caught.value)


def test_a_part_that_kills_its_workers_or_never_ends_is_set_aside_whole(stores, client, tmp_path):
    from distributed import KilledWorker

    plan = planned(stores[:1], tmp_path / "run")

    class Future:
        status = "error"

        def exception(self):
            return KilledWorker("key", None, 3)

    job, partition = partitions.Job.of(plan), plan.partitions[2]
    report = engine._report(plan, partition, Future(), job, 0)
    assert (report.scored, report.quarantined) == (0, partition.count)
    table = pd.read_parquet(partitions.quarantine_path(plan.out, 2))
    assert set(table["reason"]) == {partitions.FATAL} and list(table["index"]) == list(range(512, 768))
    assert len(pd.read_parquet(partitions.scores_path(plan.out, 2))) == 0 and merge._is_complete(plan, partition)
    Future.status = "cancelled"
    with pytest.raises(GalscanError, match=r"cluster was lost at partition 2 .*kept"):
        engine._report(plan, partition, Future(), job, 0)
    engine._report(plan, plan.partitions[1], Future(), job, engine.STRIKES)
    assert set(pd.read_parquet(partitions.quarantine_path(plan.out, 1))["reason"]) == {partitions.SILENT}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_interrupted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="run the same command again"), engine.interruptible():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(number) is before
    assert Interrupted.exit_code == 130


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_an_object_is_deleted_is_not_lost(stores, client, tmp_path):
    """Python drops what is raised there: the scan looks at the event."""

    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    plan = planned(stores, tmp_path / "run")
    with pytest.raises(Interrupted), engine.interruptible() as stop:
        gone = Deleted()
        del gone
        assert stop.is_set()
        engine.run_scan(plan, client, plan.partitions, stop=stop)
    assert merge.pending(plan)


def test_only_the_chosen_are_scored(stores, client, tmp_path):
    chosen = Selection(where="dec > 0")
    plan = planned(stores, tmp_path / "run", selection=chosen)
    done = scan(plan, client)
    north = sum(int((store.column("dec") > 0).sum()) for store in stores)
    assert done.scored + done.quarantined == north < plan.objects
    merged = merge.merge(plan)[0]
    assert (merged.top["dec"] > 0).all() and merged.scored + merged.quarantined == north
    assert merge.pending(plan) == []
    limited = planned(stores, tmp_path / "few", limit=1200)
    assert scan(limited, client).scored == 1200 - 5
    assert limited.fingerprint != plan.fingerprint != planned(stores, tmp_path / "all").fingerprint


def cascaded(store, client, out, monkeypatch, **options):
    """Scan with a first look; return plan and merged."""
    cut = float(np.quantile(coarse_scorer(store.images()).score, 0.95)) - 0.5
    monkeypatch.setattr(worker, "_prefilter", lambda job: (noisy, cut))
    plan = planned([store], out, cascade=True, **options)
    engine.run_scan(plan, client, merge.pending(plan), [plan.out / PREFILTER_FILE])
    return plan, merge.merge(plan)[0]


def test_a_first_look_discards_and_a_hundredth_is_audited(client, tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 6000, 8, unusable=10)
    plan, merged = cascaded(store, client, tmp_path / "run", monkeypatch, top=40)
    rows = pd.concat([pd.read_parquet(partitions.scores_path(plan.out, p.number)) for p in plan.partitions])
    by_stage = rows.groupby("stage", observed=True)
    assert len(rows) == merged.scored == 5990 and set(rows["stage"]) == {"full", "rescored", "prefilter"}
    assert by_stage["score"].count()["prefilter"] == 0
    assert by_stage["first_look"].max()["prefilter"] < by_stage["first_look"].min()["full"]
    assert np.isfinite(rows.loc[rows["stage"] != "prefilter", "score"]).all()
    assert merged.discarded == (rows["stage"] != "full").sum()
    assert merged.rescored == (rows["stage"] == "rescored").sum()
    assert 0.004 < merged.rescored / merged.discarded < 0.02
    # The audited stand for all that were discarded, so that the distribution of scores stays whole.
    assert merged.histogram.total == 5990 and merged.discarded_histogram.total == merged.discarded
    assert merged.discarded_histogram.n_scored.sum() == merged.rescored
    full = planned([store], tmp_path / "full", top=40)
    scan(full, client)
    best = merge.merge(full)[0].top
    assert set(best["id"]) == set(merged.top["id"]) and merged.lost == 0


def test_a_resumed_scan_audits_the_same_objects(client, tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 3000, 8)
    plan, merged = cascaded(store, client, tmp_path / "run", monkeypatch)
    before = partitions.scores_path(plan.out, 1).read_bytes()
    partitions.scores_path(plan.out, 1).unlink()
    engine.run_scan(plan, client, merge.pending(plan), [plan.out / PREFILTER_FILE])
    assert partitions.scores_path(plan.out, 1).read_bytes() == before
    pd.testing.assert_frame_equal(merge.merge(plan)[0].top, merged.top)


def test_a_cluster_without_workers_is_not_waited_for():
    with pytest.raises(GalscanError, match="no worker left; the finished partitions are kept"):
        engine._restart_stalled(SimpleNamespace(processing=dict), {}, Counter())
