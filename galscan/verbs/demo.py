"""``galscan demo``: the whole chain on an embedded survey whose truth is known, in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from galscan.classify.bundle import open_bundle
from galscan.files import write_json
from galscan.recipe import load_recipe
from galscan.store.layout import open_store
from galscan.verbs.ingest import ingest
from galscan.verbs.scan import scan
from galscan.verbs.train_rare import train_rare

LABELLED, SURVEY = 3_000, 20_000  # objects to learn from, objects to search
LABELLED_RARE, SURVEY_RARE = 0.03, 0.005  # volunteers' samples are richer than the sky
BUDGET = 6.0  # minutes of training
RANKS = (10, 30, 100, 300)


def demo(out: str | Path | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Draw a labelled and an unlabelled sky, train on the first, scan the second, and compare with the truth.

    Parameters
    ----------
    out : path, optional
        Folder for everything it makes; default ``galscan-demo`` here. The same call again goes on
        where it stopped, or returns at once what is there.
    seed : int
        Of skies, networks and dreams.

    Returns
    -------
    dict
        ``table`` (one entry a rank: estimated purity with interval, true purity, completeness),
        ``true_targets``, ``ap_real_only``, ``ap_real_plus_dreamt`` (None if no dream passed the judge),
        ``dreams``, ``wall_s`` and paths.
    """
    started = time.monotonic()
    out = Path(out or "galscan-demo")
    learn, sky = out / "labelled.zarr", out / "survey.zarr"
    # Two seeds: the survey shares no object with what the networks have seen.
    size = load_recipe("demo").size
    ingest("simulated", out=learn, count=LABELLED, size=size, seed=2 * seed, rare_fraction=LABELLED_RARE)
    ingest("simulated", out=sky, count=SURVEY, size=size, seed=2 * seed + 1, rare_fraction=SURVEY_RARE, labelled=0.0)
    train_rare("demo", store=learn, out=out / "model", budget=BUDGET, seed=seed)
    model = open_bundle(out / "model")
    run = scan(store=sky, model=out / "model", out=out / "run")

    truth = open_store(sky).column("truth/target_dustlane") > 0.5
    candidates = run.candidates
    found = np.cumsum(truth[candidates["index"].to_numpy()])
    table = []
    for rank in (r for r in RANKS if r <= len(candidates)):
        row = candidates.iloc[rank - 1]
        table.append(
            {
                "rank": rank, "purity": float(row["purity"]), "purity_lo": float(row["purity_lo"]),
                "purity_hi": float(row["purity_hi"]), "true_purity": float(found[rank - 1] / rank),
                "completeness": float(row["completeness"]),
                "true_completeness": float(found[rank - 1] / max(truth.sum(), 1)),
            }
        )  # fmt: skip
    metrics = model.metrics
    dreamt = metrics["real_plus_dreamt"]  # None where no dream passed the judge
    result = {
        "table": table, "true_targets": int(truth.sum()), "candidates": len(candidates), "scanned": run.info["scanned"],
        "ap_real_only": metrics["real_only"]["ap_mean"], "ap_real_plus_dreamt": dreamt and dreamt["ap_mean"],
        "dreams": metrics["dreams"],
        "chosen": metrics["chosen"], "images_per_s": run.info["images_per_s"], "seed": seed,
        "wall_s": round(time.monotonic() - started, 1), "fits": str(run.path / "candidates.fits"),
        "contact_sheet": str(run.path / "contact.png"), "report": str(run.path / "report.html"),
        "model_report": str(model.path / "report.html"),
    }  # fmt: skip
    write_json(out / "demo.json", result)
    return result | {"text": text(result)}


def text(result: dict[str, Any]) -> str:
    """Return the result as a table for people: what was estimated beside what is true."""
    dreamt = "none" if result["ap_real_plus_dreamt"] is None else f"{result['ap_real_plus_dreamt']:.3f}"
    lines = [
        "",
        f"{result['candidates']} candidates ranked among {result['scanned']:,} simulated galaxies, "
        f"{result['true_targets']} of which are dusty early types",
        "",
        "  rank   purity (95 % interval)   true purity   completeness   true completeness",
    ]
    lines += [
        f"  {r['rank']:>4}   {r['purity']:.2f} ({r['purity_lo']:.2f}-{r['purity_hi']:.2f})"
        f"         {r['true_purity']:.2f}          {r['completeness']:.2f}           {r['true_completeness']:.2f}"
        for r in result["table"]
    ]
    lines += [
        "",
        f"average precision on held-out galaxies: real only {result['ap_real_only']:.3f}, real + dreamt {dreamt} "
        f"(delivered: {result['chosen'].replace('_', ' ')}; {result['dreams']['kept']} of {result['dreams']['all']} "
        "dreams passed the judge)",
        f"FITS           {result['fits']}",
        f"contact sheet  {result['contact_sheet']}",
        f"report         {result['report']}",
        f"model report   {result['model_report']}",
    ]
    return "\n".join(lines)
