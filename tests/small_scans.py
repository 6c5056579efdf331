"""Scans so small that a Dask cluster inside this process does them, with a scorer that needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from galscan.models.ensemble import Scores
from galscan.scanning import engine, merge
from galscan.scanning.partitions import Job, quarantine_path, scores_path
from galscan.scanning.plan import ModelRef, Partition, StoreRef, make_plan
from tests.scanning.test_plan import bundle


def coarse_scorer(images):
    """Score by brightness in few steps, so that there are many ties."""
    score = np.round(images.mean(axis=(1, 2, 3)) / 8).astype(np.float32)[:, None]
    return Scores(score, np.zeros_like(score), score)


def planned(stores, out, **options):
    model = options.pop("model", "/models/lane")
    plan = make_plan(stores, [bundle(8, path=Path(model))], out=out, **{"top": 100} | options)
    plan.out.mkdir(parents=True)
    return plan


def scan(plan, client):
    return engine.run_scan(plan, client, merge.pending(plan))


def noisy(images):
    """Score as a prefilter does: the full score with a little noise."""
    full = coarse_scorer(images).score
    return full + np.random.default_rng(len(images)).normal(0, 0.1, full.shape).astype(np.float32)


def mean_scorer(images):
    """Score by brightness: a score that shows which image it belongs to."""
    score = images.mean(axis=(1, 2, 3)).astype(np.float32)[:, None]
    return Scores(score, np.zeros_like(score), np.concatenate([score, 2 * score], 1))


def make_job(store, out, **changes):
    ref = StoreRef(store.name, str(store.path), store.content_hash, store.count)
    values = {
        "models": (ModelRef("dustlane", "none", "m", "r"),), "stores": (ref,), "out": str(out), "fingerprint": "f" * 64,
        "answers": ("one", "two"), "device": "cpu", "precision": "fp32", "batch": 100,
    }  # fmt: skip
    return Job(**values | changes)


def whole(store) -> Partition:
    return Partition(0, 0, 0, store.count)


def tables(out, part=0):
    return pd.read_parquet(scores_path(out, part)), pd.read_parquet(quarantine_path(out, part))
