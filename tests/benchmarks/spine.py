"""The whole chain: the demo's time, and what synthetic galaxies change on real galaxies.

    python -m tests.benchmarks.spine [--quick] [--json]

Trains `dustlane` on the EFIGI labels of ``ngc-sdss`` for at most 55 minutes, then scans all three
folders of real galaxies (``GALSCAN_TEST_DATA``, default ``../shared/data``) with the model.
"""

from __future__ import annotations

import shutil
from typing import Any

import galscan
from galscan.labels.recipe import load_recipe
from tests.benchmarks._record import DATA, arguments, record, work_folder
from tests.helpers import tiny_recipe

BUDGET = 55  # minutes
FOLDERS = {"ngc": ("ngc-sdss", "efigi"), "gz2": ("gz2-kaggle", "gz2_leading"), "gz1": ("gz1-sdss", "gz1")}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("spine", __doc__ or "").parse_args(argv)
    work = work_folder("spine", options)
    size = 32 if options.quick else load_recipe("dustlane").size

    stores = [
        galscan.ingest("local", path=DATA / folder, labels=[labels], size=size, out=work / f"{name}.zarr").path
        for name, (folder, labels) in FOLDERS.items()
    ]
    recipe = str(tiny_recipe(work / "dustlane.toml", size=size)) if options.quick else "dustlane"
    budget = None if options.quick else BUDGET
    galscan.train_rare(recipe, store=stores[0], out=work / "model", budget=budget, seed=options.seed)
    run = galscan.scan(store=stores, model=work / "model", out=work / "run")
    metrics = galscan.open(work / "model").metrics

    figures: dict[str, Any] = {}
    if not options.quick:
        shutil.rmtree(work / "demo", ignore_errors=True)  # its time is that of a first run
        figures["demo_wall_s"] = galscan.demo(work / "demo", seed=options.seed)["wall_s"]
    for name in ("real_only", "real_plus_synthetic"):
        m = metrics[name] or dict.fromkeys(("ap_mean", "ap_lo", "ap_hi"))  # no synthetic galaxy may have been accepted
        figures |= {f"ap_{name}": m["ap_mean"], f"ap_{name}_lo": m["ap_lo"], f"ap_{name}_hi": m["ap_hi"]}
    gain = metrics["gain"] or dict.fromkeys(("mean", "lo", "hi"))
    figures |= {"ap_gain": gain["mean"], "ap_gain_lo": gain["lo"], "ap_gain_hi": gain["hi"]}
    figures |= {
        "seeds": len(metrics["real_only"]["ap"]),
        "test_positives": metrics["test"]["positives"], "test_negatives": metrics["test"]["negatives"],
        "generator_steps": (metrics["generator"] or {}).get("steps"), "classifier_steps": metrics["classifier_steps"],
        "train_s": metrics["seconds"],
        "scanned": run.info.scanned, "quarantined": run.info.quarantined,
        "images_per_s": run.info.images_per_s,
    }  # fmt: skip
    record("spine", options, figures)
    return figures


if __name__ == "__main__":
    main()
