"""What a scan costs beside the network: tasks, ledger, tables and merge, for ten million objects and for a billion.

    python -m tests.benchmarks.ledger [--quick] [--json]

Ten million cutouts of 8 px are scored by their brightness: everything of a scan is real but the network. A billion is
planned, and its parts are sent through a real scheduler to workers that do nothing; its ledger and tables are
measured by the part, and merged in proportion to the ten million.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster

import galscan
from galscan.models.ensemble import Scores
from galscan.scanning import engine, merge, partitions, worker
from galscan.scanning.plan import make_plan
from galscan.scanning.prepare import output_bytes
from galscan.store import layout
from tests.benchmarks._record import arguments, record, work_folder
from tests.benchmarks.scan import measured_peak

BILLION = 10**9


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("ledger", __doc__ or "").parse_args(argv)
    work = work_folder("ledger", options)
    count = 200_000 if options.quick else 10_000_000
    store = galscan.open(_many_small(work / "small.zarr", count))
    figures = _in_earnest(store, work / "run") | _a_billion(work / "billion", 400 if options.quick else None)
    figures |= {
        "billion_ledger_mb": figures["ledger_bytes_a_part"] * figures["billion_parts"] / 1e6,
        "billion_scores_gb": figures["scores_bytes_an_object"] * BILLION / 1e9,
        "billion_merge_s": figures["merge_s"] * BILLION / count,
    }
    record("ledger", options, figures)
    return figures


def _in_earnest(store: layout.Store, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    worker.load_scorer = _by_brightness
    plan = make_plan([store], [_model(8)], out=out, cascade=False)
    plan.out.mkdir(parents=True)
    before = psutil.Process().memory_info().rss
    with measured_peak() as peak, _cluster() as (_, client):
        started = time.perf_counter()
        engine.run_scan(plan, client, merge.pending(plan))
        scored = time.perf_counter()
        (merged,) = merge.merge(plan)
        ended = time.perf_counter()
    ledger = (plan.out / "ledger.jsonl").stat().st_size
    return {
        "objects": merged.scored, "parts": len(plan.partitions),
        "scored_s": scored - started, "merge_s": ended - scored,
        "peak_mb": peak[0] / 1e6, "grown_mb": (peak[0] - before) / 1e6,
        "ledger_bytes_a_part": ledger / len(plan.partitions),
        "scores_bytes_an_object": merge.written(plan) / merged.scored,
        "scores_bytes_bound": output_bytes(plan) / merged.scored,
    }  # fmt: skip


def _a_billion(out: Path, parts: int | None) -> dict[str, Any]:
    """Plan a billion objects, and send their parts through a scheduler to workers that do nothing."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    plan = make_plan([_unwritten(BILLION)], [_model(64)], out=out, cascade=False)
    planned = time.perf_counter() - started
    plan.out.mkdir(parents=True)
    engine.score_partition = _nothing
    before = psutil.Process().memory_info().rss
    with measured_peak() as peak, _cluster() as (cluster, client):
        started = time.perf_counter()
        engine.run_scan(plan, client, plan.partitions[:parts])
        ended = time.perf_counter()
        known = len(cluster.scheduler.tasks)
    return {
        "billion_parts": len(plan.partitions), "billion_plan_s": planned,
        "billion_plan_mb": len(pickle.dumps(plan)) / 1e6,
        "billion_scheduled_s": (ended - started) * len(plan.partitions) / len(plan.partitions[:parts]),
        "billion_scheduler_grown_mb": (peak[0] - before) / 1e6, "billion_tasks_left": known,
    }  # fmt: skip


def _many_small(path: Path, count: int) -> Path:
    """Write a store of `count` cutouts of 8 px: noise, each with a brightness of its own."""
    if (path / "done").is_file():
        return path
    group = layout.create(
        path, survey="small", count=count, size=8, id_dtype=np.dtype("int64"), schemas={}, provenance={}
    )
    random = np.random.default_rng(0)
    step = 64 * group.attrs["shard"]
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        n = rows.stop - rows.start
        level = random.gamma(2, 30, (n, 1, 1, 1)).clip(0, 200).astype(np.uint8)
        group["images"][rows] = level + random.integers(0, 50, (n, 8, 8, 3), dtype=np.uint8)
        group["id"][rows] = np.arange(rows.start, rows.stop)
        group["ra"][rows], group["dec"][rows] = random.uniform(0, 360, n), random.uniform(-90, 90, n)
    layout.finish(path, f"small-{count}")
    (path / "done").touch()
    return path


def _unwritten(count: int) -> layout.Store:
    """Return a store of which there is nothing but its size: enough for a plan."""
    store = object.__new__(layout.Store)
    store.path, store.count, store.size, store.shard = Path("/billion.zarr"), count, 64, layout.shard_size(count)
    store.attrs = {"survey": "billion", "content_hash": "billion"}
    return store


def _model(size: int) -> Any:
    scan = SimpleNamespace(top=1000, precision="fp32", batch=256)
    return SimpleNamespace(
        path=Path("/model"), target="dustlane", schema="simulated", size=size, answers=["bulge"], model_hash="m",
        first_look=None,
        recipe=SimpleNamespace(hash="r", scan=scan),
    )  # fmt: skip


def _by_brightness(job: partitions.Job) -> Any:
    def score(images: np.ndarray) -> Scores:
        mean = images.mean(axis=(1, 2, 3)).astype(np.float32)
        return Scores(mean[:, None], np.zeros_like(mean)[:, None], mean[:, None])

    return score


def _nothing(part: Any, job: partitions.Job) -> partitions.PartitionReport:
    return partitions.PartitionReport(part.number, part.count, 0, 0.0, 0.0, "nobody")


@contextmanager
def _cluster() -> Iterator[tuple[LocalCluster, Client]]:
    """Start a scheduler and two workers in this very process, so that its memory is all there is."""
    how = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**how) as cluster, Client(cluster, set_as_default=False) as client:
        yield cluster, client


if __name__ == "__main__":
    main()
