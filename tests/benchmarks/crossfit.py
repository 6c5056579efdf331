"""Cross-fitting beside a fixed split: what it gains, and whether its intervals are as honest.

    python -m tests.benchmarks.crossfit [--quick] [--json] [--only real|simulated]

1. The 882 NGC galaxies with EFIGI labels (``GALSCAN_TEST_DATA``, default ``../shared/data``): in each repeat a
   random third loses its labels, and `galscan.train_rare` is given the rest, once cross-fitted and once with a fixed
   split, with the same steps and real galaxies alone. Both are scored on the third: the ratio of average precision
   (95 % interval over repeats and galaxies, paired), the ratio of the widths of the interval of purity at rank 25, and
   whether the true purity lies inside.
2. Simulated scores, no images: surveys of 200,000 objects in which each of three networks scores signal and noise of
   its own, with its own offset and slope. Labelled objects are scored by one network and corrected
   (`galscan.stats.crossfit`), or a quarter of them is scored by all, as in a fixed split; the survey is scored by
   all. Of each way, how often the true purity lies inside its interval, and how wide that is; beside cross-fitting
   without the correction ("uncorrected"), and all labelled objects scored by all networks, none of which was trained on
   them ("oracle"), which no training gives.
"""

from __future__ import annotations

import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from sklearn.metrics import average_precision_score

import galscan
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.models.ensemble import load_scorer
from galscan.stats import calibration as calibrate
from galscan.stats import crossfit, metrics, purity
from galscan.stats.histogram import ScoreHistogram
from galscan.stats.metrics import Scored, WorkingPoint
from galscan.store.layout import Store, open_store
from galscan.surveys.resampling import resample
from galscan.training.dataset import targets_of
from galscan.training.split import RESERVED
from tests.benchmarks._record import DATA, arguments, record, work_folder

RANK, WAYS = 25, ("crossfit", "fixed")
MEMBERS, OBJECTS, TOP, RANKS = 3, 200_000, 1000, (100, 1000)
SIMULATED = ("crossfit", "uncorrected", "fixed", "oracle")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("crossfit", __doc__ or "")
    parser.add_argument("--repeats", type=int, default=5, help="divisions of the real galaxies")
    parser.add_argument("--steps", type=int, default=400, help="of every network")
    parser.add_argument("--size", type=int, default=64, help="pixels on a side of the real galaxies")
    parser.add_argument("--surveys", type=int, default=200, help="simulated ones")
    parser.add_argument("--only", choices=("real", "simulated"), help="one half; the figures of the other are missing")
    options = parser.parse_args(argv)
    if options.quick:
        options.repeats, options.steps, options.size, options.surveys = 2, 4, 32, 8
    work = work_folder("crossfit", options)
    figures: dict[str, Any] = {}
    if options.only != "simulated":
        figures |= _real(work, options.repeats, options.steps, options.size, options.seed)
    if options.only != "real":
        figures |= _simulated(options.surveys, options.seed)
    record("crossfit", options, figures)
    return figures


def _real(work: Path, repeats: int, steps: int, size: int, seed: int) -> dict[str, Any]:
    recipe, schema = load_recipe("dustlane"), load_schema("efigi")
    text = recipe.text.replace(f"size = {recipe.size}", f"size = {size}", 1)
    paths = {way: work / f"{way}.toml" for way in WAYS}
    for way, path in paths.items():
        settings = f"[split]\nmethod = '{way}'\n[classifier]\nsteps = {steps}\n[prefilter]\nsteps = 0\n"
        path.write_text(f"{text}\n{settings}", encoding="utf-8")
    ngc = galscan.ingest("local", path=DATA / "ngc-sdss", labels=["efigi"], size=size, out=work / "ngc.zarr")
    targets = targets_of(ngc.labels("efigi").reindex(columns=schema.names), schema, recipe.schemas["efigi"])
    labelled = np.flatnonzero(ngc.labels("efigi").notna().any(axis=1) & (ngc.column("flags") == 0))
    truth = (targets == 1).astype(int)
    scored, each = [], []
    for number in range(repeats):
        rng = np.random.default_rng([seed, number])
        aside = np.concatenate([
            rng.permutation(rows)[: round(len(rows) / 3)]
            for rows in (labelled[truth[labelled] == value] for value in (1, 0))
        ])  # fmt: skip
        store = _without_labels(ngc, aside, work / f"ngc-{number}.zarr")
        images = resample(ngc.images()[aside], size)
        scores, results = {}, {}
        for way, path in paths.items():
            model = galscan.train_rare(
                str(path), store=store, out=work / f"{way}-{number}", synthetic=False, seed=seed + number, device="cpu"
            )
            assert isinstance(model, galscan.Model)
            scores[way] = load_scorer([model], device="cpu", precision="fp32")(images).score[:, 0]
            interval = _interval(model, scores[way], truth[aside], seed)
            results |= {f"{way}_{key}": value for key, value in interval.items()}
            results |= {f"{way}_ap": float(average_precision_score(truth[aside], scores[way]))}
            results |= {f"{way}_ap_told": model.metrics["real_only"]["ap_ensemble"]}
        scored.append(Scored(ngc.column("id")[aside].astype(str).astype(object), truth[aside], scores))
        each.append(results)
    table = pd.DataFrame(each)
    point = WorkingPoint(float(np.mean([one.targets.mean() for one in scored])), 0.5, 0.5)
    draws = metrics.bootstrap(scored, point, seed)
    ratios = draws["crossfit"][:, 0] / draws["fixed"][:, 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    means = {way: float(v[:, 0].mean()) for way, v in metrics.measure(scored, point).items()}
    widths = table["crossfit_width"] / table["fixed_width"]
    return {
        "repeats": repeats, "steps": steps, "size": size, "labelled": len(labelled),
        "targets": int(truth[labelled].sum()), "set_aside_targets": int(scored[0].targets.sum()),
        "crossfit_ap": means["crossfit"], "fixed_ap": means["fixed"],
        "crossfit_ap_ratio": means["crossfit"] / means["fixed"],
        "crossfit_ap_ratio_lo": float(low), "crossfit_ap_ratio_hi": float(high),
        "crossfit_width_ratio": float(np.exp(np.log(widths).mean())),
        **{f"{way}_{key}_real": float(table[f"{way}_{key}"].mean()) for way in WAYS for key in ("width", "inside")},
        "each": table.round(4).to_dict("records"),
    }  # fmt: skip


def _without_labels(store: Store, rows: np.ndarray, path: Path) -> Path:
    """Copy a store, and remove the labels of some rows."""
    if not path.is_dir():
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(store.path, partial)
        group = zarr.open_group(partial, mode="r+")
        for name in store.schemas["efigi"]:
            values = store.column(f"labels/efigi/{name}").copy()
            values[rows] = np.nan
            group[f"labels/efigi/{name}"][:] = values
        partial.rename(path)
    assert open_store(path).labels("efigi").iloc[rows].isna().all(axis=None)
    return path


def _interval(model: galscan.Model, scores: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the width of the interval of purity at `RANK`, and whether the truth lies inside."""
    histogram = ScoreHistogram.of(scores)
    order = np.argsort(-scores)[:RANK]
    found = purity.estimate(model.calibration, histogram, scores[order], seed=seed)
    low, high, true = found.purity_lo[-1], found.purity_hi[-1], float(truth[order].mean())
    return {
        "width": float(high - low), "purity": float(found.purity[-1]), "true": true,
        "inside": bool(low - 1e-9 <= true <= high + 1e-9), "positives": int(model.calibration.targets.sum()),
    }  # fmt: skip


def _simulated(surveys: int, seed: int) -> dict[str, Any]:
    seeds = range(seed * 10**6, seed * 10**6 + surveys)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        results = pd.DataFrame(pool.map(_one, seeds, chunksize=4))
    figures: dict[str, Any] = {"surveys": surveys}
    for way in SIMULATED:
        figures |= {f"coverage_{way}_{rank}": float(results[f"{way}_{rank}"].mean()) for rank in RANKS}
        figures |= {f"truth_above_{way}_{rank}": float(results[f"{way}_above_{rank}"].mean()) for rank in RANKS}
        figures[f"coverage_{way}"] = min(figures[f"coverage_{way}_{rank}"] for rank in RANKS)
        if way != "fixed":
            ratios = {
                rank: results[f"{way}_width_{rank}"] / results[f"fixed_width_{rank}"].clip(lower=1e-6) for rank in RANKS
            }
            figures |= {f"simulated_width_ratio_{way}_{rank}": statistics.median(r) for rank, r in ratios.items()}
    few = pd.cut(results["positives"], [0, 50, 200]).astype(str)
    noise = pd.cut(results["noise"], [0, 0.6, 1.2]).astype(str)
    figures["coverage_by"] = {
        name: {group: {way: round(float(some[[f"{way}_{r}" for r in RANKS]].mean().min()), 3) for way in SIMULATED}
               | {"surveys": len(some)} for group, some in results.groupby(by)}
        for name, by in (("positives", few), ("noise", noise))
    }  # fmt: skip
    return figures


def _one(seed: int) -> dict[str, Any]:
    """Simulate one survey; say what the intervals of each way say of it, and what is true."""
    rng = np.random.default_rng([seed, 5])
    prevalence = float(np.exp(rng.uniform(np.log(1e-3), np.log(0.02))))
    rate = min(float(np.exp(rng.uniform(0, np.log(30)))) * prevalence, 0.5)
    positives = int(np.exp(rng.uniform(np.log(20), np.log(200))))
    distance, noise, uneven = rng.uniform(1.5, 4.0), rng.uniform(0.2, 1.2), rng.uniform(-0.5, 0.5)
    between, unclear_fraction = rng.uniform(0.3, 0.8), rng.integers(3) * prevalence
    slopes, offsets = 1 + rng.normal(0, 0.05, MEMBERS), rng.normal(0, 0.2, MEMBERS)

    def scored(truth: np.ndarray, members: int = MEMBERS) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the networks, (MEMBERS, n), and which objects are ambiguous."""
        unclear = (truth == 0) & (rng.random(len(truth)) < unclear_fraction)
        signal = rng.normal(size=len(truth)) + distance * np.where(unclear, between, truth)
        # How much networks differ depends on the score: more, or less, where it is high.
        scale = noise * (1 + uneven * np.tanh(signal - distance / 2))
        own = slopes[:, None] * signal + offsets[:, None] + scale * rng.normal(size=(MEMBERS, len(truth)))
        return own, unclear

    truth = np.repeat([1, 0], [positives, round(positives * (1 - rate) / rate)])
    labelled, unclear = scored(truth)
    targets = np.where(unclear, np.nan, truth.astype(float))
    survey = (rng.random(OBJECTS) < prevalence).astype(int)
    own, _ = scored(survey)
    whole = own.mean(0)
    sample = rng.choice(OBJECTS, RESERVED, replace=False)
    # Folds are equal parts of each kind.
    out_of_fold = labelled[np.arange(len(truth)) % MEMBERS, np.arange(len(truth))]
    corrected, told_of = crossfit.committee_scores(out_of_fold, targets, own[:, sample])
    quarter = np.concatenate([np.flatnonzero(truth == value)[::4] for value in (1, 0)])
    order = np.argsort(-whole)[:TOP]
    histogram = ScoreHistogram.of(whole)
    results: dict[str, Any] = {"positives": positives, "noise": noise}
    for way, calibrating in (
        ("crossfit", crossfit.calibration_set(corrected, targets, told_of["factors"])),
        ("uncorrected", (out_of_fold, truth, unclear)),
        ("fixed", (labelled.mean(0)[quarter], truth[quarter], unclear[quarter])),
        ("oracle", (labelled.mean(0), truth, unclear)),
    ):
        calibration = calibrate.fit(*calibrating)
        found = purity.estimate(calibration, histogram, whole[order], seed=seed)
        for rank in RANKS:
            low, high = found.purity_lo[rank - 1], found.purity_hi[rank - 1]
            results[f"{way}_{rank}"] = low - 1e-9 <= survey[order[:rank]].mean() <= high + 1e-9
            results[f"{way}_width_{rank}"] = high - low
            results[f"{way}_above_{rank}"] = survey[order[:rank]].mean() > high + 1e-9
    return results


if __name__ == "__main__":
    main()
