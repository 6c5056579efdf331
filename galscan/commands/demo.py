"""``galscan demo``: the whole chain on a simulated survey whose truth is known, in a few minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from galscan.commands.scan import scan
from galscan.commands.train_rare import train_rare
from galscan.core.files import write_json
from galscan.core.old_names import existing
from galscan.labels.recipe import load_recipe
from galscan.models.model import Model, open_model
from galscan.store.ingest import ingest
from galscan.store.layout import Store, open_store

LABELLED, SURVEY = 1_000, 20_000  # number of labelled objects (a person's work of an evening), and of scanned objects
LABELLED_RARE, SURVEY_RARE = 0.04, 0.005  # rare fractions: labelled samples usually have a higher one than surveys
BUDGET = 5.0  # minutes of training
RANKS = (10, 30, 100, 300)
TRAINED_ON = {"real_only": "real only", "real_plus_synthetic": "real + synthetic"}
PURITY = 0.8  # at which completeness is compared
NEXT = (
    "next, on real galaxies: your own images and their table, or those of Galaxy Zoo 2 (extra 'services')",
    "  galscan ingest --survey local --path IMAGES/ --catalog TABLE.csv --labels efigi --name mine --dry-run",
    "  galscan ingest --survey sdss --query gz2 --labels gz2 --name gz2 --dry-run",
    "  galscan target list                                        kinds of galaxies to search for",
    "  galscan train-rare --target ring --survey gz2              a model, from the labelled ones",
    "  galscan scan --survey mine --target ring --out run/        candidates among all others",
)


def demo(out: str | Path | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Simulate a labelled and an unlabelled sky, train on the first, scan the second, and compare with the truth.

    Parameters
    ----------
    out : path, optional
        Output folder; default ``galscan-demo`` in the current folder. The same call resumes, or returns a finished
        result at once.
    seed : int
        Seed of skies, networks and synthetic galaxies.

    Returns
    -------
    dict
        Its keys are listed in docs/reference/json.md.
    """
    started = time.monotonic()
    out = Path(out or "galscan-demo")
    labelled, sky = out / "labelled.zarr", out / "survey.zarr"
    # Two seeds: the survey shares no object with the training set.
    size = load_recipe("demo").size
    ingest("simulated", out=labelled, count=LABELLED, size=size, seed=2 * seed, rare_fraction=LABELLED_RARE)
    ingest("simulated", out=sky, count=SURVEY, size=size, seed=2 * seed + 1, rare_fraction=SURVEY_RARE, labelled=0.0)
    train_rare("demo", store=labelled, out=out / "model", budget=BUDGET, seed=seed)
    model = open_model(out / "model")
    run = scan(store=sky, model=out / "model", out=out / "run")

    store = open_store(sky)
    truth = store.column("truth/target_dustlane") > 0.5
    candidates = run.candidates
    scores = _scores(model, store)
    ranks = np.array([rank for rank in RANKS if rank <= len(candidates)], int)

    def found(rows: np.ndarray) -> np.ndarray:
        """Return the number of targets down to each rank of a list of rows."""
        return np.cumsum(truth[rows])[ranks - 1]

    true = found(candidates["index"].to_numpy())
    table = candidates.iloc[ranks - 1][["rank", "purity", "purity_lo", "purity_hi", "completeness"]].assign(
        true_purity=true / ranks,
        true_completeness=true / max(truth.sum(), 1),
        **{f"found_{name}": found(np.argsort(-score, kind="stable")) for name, score in scores.items()},
    )
    metrics = model.metrics
    with_synthetic = metrics["real_plus_synthetic"]  # None where no synthetic target was made
    result = {
        "table": table.astype(object).where(table.notna(), None).to_dict("records"),  # unknown: NaN, not in JSON
        "completeness": _gain(scores, truth, seed) if len(scores) == 2 else None,
        "true_targets": int(truth.sum()), "candidates": len(candidates), "scanned": run.info.scanned,
        "ap_real_only": metrics["real_only"]["ap_mean"],
        "ap_real_plus_synthetic": with_synthetic and with_synthetic["ap_mean"],
        "synthetic": metrics["synthetic"], "labelled": LABELLED,
        "chosen": metrics["chosen"], "images_per_s": run.info.images_per_s, "seed": seed,
        "wall_s": round(time.monotonic() - started, 1), "fits": str(run.path / "candidates.fits"),
        "contact_sheet": str(run.path / "contact.png"), "report": str(run.path / "report.html"),
        "model_report": str(model.path / "report.html"),
    }  # fmt: skip
    write_json(out / "demo.json", result)
    return result | {"text": text(result)}


def _scores(model: Model, store: Store) -> dict[str, np.ndarray]:
    """Score the survey with both committees: trained on real galaxies only, and on synthetic ones too if there are."""
    from galscan.core.device import one_thread, pick
    from galscan.models.ensemble import load_networks, member_scores
    from galscan.models.weights import load_network

    networks = {}
    for name, training_set in zip(("real_only", "synthetic"), TRAINED_ON, strict=True):
        first = existing(model.path / f"{training_set}-0.safetensors")
        if training_set == model.metrics["chosen"]:
            networks[name] = load_networks(model)
        elif first.is_file():
            networks[name] = [load_network(p) for p in sorted(model.path.glob(first.name.replace("-0.", "-*.")))]
    images, device = store.images(), pick("auto")
    with one_thread():  # on a busy machine two threads are slower than one
        return {name: member_scores(each, images, device).mean(0)[:, 0] for name, each in networks.items()}


def _gain(scores: dict[str, np.ndarray], truth: np.ndarray, seed: int) -> dict[str, float | None]:
    """Return the completeness of both committees at a true purity of `PURITY`, and the ratio with its interval."""
    from galscan.stats import metrics

    point = metrics.WorkingPoint(float(truth.mean()), PURITY, 0.5)
    scored = [metrics.Scored(np.arange(len(truth)).astype(str), truth.astype(int), scores)]
    values, draws = metrics.measure(scored, point), metrics.bootstrap(scored, point, seed)
    mean = {name: float(v[0, 1]) for name, v in values.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = draws["synthetic"][:, 1] / draws["real_only"][:, 1]
    ends = np.nanpercentile(ratios, [2.5, 97.5]) if np.isfinite(ratios).any() else (np.nan, np.nan)
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    ratio = mean["synthetic"] / mean["real_only"] if mean["real_only"] else None
    return {**mean, "ratio": ratio, "ratio_lo": low, "ratio_hi": high}


def text(result: dict[str, Any]) -> str:
    """Return the result as tables: estimates beside the truth, and the gain by synthetic galaxies."""

    def number(value: float | None, unknown: str = "   ?") -> str:
        return unknown if value is None else f"{value:.2f}"

    lines = [
        "",
        f"{result['candidates']} candidates ranked among {result['scanned']:,} simulated galaxies, "
        f"{result['true_targets']} of which are dusty early types; trained on {result['labelled']:,} labelled ones",
        "",
        "  rank   purity (95 % interval)   true purity   completeness   true completeness",
    ]
    lines += [
        f"  {r['rank']:>4}   {number(r['purity'])} ({number(r['purity_lo'])}-{number(r['purity_hi'])})"
        f"         {r['true_purity']:.2f}          {number(r['completeness'])}           {r['true_completeness']:.2f}"
        for r in result["table"]
    ]
    gain = result["completeness"]
    if gain is None:
        lines += ["", "no synthetic target was made: the networks are trained on real galaxies alone"]
    else:
        lines += ["", "  targets in the top              real only   real + synthetic"]
        lines += [f"  {r['rank']:>4}{r['found_real_only']:>34}{r['found_synthetic']:>19}" for r in result["table"]]
        lines += [f"  completeness at purity {PURITY:g}{gain['real_only']:>14.2f}{gain['synthetic']:>19.2f}"]
        if gain["ratio"] is not None:
            low, high = number(gain["ratio_lo"], "?"), number(gain["ratio_hi"], "no upper end")
            lines += [f"  {gain['ratio']:.2f} times as complete (95 % interval over galaxies {low} to {high})"]
        lines += [f"  chosen and used for the scan: {TRAINED_ON[result['chosen']]}"]
    lines += [
        "",
        f"FITS           {result['fits']}",
        f"contact sheet  {result['contact_sheet']}",
        f"report         {result['report']}",
        f"model report   {result['model_report']}",
    ]
    return "\n".join([*lines, "", *NEXT])
