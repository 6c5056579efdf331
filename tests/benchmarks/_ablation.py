"""What the arms of an ablation scored, and ratios of their metrics with paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.stats import metrics
from galscan.stats.metrics import Scored, WorkingPoint


def read_scores(out: Path, seeds: int) -> list[Scored]:
    """Read what every arm scored in each division."""
    found = []
    for number in range(seeds):
        tables = {p.stem: pd.read_parquet(p) for p in sorted((out / f"repeat-{number:02d}").glob("*.parquet"))}
        first = next(iter(tables.values()))
        scores = {arm: t["score"].to_numpy() for arm, t in tables.items()}
        found.append(Scored(first["id"].to_numpy(object), first["target"].to_numpy(int), scores))
    return found


def select(scored: Scored, ids: pd.Index, *, negatives: bool = False) -> Scored:
    """Leave out the objects that are not among `ids`, except for all `negatives`."""
    keep = np.isin(scored.ids.astype(str), ids.to_numpy(str)) | (negatives & (scored.targets == 0))
    return Scored(scored.ids[keep], scored.targets[keep], {arm: s[keep] for arm, s in scored.scores.items()})


def ratio(
    name: str, mark: str, ours: Sequence[Scored], arm: str, theirs: Sequence[Scored], other: str, point: WorkingPoint,
    metric: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return both means and their ratio with its paired 95 % interval; both sides were tested on the same objects."""
    joined = [
        Scored(a.ids, a.targets, {"ours": a.scores[arm], "theirs": _aligned(a, b, other)})
        for a, b in zip(ours, theirs, strict=True)
    ]
    values, draws = metrics.measure(joined, point), metrics.bootstrap(joined, point, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = draws["ours"][:, metric] / draws["theirs"][:, metric]
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    mean = {which: float(values[which][:, metric].mean()) for which in ("ours", "theirs")}
    return {
        f"{name}_real{mark}": mean["theirs"], f"{name}_synthetic{mark}": mean["ours"],
        f"{name}_ratio{mark}": mean["ours"] / mean["theirs"] if mean["theirs"] else None,
        f"{name}_ratio_lo{mark}": float(low), f"{name}_ratio_hi{mark}": float(high) if np.isfinite(high) else None,
    }  # fmt: skip


def _aligned(a: Scored, b: Scored, arm: str) -> np.ndarray:
    return pd.Series(b.scores[arm], index=b.ids).loc[a.ids].to_numpy()
