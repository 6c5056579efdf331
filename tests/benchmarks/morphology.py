"""How well morphology is known, what several targets cost in one scan, and how fast the likes of some are found.

    python -m tests.benchmarks.morphology [--quick] [--json]

The sky is simulated, with 10 to 40 volunteers a galaxy who walk down the tree of Galaxy Zoo 2.
`vote_coverage_90` is the share of vote fractions, of galaxies that nothing was taught, within the 90 % intervals that
were predicted for as many volunteers as voted. `few_shot_gain` is of the one answer with fewer than fifty examples that
dreams can be made of without a generator, the dust lane: completeness at the purity where the networks without dreams
find half, relative to theirs; every seed divides the galaxies anew. `six_target_cost` is the time of a scan for six
targets over that of one of them, with the networks that learnt all six.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import galscan
from galscan.classify.dataset import load_galaxies, read_table
from galscan.classify.scoring import member_outputs
from galscan.classify.train import Examples, train_classifier
from galscan.classify.votes import shares
from galscan.generate.dreams import lay_set
from galscan.labels import load_schema
from galscan.recipe import load_recipe
from galscan.store.ingest import ingest_survey
from galscan.surveys.simulated import SimulatedSurvey
from tests.benchmarks import similar
from tests.benchmarks._record import arguments, record
from tests.helpers import tiny_recipe

TARGETS = ("dustlane", "ring", "merger", "edge_on_no_bulge", "strong_bar", "bulge_spiral")
LANE = "t08_odd_feature_a38_dust_lane"
FEW = 40  # labelled galaxies with a leading vote for a dust lane
CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("morphology", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600, help="of each network")
    options = parser.parse_args(argv)
    quick, size = options.quick, 32 if options.quick else 64
    work = options.work / ("morphology-quick" if quick else "morphology")
    work.mkdir(parents=True, exist_ok=True)
    steps, seeds = (8, 2) if quick else (options.steps, options.seeds)
    figures = (
        _votes(work, size, steps, seeds, quick)
        | _targets(work, size, quick)
        | similar.searches(work / "similar", 50_000 if quick else 1_000_000, options.seed)
    )
    record("morphology", options, figures)
    return figures


def _sky(path: Path, count: int, size: int, seed: int, **settings: Any) -> galscan.Store:
    sky = SimulatedSurvey(count=count, size=size, seed=seed, **settings)
    return galscan.open_store(ingest_survey(sky, path, workers=None).path)


def _votes(work: Path, size: int, steps: int, seeds: int, quick: bool) -> dict[str, Any]:
    """Learn votes with and without dreams of dust lanes, several times over."""
    store = _sky(work / "voted.zarr", 1_500 if quick else 12_000, size, 91, rare_fraction=0.04, votes=True)
    recipe, schema = load_recipe("dustlane"), load_schema("gz2")
    rules = recipe.schemas["gz2"]
    table = read_table([store], schema, rules).assign(split="")
    galaxies = load_galaxies([store], table, schema.names, size, seed=0, unlabelled=False)
    answers, settings = schema.names, recipe.classifier.model_copy(update={"morphology_weight": 1.0})
    labels = galaxies.counted(schema)
    lanes = (labels[LANE] >= labels[list(schema.tasks[7].answers)].max(axis=1)).to_numpy() & labels[LANE].notna()
    found: dict[str, list[Any]] = {"coverage": [], "real": [], "dreamt": [], "few": []}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 1])
        order = rng.permutation(len(labels))
        test, rest = order[: len(order) // 2], order[len(order) // 2 :]
        kept = rest[lanes[rest]][:FEW]
        train = np.concatenate([kept, rest[~lanes[rest]][: len(rest) // 2]])
        real = Examples.from_labels(
            galaxies.images[train], galaxies.table["target"].to_numpy()[train], labels.iloc[train], answers, schema
        )
        dreams = lay_set(galaxies.images[train], galaxies.labels.iloc[train], rules, 60 if quick else 1_000, seed=seed)
        laid = Examples.from_labels(dreams.images, dreams.target, dreams.labels, answers, schema)
        found["few"].append(len(kept))
        for name, dreamt in (("real", None), ("dreamt", laid)):
            network = train_classifier(
                real, dreamt, settings, steps=steps, seed=seed, device=CPU, label=f"{name} {seed}"
            )
            _, raw = member_outputs([network], galaxies.images[test], CPU)
            said = shares(torch.from_numpy(raw[0]), real.groups).numpy()[:, answers.index(LANE)]
            # Of all who look at the galaxy: who is asked about oddities depends on what was said before.
            odd = shares(torch.from_numpy(raw[0]), real.groups).numpy()[:, answers.index("t06_odd_a14_yes")]
            found[name].append(_curve(said * odd, lanes[test]))
            if dreamt is None:
                found["coverage"].append(_coverage(raw, labels.iloc[test], answers, schema))
    gains = []
    for real_curve, dreamt_curve in zip(found["real"], found["dreamt"], strict=True):
        purity = real_curve[1][np.searchsorted(real_curve[0], 0.5)]
        without, with_ = (c[0][c[1] >= purity].max(initial=0.0) for c in (real_curve, dreamt_curve))
        gains.append(with_ / without - 1 if without else np.nan)
    spread = np.random.default_rng(0).choice(gains, (4000, len(gains))).mean(1)
    return {
        "vote_coverage_90": float(np.mean(found["coverage"])), "vote_coverage_90_by_seed": found["coverage"],
        "few_shot_gain": float(np.mean(gains)), "few_shot_gain_lo": float(np.quantile(spread, 0.025)),
        "few_shot_gain_hi": float(np.quantile(spread, 0.975)), "few_shot_gain_by_seed": [float(g) for g in gains],
        "few_shot_examples": found["few"], "few_shot_tested": int(lanes.sum()) // 2, "vote_steps": steps,
    }  # fmt: skip


def _curve(score: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return completeness and purity down to each rank."""
    hits = truth[np.argsort(-score)].cumsum()
    return hits / hits[-1], hits / np.arange(1, len(hits) + 1)


def _coverage(raw: np.ndarray, labels: Any, answers: list[str], schema: Any) -> float:
    """Return the share of vote fractions within their 90 % intervals, of all questions that were asked."""
    from galscan.classify.morphology import judge

    told = [q for q in judge(raw, labels, answers, schema)["questions"] if q["coverage"] is not None]
    asked = [q["n"] * len(q["answers"]) for q in told]
    return float(np.average([q["coverage"] for q in told], weights=asked))


def _targets(work: Path, size: int, quick: bool) -> dict[str, Any]:
    """Scan for six targets and for one of them, in turn."""
    teach = _sky(work / "teach.zarr", 1_200 if quick else 16_000, size, 92, rare_fraction=0.03, labelled=0.4)
    recipes = [str(tiny_recipe(work / f"{t}.toml", t, size=size)) for t in TARGETS] if quick else list(TARGETS)
    budget = None if quick else 6
    models = galscan.train_rare(recipes, store=teach.path, out=work / "six", synthetic=False, budget=budget)
    survey = _sky(work / "survey.zarr", 2_000 if quick else 100_000, size, 93)
    paths = [model.path for model in models]
    seconds: dict[str, list[float]] = {}
    for cascade in (False,) if quick else (False, True):
        for _ in range(1 if quick or cascade else 2):
            for name, which in (("one", paths[:1]), ("six", paths)):
                shutil.rmtree(work / "run", ignore_errors=True)
                started = time.perf_counter()
                limit = None if cascade or quick else 40_000
                run = galscan.scan(store=survey.path, model=which, out=work / "run", cascade=cascade, limit=limit)
                seconds.setdefault(f"{name}{'_first_look' if cascade else ''}", []).append(
                    time.perf_counter() - started
                )
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    looked = middle.get("six_first_look", np.nan) / middle.get("one_first_look", np.nan)
    return {
        "six_target_cost": middle["six"] / middle["one"], "six_target_cost_first_look": None if quick else looked,
        "target_seconds": seconds, "targets": list(run.targets),
    }  # fmt: skip


if __name__ == "__main__":
    main()
