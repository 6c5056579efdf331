"""What dreams bring: on a simulated survey at its natural prevalence, and on real galaxies.

    python -m tests.benchmarks.dream [--quick] [--json] [--seeds N]

1. 100,000 simulated galaxies of which 0.15 % are dusty early types; 20 labelled ones train, the rest is searched.
2. The 882 NGC galaxies with EFIGI labels (``GALSCAN_TEST_DATA``, default ``../shared/data``), repeated stratified
   two-fold cross-validation with at most 25 positives to train on.

In both, every way to train on real galaxies alone stands beside training with laid dreams (``galscan ablate``); with
``--drawn``, beside those that a generator drew as well, which takes hours. The dreams of the first repeats are then
judged by networks that never saw one (``galscan judge``); for the simulated ones that network learns from a sky of its
own that is rich in dusty early types.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import galscan
from galscan.files import read_json
from galscan.recipe import load_recipe
from galscan.scanning.cluster import cores
from tests.benchmarks._record import arguments, record
from tests.helpers import tiny_recipe

DATA = Path(os.environ.get("GALSCAN_TEST_DATA", "../shared/data"))
PREVALENCE = 0.0015
ARMS = ("plain", "weighted", "focal", "oversampled", "attributes", "laid")
DRAWN = ("drawn", "dreams_70", "dreamt_only")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("dream", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5, help="repeats on the simulated survey")
    parser.add_argument("--real-seeds", type=int, default=2, help="repeats of the cross-validation on real galaxies")
    parser.add_argument("--drawn", action="store_true", help="compare with what a generator draws, too")
    parser.add_argument("--workers", type=int, default=cores(), help="repeats at a time")
    options = parser.parse_args(argv)
    quick, seed = options.quick, options.seed
    work = options.work / ("dream-quick" if quick else "dream")
    work.mkdir(parents=True, exist_ok=True)
    size = 32 if quick else 64
    recipe = str(tiny_recipe(work / "dustlane.toml", size=size)) if quick else "dustlane"

    def simulated(name: str, count: int, rare: float, sky: int) -> Path:
        return galscan.ingest(
            "simulated", out=work / f"{name}.zarr", count=count, size=size, seed=sky, rare_fraction=rare
        ).path

    sky = simulated("survey", 3_000 if quick else 100_000, 0.02 if quick else PREVALENCE, 73)
    rich = simulated("rich", 400 if quick else 6_000, 0.15, 74)
    ngc = galscan.ingest("local", path=DATA / "ngc-sdss", labels=["efigi"], size=size, out=work / "ngc.zarr").path
    # 25 positives and 400 others: 600 steps show each of them 80 times over, and more of them cost hours for nothing.
    few = recipe if quick else str(_with_steps(work / "dustlane-few.toml", 600))
    how = {"arms": ARMS + (DRAWN if options.drawn else ()), "method": "laid", "workers": options.workers}
    found = galscan.ablate(
        recipe, store=sky, out=work / "simulated", seeds=1 if quick else options.seeds, positives=20,
        max_test=None if quick else 20_000, prevalence=PREVALENCE, purity=0.8, survey_size=100_000, seed=seed,
        **how,
    )  # fmt: skip
    real = galscan.ablate(
        few, store=ngc, out=work / "real", seeds=1 if quick else options.real_seeds, folds=2, positives=25,
        purity=0.5, survey_size=100_000, seed=seed, **how,
    )  # fmt: skip
    figures = _ablation("sim", found) | _ablation("real", real)
    for name, store in (("sim", rich), ("real", ngc)):
        folder = work / ("simulated" if name == "sim" else "real")
        judged = galscan.judge(
            folder / "repeat-00" / "dreams.zarr", target=recipe, store=store, out=work / f"{name}-judge", seed=seed
        )
        figures |= _adherence("" if name == "sim" else "real_survey_", judged["adherence"])
        notes = [read_json(path) for path in sorted(folder.glob("repeat-*/dreams.json"))]
        figures |= {f"{name}_dreams_{kind}": sum(n[kind] for n in notes) for kind in ("laid", "drawn", "kept")}
        figures[f"{name}_copies_dropped"] = sum(n["dropped"].get("copy", 0) for n in notes)
    # Of what was drawn: the screen drops what is nearer to a training picture than 1 % of real ones are, so of what
    # it leaves there is none. What is laid is a training galaxy, but for the lane.
    drawn = figures["sim_dreams_drawn"] + figures["real_dreams_drawn"]
    copies = figures["sim_copies_dropped"] + figures["real_copies_dropped"]
    figures["copies_below_p1"] = copies / drawn if drawn else None
    record("dream", options, figures)
    return figures


def _with_steps(path: Path, steps: int) -> Path:
    """Write the shipped recipe with other steps for its classifiers."""
    path.write_text(f"{load_recipe('dustlane').text}\n[classifier]\nsteps = {steps}\n", encoding="utf-8")
    return path


def _ablation(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one ablation: gains over the best real-only baseline, and the sizes behind them."""
    gains, repeats = result["gains"][result["method"]], result["repeats"]
    wanted = (
        {"sim_detection_ratio": ("detections", "ratio")}
        if name == "sim"
        else {"real_ap_gain": ("ap", "gain"), "real_completeness_gain": ("completeness", "gain")}
    )
    figures: dict[str, Any] = {}
    for over, mark in (("best_baseline", ""), ("attributes", "_over_attributes")):
        for key, (metric, value) in wanted.items():
            entry = gains[over][metric]
            figures |= {f"{key}{mark}": entry[value], f"{key}{mark}_lo": entry["lo"], f"{key}{mark}_hi": entry["hi"]}
    counts = [r["test"] for r in repeats]
    return figures | {
        f"{name}_method": result["method"], f"{name}_best_baseline": result["best_baseline"]["ap"],
        f"{name}_repeats": len(repeats), f"{name}_train_positives": [r["train"]["positives"] for r in repeats],
        f"{name}_test_positives": [c["positives"] for c in counts],
        f"{name}_test_negatives": [c["negatives"] for c in counts],
    }  # fmt: skip


def _adherence(prefix: str, adherence: dict[str, Any]) -> dict[str, Any]:
    figures = {}
    for which in ("dreamt", "real"):
        share = adherence[f"{which}_positive"]["in_class_by_target"]
        figures |= {f"{prefix}adherence_{which}": share["share"], f"{prefix}adherence_{which}_n": share["n"]}
    return figures


if __name__ == "__main__":
    main()
