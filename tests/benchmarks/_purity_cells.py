"""Parts of the benchmark of purity: cells of simulated surveys, and a model that is carried to other skies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, zoom

import galscan
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.models.ensemble import load_scorer
from galscan.stats import calibration as calibrate
from galscan.stats import purity
from galscan.stats.histogram import ScoreHistogram
from galscan.store.layout import Store, open_store
from galscan.training.dataset import targets_of
from tests.helpers import tiny_recipe

AMBIGUOUS = (0, 1, 2, 20)  # for each target
PREFILTER, RESCORED = 0.7, 0.01
TRAINED = 1 / 3  # fraction of labelled objects that the survey holds
MEMORY = 1.5  # what training adds to their scores
OBJECTS, TOP = 200_000, 1000
LAWS = ("binormal", "logistic", "look-alikes")
LOOK_ALIKES = 0.02
# Of the skies a model is carried to: galaxies of each, and the median fraction of targets where it was calibrated.
SKY, BASE = 4_000, 0.005
CHANGES = ("prevalence", "seeing", "depth", "framing", "look-alikes", "all")


def cells(each: int, seed: int) -> list[tuple[int, int, bool, bool]]:
    """Return what `cell` takes, for so many surveys of each cell."""
    kinds = [(n, pre, trained) for n in AMBIGUOUS for pre in (False, True) for trained in (False, True)]
    return [(seed + k, *kind) for kind in kinds for k in range(each)]


def cell(what: tuple[int, int, bool, bool]) -> dict[str, Any]:
    """Simulate one survey of a cell.

    Its seed, ambiguous objects for each target, and whether there is a prefilter, and whether it holds objects that the
    model was trained on, which score `MEMORY` too far from the others.
    """
    seed, ambiguous, prefilter, trained = what
    rng = np.random.default_rng(seed)
    prevalence = float(np.exp(rng.uniform(np.log(5e-4), np.log(0.02))))
    rate = min(float(np.exp(rng.uniform(0, np.log(30)))) * prevalence, 0.5)
    positives = int(np.exp(rng.uniform(np.log(20), np.log(500))))
    separation, between = rng.uniform(1.5, 4.0), rng.uniform(0.3, 0.8)
    law = LAWS[rng.integers(3)]
    fraction = min(ambiguous * prevalence / (1 - prevalence), 0.9)  # of what is no target

    def scores(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(targets)
        unclear = (targets == 0) & (rng.random(n) < fraction)
        noise = rng.logistic(size=n) * np.sqrt(3) / np.pi if law == "logistic" else rng.normal(size=n)
        alike = (rng.random(n) < LOOK_ALIKES) * 0.5 if law == "look-alikes" else np.zeros(n)
        return noise + separation * np.where(targets == 1, 1.0, np.where(unclear, between, alike)), unclear

    targets = np.repeat([1, 0], [positives, round(positives * (1 - rate) / rate)])
    calibrated, unclear = scores(targets)
    calibration = calibrate.fit(calibrated, targets, unclear)
    truth = (rng.random(OBJECTS) < prevalence).astype(int)
    scored, unclear = scores(truth)
    labelled = np.zeros(OBJECTS, bool)
    if trained:  # labelled objects as they are: as rich in targets as the calibration set
        for kind, count in ((1, TRAINED * positives), (0, TRAINED * positives * (1 - rate) / rate)):
            of_kind = np.flatnonzero(truth == kind)
            labelled[rng.permutation(of_kind)[: min(round(count), len(of_kind) // 2)]] = True
        scored = scored + labelled * MEMORY * np.where(truth == 1, 1, -1)
    order = np.argsort(-scored)
    free, top = ~labelled, order[:TOP]
    if prefilter:
        below = scored < np.quantile(scored, PREFILTER)
        sample = ScoreHistogram.of(scored[below & free & (rng.random(OBJECTS) < RESCORED)])
        beyond = sample.scaled_to(int((below & free).sum()))
        histogram = ScoreHistogram.of(scored[~below & free]) + beyond
    else:
        histogram, beyond = ScoreHistogram.of(scored[free]), None
    label = np.where(truth == 1, 1.0, np.where(unclear, purity.AMBIGUOUS, 0.0))
    rest = labelled[order[TOP:]]
    found = purity.estimate(
        calibration, histogram, scored[top], beyond=beyond, seed=seed,
        known=np.where(labelled[top], label[top], np.nan),
        known_beyond=(int(rest.sum()), int((truth[order[TOP:]] * rest).sum())),
    )  # fmt: skip
    results: dict[str, Any] = {
        "ambiguous": ambiguous, "prefilter": prefilter, "trained": trained, "unknown": bool(found.unknown),
    }  # fmt: skip
    for rank in (100, TOP):
        for name, of, low, high in (
            ("purity", truth, found.purity_lo, found.purity_hi),
            ("unclear", unclear, found.ambiguous_lo, found.ambiguous_hi),
        ):
            results[f"{name}_{rank}"] = _inside(float(of[top[:rank]].mean()), low[rank - 1], high[rank - 1])
    recall = truth[top].sum() / max(truth.sum(), 1)
    results["completeness"] = _inside(recall, found.completeness_lo[-1], found.completeness_hi[-1])
    return results


def of_cells(results: pd.DataFrame) -> dict[str, Any]:
    """Return the smallest coverage of purity over ranks and cells, and the table of all.

    Surveys whose purity is unknown count as they are: by the interval that is not published.
    """
    table = results.groupby(["ambiguous", "prefilter", "trained"]).mean()
    purities = table[["purity_100", f"purity_{TOP}"]].min(axis=1)

    def least(level: str, value: Any) -> float:
        return float(purities.xs(value, level=level).min())

    return {f"coverage_ambiguous_{n}": least("ambiguous", n) for n in AMBIGUOUS} | {
        "coverage_first_look": least("prefilter", True), "coverage_trained_survey": least("trained", True),
        "unknown_of_cells": float(results["unknown"].mean()),
        "coverage_cells": {
            f"{n} ambiguous{', prefilter' * pre}{', holds its training set' * trained}": row.round(3).to_dict()
            for (n, pre, trained), row in table.iterrows()
        },
    }  # fmt: skip


def _inside(value: float, low: float, high: float) -> bool:
    return bool(low - 1e-9 <= value <= high + 1e-9)


def carried(work: Path, cases: int, seed: int, quick: bool) -> dict[str, Any]:
    """Carry a model that was trained on simulated galaxies to other skies.

    Each has another fraction of targets (0.1 to 30 times `BASE`) and other seeing, depth, framing, or many of a kind of
    look-alikes that were few. `carried_honest` is how often the truth lies inside the intervals of purity at ranks 30
    and 100, or purity is unknown, where nothing says that the sky is another and only the scores can tell.
    A scan knows more: stores of other surveys, frames and stretches are never given a purity at all.
    """
    size = 32 if quick else 64
    learn, sky = work / "carried-labelled.zarr", work / "carried-sky.zarr"
    count = 2_000 if quick else 20_000
    galscan.ingest("simulated", out=learn, count=1_000, size=size, seed=seed + 11, rare_fraction=0.04)
    galscan.ingest("simulated", out=sky, count=count, size=size, seed=seed + 12, rare_fraction=0.05, labelled=1.0)
    recipe = str(tiny_recipe(work / "carried.toml", size=size)) if quick else "demo"
    model = galscan.train_rare(
        recipe, store=learn, out=work / "carried-model", budget=0.1 if quick else 4, synthetic=False, seed=seed
    )
    assert isinstance(model, galscan.Model)
    scorer = load_scorer([model], device="cpu", precision="fp32")
    store = open_store(sky)
    results = pd.DataFrame([_carry(store, model, scorer, seed, k) for k in range(cases)])
    honest = results["inside"] | results["unknown"]
    return {
        "carried_cases": cases, "carried_honest": float(honest.mean()),
        "carried_unknown": float(results["unknown"].mean()),
        "carried_inside": float(results["inside"].mean()),
        "carried_by": {
            kind: {"honest": round(float(honest[some.index].mean()), 3)} | some[["inside", "unknown"]].mean().to_dict()
            for kind, some in results.groupby("kind")
        },
    }  # fmt: skip


def _carry(store: Store, model: galscan.Model, scorer: Any, seed: int, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, number])
    kind = CHANGES[number % len(CHANGES)]
    truth = store.column("truth/target_dustlane") > 0.5
    prevalence = BASE * float(np.exp(rng.uniform(np.log(0.1), np.log(30))))
    targets, others = np.flatnonzero(truth), np.flatnonzero(~truth)
    weight = np.ones(len(others))
    if kind in ("look-alikes", "all"):  # dusty disks, which were a few per cent, are many
        labels = store.labels("simulated").iloc[others]
        alike = (labels["dust_lane"].to_numpy() > 0) & (labels["early_type"].to_numpy() < 0.5)
        weight[alike] = np.exp(rng.uniform(0, np.log(30)))
    count = min(rng.binomial(SKY, min(prevalence, 0.3)), len(targets))
    rows = np.concatenate([
        rng.choice(targets, count, replace=False),
        rng.choice(others, min(SKY, len(others)) - count, p=weight / weight.sum()),
    ])  # fmt: skip
    images = store.images()[rows].astype(np.float32)
    if kind in ("seeing", "all"):
        images = gaussian_filter(images, (0, *[rng.uniform(0.4, 1.6)] * 2, 0))
    if kind in ("framing", "all"):
        images = _framed(images, rng.uniform(0.6, 1.6))
    if kind in ("depth", "all"):
        images = images + rng.normal(0, rng.uniform(2, 25), images.shape)
    scores = scorer(np.clip(images, 0, 255).round().astype(np.uint8)).score[:, 0].astype(np.float64)
    order, histogram = np.argsort(-scores), ScoreHistogram.of(scores)
    found = purity.estimate(model.calibration, histogram, scores[order[:100]], seed=number, bootstrap=1000)
    hits = truth[rows][order]
    inside = all(
        _inside(float(hits[:rank].mean()), found.purity_lo[rank - 1], found.purity_hi[rank - 1]) for rank in (30, 100)
    )
    return {"kind": kind, "inside": inside, "unknown": bool(found.unknown)}


def _framed(images: np.ndarray, factor: float) -> np.ndarray:
    """Return pictures of a frame that is so many times as large on the sky, of as many pixels."""
    size = images.shape[1]
    if factor < 1:
        edge = round(size * (1 - factor) / 2)
        images = images[:, edge : size - edge, edge : size - edge]
    else:
        edge = round(size * (factor - 1) / 2)
        images = np.pad(images, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="reflect")
    return zoom(images, (1, size / images.shape[1], size / images.shape[2], 1), order=1)


def votes(work: Path, surveys: int, seed: int, quick: bool) -> dict[str, Any]:
    """Train on the votes of simulated volunteers for mergers and rings, and search galaxies that others voted on.

    More than a quarter of the galaxies are ambiguous by the recipes' rules. Surveys are random 5,000 of 20,000, and
    each has a calibration set of its own, as large as the model's, of the other galaxies. The truth is what the rules
    say of the votes in the survey. `coverage_votes` is how often it lies inside the intervals of purity at ranks 100
    and 300, the smallest of both targets; `coverage_votes_model` the same with the model's own calibration, which is
    one draw common to all surveys.
    """
    size, count, each = (32, 2_000, 1_000) if quick else (64, 20_000, 5_000)
    learn = galscan.ingest(
        "simulated", out=work / "votes-labelled.zarr", count=count // 5, size=size, seed=seed + 21, labels=["gz2"]
    )
    sky = galscan.ingest(
        "simulated", out=work / "votes-sky.zarr", count=count, size=size, seed=seed + 22, labels=["gz2"]
    )
    schema = load_schema("gz2")
    figures: dict[str, Any] = {}
    for target in ("merger", "ring"):
        recipe = load_recipe(target)
        text = recipe.text.replace(f"size = {recipe.size}", f"size = {size}", 1)
        (work / f"votes-{target}.toml").write_text(
            f"{text}\n[classifier]\nsteps = {4 if quick else 500}\n[prefilter]\nsteps = 0\n", encoding="utf-8"
        )
        model = galscan.train_rare(
            str(work / f"votes-{target}.toml"), store=learn.path, out=work / f"votes-{target}", synthetic=False,
            seed=seed,
        )  # fmt: skip
        assert isinstance(model, galscan.Model)
        scorer = load_scorer([model], device="cpu", precision="fp32")
        pieces = range(0, sky.count, 2048)
        scores = np.concatenate([scorer(sky.images(slice(at, at + 2048))).score[:, 0] for at in pieces])
        answers = sky.labels("gz2").reindex(columns=schema.names)
        truth = targets_of(answers, schema, recipe.schemas["gz2"])
        figures |= {f"votes_{target}_targets": int((truth == 1).sum())}
        figures |= {f"votes_{target}_ambiguous": float(np.isnan(truth).mean())}
        size_of = len(model.calibration.scores)
        for name in ("", "_model"):
            covered = []
            for number in range(surveys):
                rows = np.random.default_rng([seed, number]).permutation(sky.count)
                rows, others = rows[:each], rows[each : each + size_of]
                own = calibrate.fit(scores[others], truth[others] == 1, np.isnan(truth[others]))
                covered.append(_covered(model.calibration if name else own, scores[rows], truth[rows], number))
            figures |= {f"votes_{target}{name}": pd.DataFrame(covered).mean().round(3).to_dict()}
    least = {
        name: min(figures[f"votes_{t}{name}"][f"purity_{r}"] for t in ("merger", "ring") for r in (100, 300))
        for name in ("", "_model")
    }
    return {
        "votes_surveys": surveys, "coverage_votes": least[""], "coverage_votes_model": least["_model"],
    } | figures  # fmt: skip


def _covered(known: calibrate.Calibration, scores: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, Any]:
    """Estimate a survey, and tell whether the truth lies inside the intervals."""
    order, histogram = np.argsort(-scores)[:300], ScoreHistogram.of(scores)
    found = purity.estimate(known, histogram, scores[order].astype(float), seed=seed)
    targets, ambiguous = truth[order] == 1, np.isnan(truth[order])
    return {"unknown": bool(found.unknown)} | {
        f"{name}_{rank}": _inside(float(of[:rank].mean()), low[rank - 1], high[rank - 1])
        for rank in (100, 300)
        for name, of, low, high in (
            ("purity", targets, found.purity_lo, found.purity_hi),
            ("ambiguous", ambiguous, found.ambiguous_lo, found.ambiguous_hi),
        )
    } | {"estimate_100": float(found.purity[99]), "truth_100": float(targets[:100].mean())}  # fmt: skip
