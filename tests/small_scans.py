"""Scans so small that a Dask cluster inside this process does them, with a scorer that needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from galscan.classify.scoring import Scores
from galscan.scanning import engine, merge
from galscan.scanning.plan import make_plan
from tests.test_scanning_plan import bundle


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
    """Stand in for a first look: the full score but for a little noise."""
    full = coarse_scorer(images).score
    return full + np.random.default_rng(len(images)).normal(0, 0.1, full.shape).astype(np.float32)
