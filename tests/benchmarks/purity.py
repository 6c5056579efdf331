"""Whether the intervals of purity hold, and how narrow they are: by scores alone, and with 200 objects graded.

    python -m tests.benchmarks.purity [--quick] [--json] [--surveys N] [--cells N] [--carried N] [--votes N]

Simulated surveys of 200,000 objects with prevalences from 0.05 % to 5 %, 20 to 500 calibration positives, and a
calibration set that is up to 30 times as rich in targets as the survey. Scores follow one of three laws: binormal,
logistic (the ratio of the classes levels off), and binormal with look-alikes, a shoulder of 2 % of the others half-way
to the targets. Widths stand beside three others: "ideal", the binomial interval of whoever knows the distribution
of scores exactly; "law", that of an oracle who knows it but for place, scale, distance and prevalence; and "shape",
that of an oracle who knows the shape of the log ratio, but neither its offset and slope nor how the others are
distributed (both from the Fisher information). Of each survey 200 objects are graded without error, in batches of 50:
those of the next batch are allocated by the grades so far, as `galscan vet` does. A million candidates are exported
for their memory, and their purity is estimated with grades by `galscan.purity`, in a process of its own.

Then the cells: surveys of the same three laws that hold 0, 1, 2 or 20 ambiguous objects for each target, which score
between negatives and targets and calibrate in their natural proportion among what is no target; with and without a
prefilter, which hides the scores of 70 % of the survey but for one in a hundred; with and without objects that the
model was trained on, which score 1.5 too far from the others. Of each, in how many the truth lies inside the interval.
Last, with networks and pictures: models for mergers and rings by the votes of simulated volunteers, and a model that
is carried to other skies (`tests.benchmarks._purity_cells`).
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit, logit
from scipy.stats import binom, logistic, norm

import galscan
from galscan.candidates import columns
from galscan.scanning.run import CANDIDATES
from galscan.stats import allocation, graded, purity
from galscan.stats import calibration as calibrate
from galscan.stats.histogram import ScoreHistogram
from galscan.vetting import sampling
from galscan.vetting.batches import extend
from galscan.vetting.gradebook import FILE, GradeBook
from tests.benchmarks import _purity_cells as cells
from tests.benchmarks._processes import run_measured
from tests.benchmarks._purity_cells import LAWS, LOOK_ALIKES, OBJECTS, TOP
from tests.benchmarks._record import arguments, record
from tests.benchmarks.export import made_up_candidates
from tests.benchmarks.scan import measured_peak
from tests.helpers import tiny_model, tiny_store

RANKS = (100, 300, 1000)
GRID = np.linspace(-12.0, 18.0, 3001)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("purity", __doc__ or "")
    parser.add_argument("--surveys", type=int, default=500)
    parser.add_argument("--cells", type=int, default=200, help="surveys of each cell")
    parser.add_argument("--carried", type=int, default=100, help="skies that a model is carried to")
    parser.add_argument("--votes", type=int, default=30, help="surveys of simulated volunteers' galaxies")
    options = parser.parse_args(argv)
    count, each = (8, 1) if options.quick else (options.surveys, options.cells)
    skies, voted = (6, 3) if options.quick else (options.carried, options.votes)
    seeds = range(options.seed * 10**6, options.seed * 10**6 + count)
    options.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        results = pd.DataFrame(pool.map(_one, seeds, chunksize=4))
        in_cells = pd.DataFrame(pool.map(cells.cell, cells.cells(each, 10**5 + seeds[0]), chunksize=4))
    figures: dict[str, Any] = {"surveys": count, "surveys_of_a_cell": each} | cells.of_cells(in_cells)
    figures |= cells.votes(options.work, voted, options.seed, options.quick) if voted else {}
    figures |= cells.carried(options.work, skies, options.seed, options.quick) if skies else {}
    for rank in RANKS:
        for kind in ("", "graded_"):
            figures[f"{kind}coverage_{rank}"] = float(results[f"{kind}covers_{rank}"].mean())
            figures[f"{kind}width_{rank}"] = statistics.median(results[f"{kind}width_{rank}"])
        wide = results[results[f"ideal_{rank}"] > 0.01]  # where all are targets, or none, the ideal has no width
        for kind in ("width", "graded_width", "law", "shape"):
            figures[f"{kind}_to_ideal_{rank}"] = statistics.median(wide[f"{kind}_{rank}"] / wide[f"ideal_{rank}"])
        narrowed = results[f"width_{rank}"] / results[f"graded_width_{rank}"].clip(lower=1e-6)
        figures[f"graded_width_ratio_{rank}"] = statistics.median(narrowed)
    groups = {
        "positives": pd.cut(results["positives"], [0, 50, 150, 500]),
        "prevalence": pd.cut(results["prevalence"], [0, 0.002, 0.01, 0.05]),
        "law": results["law"],
    }
    held = [f"{kind}covers_{what}" for kind in ("", "graded_") for what in (*RANKS, "completeness", "prevalence")]
    figures |= {
        "graded_coverage": min(figures[f"graded_coverage_{rank}"] for rank in RANKS),
        "width_ratio": figures["width_to_ideal_1000"],
        "graded_width_ratio": figures["graded_width_ratio_1000"],
        "graded_width_gain": statistics.median(results["graded_width_1000"] / results["width_1000"].clip(lower=1e-6)),
        "coverage": {name: float(results[name].mean()) for name in held},
        "coverage_by": {
            name: {
                str(group): {"surveys": len(some)} | {k: round(float(some[k].mean()), 3) for k in held}
                for group, some in results.groupby(by.astype(str))
            }
            for name, by in groups.items()
        },
        "departures_seen": float(results["departure"].mean()),
        "unknown": float(results["unknown"].mean()),
        "seconds_each": statistics.median(results["seconds"]),
        "export_million_mb": _export(options.work, 50_000 if options.quick else 1_000_000),
        "purity_million_mb": _purity(options.work, 50_000 if options.quick else 1_000_000),
    }
    record("purity", options, figures)
    return figures


@dataclass(frozen=True)
class _Survey:
    """A simulated survey as a scan finds it, with the truth."""

    info: dict[str, Any]
    before: purity.Purity
    top: np.ndarray
    ranked: np.ndarray
    """Which of the candidates are targets, best first."""
    beyond: np.ndarray
    """Which of the other objects are."""
    prevalence: float
    separation: float
    sizes: np.ndarray
    """Calibrated negatives, calibrated positives, objects surveyed."""


def _simulated(seed: int) -> _Survey:
    """Simulate one survey, and estimate its purity by the scores alone."""
    rng = np.random.default_rng(seed)
    prevalence = float(np.exp(rng.uniform(np.log(5e-4), np.log(0.05))))
    shift = float(np.exp(rng.uniform(0, np.log(30))))
    positives = int(np.exp(rng.uniform(np.log(20), np.log(500))))
    rate = min(shift * prevalence, 0.5)
    law = LAWS[rng.integers(3)]
    separation = rng.uniform(1.5, 4.0)

    def scores(targets: np.ndarray) -> np.ndarray:
        logistic_law, n = law == "logistic", len(targets)
        noise = rng.logistic(size=n) * np.sqrt(3) / np.pi if logistic_law else rng.normal(size=n)
        alike = (rng.random(len(targets)) < LOOK_ALIKES) * 0.5 if law == "look-alikes" else 0.0
        return noise + separation * np.where(targets == 1, 1.0, alike)

    targets = np.repeat([1, 0], [positives, round(positives * (1 - rate) / rate)])
    calibration = calibrate.fit(scores(targets), targets)
    truth = (rng.random(OBJECTS) < prevalence).astype(int)
    scored = scores(truth)
    order = np.argsort(-scored)
    histogram = ScoreHistogram.of(scored)
    began = time.perf_counter()
    before = purity.estimate(calibration, histogram, scored[order[:TOP]], seed=seed)
    info = {
        "positives": positives, "prevalence": prevalence, "shift": shift, "law": law,
        "seconds": time.perf_counter() - began, "departure": any("two samples" in note for note in before.notes),
        "unknown": bool(before.unknown),
    }  # fmt: skip
    return _Survey(
        info, before, scored[order[:TOP]], truth[order[:TOP]].astype(bool), truth[order[TOP:]].astype(bool),
        prevalence, separation, np.array([len(targets) - positives, positives, OBJECTS]),
    )  # fmt: skip


def _graded(survey: _Survey, size: int, seed: int) -> purity.Purity:
    """Grade so many without error, planned again after each batch as `galscan vet` does; return what is known then."""
    rng = np.random.default_rng(seed)
    strata = sampling.strata(TOP, OBJECTS - TOP, 0)
    order = {s.name: rng.permutation(s.population) for s in strata}
    prior = graded.prior_fractions(survey.before, survey.top, strata)
    grades: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    while (done := sum(len(ranks) for ranks, _ in grades.values())) < size:
        counts = {name: (int(found.sum()), len(found)) for name, (_, found) in grades.items()}
        more = allocation.allocate(strata, prior, counts, min(sampling.BATCH, size - done), TOP, seed=seed)
        for s in strata:
            n = more[s.name] + counts.get(s.name, (0, 0))[1]
            ranks = s.first + order[s.name][:n] if s.last else np.zeros(n, int)
            grades[s.name] = ranks, survey.ranked[ranks - 1] if s.last else survey.beyond[order[s.name][:n]]
    return graded.combine(survey.before, survey.top, strata, grades, seed=seed)


def _one(seed: int) -> dict[str, Any]:
    """Simulate one survey; say what the intervals say of it, and what is true."""
    survey = _simulated(seed)
    before, after = survey.before, _graded(survey, sampling.SIZE, seed)
    results = survey.info | _oracles(
        _densities(survey.info["law"]), survey.separation, survey.prevalence, survey.sizes, survey.top
    )
    hits = survey.ranked.sum() + survey.beyond.sum()
    found = float(survey.ranked.sum() / max(hits, 1))
    for kind, p in (("", before), ("graded_", after)):
        for rank in RANKS:
            low, high = p.purity_lo[rank - 1], p.purity_hi[rank - 1]
            results[f"{kind}covers_{rank}"] = low - 1e-9 <= float(survey.ranked[:rank].mean()) <= high + 1e-9
            results[f"{kind}width_{rank}"] = high - low
        results[f"{kind}covers_completeness"] = p.completeness_lo[-1] - 1e-9 <= found <= p.completeness_hi[-1] + 1e-9
        results[f"{kind}covers_prevalence"] = p.prevalence_lo <= hits / OBJECTS <= p.prevalence_hi
    return results


Densities = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def _densities(law: str) -> Densities:
    """Return the densities of others and targets at a distance from each other."""
    base = logistic(scale=np.sqrt(3) / np.pi).pdf if law == "logistic" else norm.pdf
    alike = LOOK_ALIKES if law == "look-alikes" else 0.0

    def both(x: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
        return (1 - alike) * base(x) + alike * base(x - 0.5 * distance), base(x - distance)

    return both


def _oracles(
    densities: Densities, separation: float, prevalence: float, sizes: np.ndarray, top: np.ndarray
) -> dict[str, float]:
    """Return the widths at each rank that the module's text calls ideal, law and shape."""
    step = GRID[1] - GRID[0]

    def seen(p: np.ndarray) -> np.ndarray:
        """Return the densities of the three samples by place, log scale, distance and log odds of a target."""
        others, targets = densities((GRID - p[0]) / np.exp(p[1]), p[2])
        pi = expit(p[3])
        return np.array([others, targets, (1 - pi) * others + pi * targets]) / np.exp(p[1])

    def chances(p: np.ndarray) -> np.ndarray:
        others, targets = densities((top - p[0]) / np.exp(p[1]), p[2])
        return expit(np.log(targets / others) + p[3])

    law = np.array([0.0, 0.0, separation, logit(prevalence)])
    slopes, now = _slopes(seen, law), seen(law)
    of_law = np.einsum("icx,jcx,cx,c->ij", slopes, slopes, 1 / np.maximum(now, 1e-300), sizes) * step

    shape = np.log(now[1] / now[0])
    of_top = np.log(np.divide(*densities(top, separation)[::-1]))

    def weights(p: np.ndarray) -> np.ndarray:
        """Return the log weights of the three samples by their intercepts, the survey's odds, and the slope."""
        return np.array([np.full_like(shape, np.log(sizes[0])), p[0] + p[3] * shape,
                         p[1] + np.logaddexp(0, p[2] + p[3] * shape)])  # fmt: skip

    ratio = np.array([np.log(sizes[1]), np.log(OBJECTS * (1 - prevalence)), logit(prevalence), 1.0])
    log_weights = weights(ratio)
    every = np.logaddexp.reduce(log_weights)
    fraction = np.exp(log_weights - every)
    slopes = _slopes(weights, ratio)
    slopes = slopes - (slopes * fraction).sum(axis=1, keepdims=True)
    of_shape = np.einsum("icx,jcx,cx,x->ij", slopes, slopes, fraction, now[0] * np.exp(every)) * step

    results = {}
    chance = chances(law)
    for rank in RANKS:
        low, high = binom.ppf([0.025, 0.975], rank, chance[:rank].mean()) / rank
        results[f"ideal_{rank}"] = float(high - low)
        coins = (chance[:rank] * (1 - chance[:rank])).sum() / rank**2
        for name, purity_of, at, information in (
            ("law", lambda p, rank=rank: chances(p)[:rank].mean(), law, of_law),
            ("shape", lambda p, rank=rank: expit(p[2] + p[3] * of_top[:rank]).mean(), ratio, of_shape),
        ):
            slope = _slopes(purity_of, at)
            variance = slope @ np.linalg.solve(information, slope) + coins
            results[f"{name}_{rank}"] = float(2 * norm.ppf(0.975) * np.sqrt(variance))
    return results


def _slopes(function: Callable[[np.ndarray], Any], at: np.ndarray) -> np.ndarray:
    return np.array([(function(at + e) - function(at - e)) / 2e-4 for e in 1e-4 * np.eye(len(at))])


def _export(work: Path, rows: int) -> float:
    """Write so many candidates as FITS; return the most memory that this process came to hold, in MB."""
    frame = made_up_candidates(rows)
    work.mkdir(parents=True, exist_ok=True)
    with measured_peak() as peak:
        columns.write_fits(frame, work / "million.fits", {"target": "dustlane"})
    (work / "million.fits").unlink()
    return peak[0] / 1e6


def _purity(work: Path, rows: int) -> float:
    """Estimate the purity of a scan with so many candidates, 200 of them graded; return that process's peak, in MB."""
    run = _finished(work / "million", rows)
    code = f"import galscan; galscan.purity({str(run)!r})"
    _, peak, _ = run_measured(code)
    shutil.rmtree(work / "million")
    return peak


def _finished(work: Path, rows: int) -> Path:
    """Make the folder of a finished and graded scan: a small real one, its candidates repeated to so many."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    store = tiny_store(work / "sky.zarr", 700, 32, survey="sky")
    model = tiny_model(work / "model").path
    run = galscan.scan(store=store.path, model=model, out=work / "run", top=120, workers=1)
    few = pq.read_table(run.path / CANDIDATES)
    scores = np.sort(np.random.default_rng(0).normal(size=4 * rows))[::-1]
    histogram = ScoreHistogram.of(scores)
    with pq.ParquetWriter(run.path / CANDIDATES, few.schema) as writer:
        for first in range(0, rows, 50_000):
            rank = np.arange(first, min(first + 50_000, rows))
            piece = few.take(rank % len(few))
            names = {"rank": rank + 1, "score": scores[rank], "index": rank, "objid": rank}
            for name, values in names.items():
                at = piece.schema.get_field_index(name)
                column = pa.array(values).cast(piece.schema.field(at).type)
                piece = piece.set_column(at, piece.schema.field(at), column)
            writer.write_table(piece.select(few.column_names).cast(few.schema))
    info = run.info.updated(histogram=histogram.to_list(), scanned=4 * rows, top=rows, candidates=rows)
    info.write(run.path)
    galscan.vet(run.path, serve=False)
    with GradeBook(run.path / FILE, str(run.info.fingerprint)) as book:
        while book.ungraded():
            for item in set(book.items()["item"]) - set(book.current()["item"]):
                book.record(f"grade-{item:06d}", int(item), "ann", "A" if item % 3 else "not")
            extend(book)
    return run.path


if __name__ == "__main__":
    main()
