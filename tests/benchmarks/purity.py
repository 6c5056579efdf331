"""Whether the intervals of purity hold, and how narrow they are: by scores alone, and with 200 objects graded.

    python -m tests.benchmarks.purity [--quick] [--json] [--surveys N]

Simulated surveys of 200,000 objects with prevalences from 0.05 % to 5 %, 20 to 500 calibration positives, and a
calibration set that is up to 30 times as rich in targets as the survey. Scores are binormal, or have the heavier tails
of a logistic distribution, which Platt's sigmoid describes less well. "Ideal" is the binomial interval of whoever
knows the true distribution of scores. A million candidates are exported for their memory.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, logistic, norm

from galscan.candidates import graded, purity, table
from galscan.classify import calibrate
from galscan.vetting import design
from tests.benchmarks._record import arguments, record
from tests.benchmarks.scan import measured_peak

OBJECTS, TOP, RANKS = 200_000, 1000, (100, 1000)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("purity", __doc__ or "")
    parser.add_argument("--surveys", type=int, default=500)
    options = parser.parse_args(argv)
    count = 8 if options.quick else options.surveys
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        told = pd.DataFrame(pool.map(_one, range(options.seed * 10**6, options.seed * 10**6 + count), chunksize=4))
    figures: dict[str, Any] = {"surveys": count}
    for rank in RANKS:
        figures[f"coverage_{rank}"] = float(told[f"covers_{rank}"].mean())
        figures[f"graded_coverage_{rank}"] = float(told[f"graded_covers_{rank}"].mean())
    wide = told[told["ideal_1000"] > 0.01]
    figures |= {
        "graded_coverage": min(figures[f"graded_coverage_{rank}"] for rank in RANKS),
        "width_ratio": statistics.median(wide["width_1000"] / wide["ideal_1000"]),
        "graded_width_ratio": statistics.median(told["width_1000"] / told["graded_width_1000"].clip(lower=1e-6)),
        "width": statistics.median(told["width_1000"]), "graded_width": statistics.median(told["graded_width_1000"]),
        "ideal_width": statistics.median(told["ideal_1000"]),
        "prevalence_coverage": float(told["covers_prevalence"].mean()),
        "graded_prevalence_coverage": float(told["graded_covers_prevalence"].mean()),
        "by_calibration_positives": {
            str(group): {k: float(some[k].mean()) for k in ("covers_1000", "graded_covers_1000", "width_1000")}
            for group, some in told.groupby(pd.cut(told["positives"], [0, 50, 150, 500]).astype(str))
        },
        "export_million_mb": _export(options.work, 50_000 if options.quick else 1_000_000),
    }  # fmt: skip
    record("purity", options, figures)
    return figures


def _one(seed: int) -> dict[str, Any]:
    """Simulate one survey; say what the intervals say of it, and what is true."""
    rng = np.random.default_rng(seed)
    prevalence = float(np.exp(rng.uniform(np.log(5e-4), np.log(0.05))))
    shift = float(np.exp(rng.uniform(0, np.log(30))))
    positives = int(np.exp(rng.uniform(np.log(20), np.log(500))))
    rate = min(shift * prevalence, 0.5)
    law = norm if rng.random() < 0.5 else logistic(scale=np.sqrt(3) / np.pi)
    separation = rng.uniform(1.5, 4.0)

    def scores(targets: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = law.rvs(size=len(targets), random_state=rng) + separation * targets
        return drawn

    targets = np.repeat([1, 0], [positives, round(positives * (1 - rate) / rate)])
    calibration = calibrate.fit(scores(targets), targets)
    truth = (rng.random(OBJECTS) < prevalence).astype(int)
    scored = scores(truth)
    order = np.argsort(-scored)
    top, ranked = scored[order[:TOP]], truth[order[:TOP]].astype(bool)
    histogram = purity.ScoreHistogram.empty()
    histogram.add(scored)
    before = purity.estimate(calibration, histogram, top, bootstrap=200, seed=seed)

    strata = design.strata(TOP, OBJECTS - TOP, 0)
    counts, grades = design.shares(strata, design.SIZE), {}
    beyond = truth[order[TOP:]]
    for s in strata:
        chosen = rng.permutation(s.population)[: counts[s.name]]
        ranks = s.first + chosen if s.last else np.zeros(len(chosen), int)
        grades[s.name] = ranks, ranked[ranks - 1] if s.last else beyond[chosen].astype(bool)
    after = graded.combine(before, top, strata, grades, seed=seed)

    density = [law.pdf(top - separation), law.pdf(top)]
    chance = prevalence * density[0] / (prevalence * density[0] + (1 - prevalence) * density[1])
    told: dict[str, Any] = {"positives": positives, "prevalence": prevalence, "shift": shift}
    for rank in RANKS:
        true = float(ranked[:rank].mean())
        low, high = binom.ppf([0.025, 0.975], rank, chance[:rank].mean()) / rank
        told[f"ideal_{rank}"] = high - low
        for name, p in (("", before), ("graded_", after)):
            told[f"{name}covers_{rank}"] = p.purity_lo[rank - 1] - 1e-9 <= true <= p.purity_hi[rank - 1] + 1e-9
            told[f"{name}width_{rank}"] = p.purity_hi[rank - 1] - p.purity_lo[rank - 1]
    for name, p in (("", before), ("graded_", after)):
        told[f"{name}covers_prevalence"] = p.prevalence_lo <= truth.mean() <= p.prevalence_hi
    return told


def _export(work: Path, rows: int) -> float:
    """Write so many candidates as FITS; return the most memory that this process came to hold, in MB."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "designation": "J000000.00+000000.0", "objid": np.arange(rows), "store": "sdss", "index": np.arange(rows),
        "ra": rng.uniform(0, 360, rows), "dec": rng.uniform(-90, 90, rows), "rank": np.arange(1, rows + 1),
        "score": rng.normal(size=rows).astype(np.float32), "score_std": rng.random(rows).astype(np.float32),
        **{name: rng.random(rows) for name in ("p_target", "purity", "purity_lo", "purity_hi", "completeness")},
        "in_train": False, "flags": np.zeros(rows, np.uint8),
    })  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    with measured_peak() as peak:
        table.write_fits(frame, work / "million.fits", {"target": "dustlane"})
    (work / "million.fits").unlink()
    return peak[0] / 1e6


if __name__ == "__main__":
    main()
