"""Candidates and folders of finished runs, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.scanning.partitions import FINGERPRINT, quarantine_path, scores_path
from galscan.scanning.run import Run
from galscan.scanning.run_info import RunInfo
from tests.helpers import tiny_model, tiny_store

PROVENANCE = {
    "target": "dustlane", "stores": ["sdss", "legacy"], "model": "a" * 64, "recipe": "b" * 64, "fingerprint": "c" * 64,
    "version": "0.1.0", "precision": "bf16", "seed": 5, "scanned": 16_753, "quarantined": 12, "candidates": 20,
    "prevalence": 0.004, "prevalence_lo": 0.001, "prevalence_hi": float("nan"), "confidence": 0.95,
    "notes": ["The calibration rests on 13 positives and 207 negatives."],
}  # fmt: skip


def candidates(n: int = 20, *, text: bool = False) -> pd.DataFrame:
    """Return a table as `ranking.rank` makes it; the last two rows have no coordinates."""
    rng = np.random.default_rng(1)
    line = np.linspace(0.95, 0.4, n)
    ra, dec = rng.uniform(0, 360, n), rng.uniform(-60, 60, n)
    ra[-2:], dec[-2:] = np.nan, np.nan
    ids = np.array([f"=HYPERLINK({k})" if k == 0 else f"NGC {k} é" for k in range(n)], dtype=object)
    return pd.DataFrame({
        "designation": np.array(["J004000.00-010000.0"] * max(n - 2, 0) + [""] * min(n, 2), dtype=object),
        "objid": ids if text else np.arange(n) + 587_722_982_273_122_463,
        "store": np.array(["sdss"] * n, dtype=object), "index": np.arange(n), "ra": ra, "dec": dec,
        "rank": np.arange(1, n + 1), "score": np.linspace(5, 1, n).astype(np.float32),
        "score_std": np.full(n, 0.1, np.float32), "p_target": line, "purity": line, "purity_lo": line - 0.3,
        "purity_hi": np.minimum(line + 0.1, 1), "completeness": np.full(n, np.nan), "in_train": np.arange(n) % 2 == 0,
        "flags": np.zeros(n, np.uint8), "visible_dust": np.full(n, 0.5, np.float32),
    })  # fmt: skip


def info(**changes: Any) -> dict[str, Any]:
    """Return the content of run.json of such a run."""
    return {
        "format": 1, "status": "done", "target": "dustlane", "fingerprint": "c" * 64, "model": "/nowhere",
        "identity": {"model": "a" * 64, "recipe": "b" * 64, "version": "0.1.0"},
        "stores": [{"name": "sdss", "path": "/nowhere/sdss.zarr", "content_hash": "d" * 64, "count": 16_765}],
        "objects": 16_765, "parts": 5, "size": 64, "answers": ["visible_dust"], "top": 20, "precision": "fp32",
        "device": "cpu", "versions": {"galscan": "0.1.0"}, "scanned": 16_753, "quarantined": 12,
        "quarantine_reasons": {"no image": 8, "blank image": 4}, "candidates": 20, "wall_s": 12.5,
        "images_per_s": 1340.2,
        "purity": {
            "confidence": 0.95, "prevalence": {"value": 0.004, "low": 0.001, "high": 0.01},
            "at": {"10": {"value": 0.9, "low": 0.6, "high": 1.0}},
            "notes": ["The calibration rests on 13 positives and 207 negatives."],
        },
    } | changes  # fmt: skip


def run_of(path: Path = Path("/nowhere"), **changes: Any) -> Run:
    """Return such a run; nothing is read or written."""
    return Run(path, RunInfo(**info(**changes)))


def write_run(path: Path, frame: pd.DataFrame | None = None, **changes: Any) -> Path:
    """Write a run folder: run.json and candidates.parquet."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(info(**changes)))
    (candidates() if frame is None else frame).to_parquet(path / "candidates.parquet", index=False)
    return path


def scanned_run(place: Path) -> Path:
    """Write a run of 600 objects in two partitions: 40 candidates, 60 rejected by the prefilter, 9 quarantined.

    Rows 0 to 39 of the store are the candidates in order; 540 to 599 were discarded, but for the last 9.
    """
    store = tiny_store(place / "sky.zarr", 600, 32, survey="sky", unusable=9)
    frame = pd.DataFrame({name: store.column(name) for name in ("id", "ra", "dec", "flags")})
    frame = frame.assign(index=np.arange(600), store="sky", score=np.linspace(4, -4, 600).astype(np.float32))
    frame["first_look"] = np.where(frame["index"] >= 540, -5.0, 1.0).astype(np.float32)
    frame["stage"] = np.where(frame["index"] >= 540, "prefilter", "full")
    frame.loc[frame["index"] >= 540, "score"] = np.nan
    unusable = frame["flags"] > 0
    model = tiny_model(place / "model")
    best = frame.head(40)
    listed = candidates(40).assign(
        objid=best["id"], **{name: best[name] for name in ("index", "ra", "dec", "store", "score")}
    )
    listed["in_train"] = listed["objid"].astype(str).isin(model.objects("train").id)
    entry = {"name": "sky", "path": str(store.path), "content_hash": store.content_hash, "count": 600}
    run = write_run(
        place / "run", listed, stores=[entry], objects=600, parts=2, size=32, scanned=591, quarantined=9, candidates=40,
        model=str(model.path), identity=info()["identity"] | {"model": model.model_hash}, seed=3,
    )  # fmt: skip
    metadata = {FINGERPRINT: info()["fingerprint"].encode()}
    for part in range(2):
        rows = frame.iloc[part * 300 : part * 300 + 300]
        scored, quarantined = rows[~unusable[rows.index]], rows[unusable[rows.index]].assign(reason="no image")
        columns = ["store", "index", "id", "ra", "dec", "flags"]
        for path, table, names in (
            (scores_path(run, part), scored, [*columns, "score", "first_look", "stage"]),
            (quarantine_path(run, part), quarantined, [*columns, "reason"]),
        ):
            path.parent.mkdir(exist_ok=True)
            written = pa.Table.from_pandas(table[names], preserve_index=False).replace_schema_metadata(metadata)
            pq.write_table(written, path, write_page_checksum=True)
    return run
