"""How well morphology is known, what several targets cost in one scan, and how fast the likes of some are found.

    python -m tests.benchmarks.morphology [--quick] [--json]

The sky is simulated, with 10 to 40 volunteers a galaxy who walk down the tree of Galaxy Zoo 2. `vote_coverage_90` is
the fraction of vote fractions, of galaxies that trained nothing, within the 90 % intervals that were predicted for as
many volunteers as voted. `few_shot_gain` is of the one answer with fewer than fifty examples that can be injected into
real galaxies, the dust lane, with maps of the physical prior: completeness at the purity where the networks trained on
real galaxies alone find half, relative to theirs; every seed divides the galaxies again. `six_target_cost` is the time
of a scan for six targets over that of one of them, with the networks trained for all six; `six_target_scan_cost` the
same without what is done once for each target and survey, whatever its size: candidates and report.
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import galscan
from galscan.core.concurrency import cores
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import Schema, load_schema
from galscan.labels.settings import LabelRules, MapSettings, SyntheticSettings
from galscan.models.ensemble import member_outputs
from galscan.models.votes import expected_fractions, groups_of
from galscan.models.weights import load_network, save_network
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.dataset import Galaxies, load_galaxies, read_table
from galscan.training.synthetic import candidates_of, examples_of, inject
from galscan.training.train import Examples, train_classifier
from tests.benchmarks import similar
from tests.benchmarks._processes import side_by_side
from tests.benchmarks._record import arguments, record, work_folder
from tests.helpers import tiny_recipe

TARGETS = ("dustlane", "ring", "merger", "edge_on_no_bulge", "strong_bar", "bulge_spiral")
LANE = "t08_odd_feature_a38_dust_lane"
FEW = 40  # labelled galaxies with a leading vote for a dust lane
CPU = torch.device("cpu")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("morphology", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of each network")
    options = parser.parse_args(argv)
    quick, size = options.quick, 32 if options.quick else 64
    work = work_folder("morphology", options)
    figures = (
        few_shot(work, quick, options.seeds, options.steps)
        | _targets(work, size, quick)
        | similar.searches(work / "similar", 250_000 if quick else 1_000_000, options.seed)
    )
    record("morphology", options, figures)
    return figures


def _sky(path: Path, count: int, size: int, seed: int, **settings: Any) -> galscan.Store:
    sky = SimulatedSurvey(count=count, size=size, seed=seed, **settings)
    return galscan.open(ingest_survey(sky, path, workers=None).path)


@dataclass(frozen=True)
class Voted:
    """Galaxies with votes; `lanes` are those whose leading oddity is a dust lane."""

    galaxies: Galaxies
    schema: Schema
    rules: LabelRules
    labels: pd.DataFrame
    lanes: np.ndarray

    @classmethod
    def load(cls, path: Path, size: int) -> Voted:
        store, schema, rules = galscan.open(path), load_schema("gz2"), load_recipe("dustlane").schemas["gz2"]
        table = read_table([store], schema, rules).assign(split="")
        galaxies = load_galaxies([store], table, schema.names, size, seed=0, unlabelled=False)
        labels = galaxies.labels_and_votes(schema)
        leads = labels[LANE] >= labels[list(schema.tasks[7].answers)].max(axis=1)  # not where no volunteer answered
        return cls(galaxies, schema, rules, labels, leads.to_numpy())

    def divided(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows to learn from, a few with dust lanes the first of them, and rows to test with."""
        order = np.random.default_rng([seed, 1]).permutation(len(self.labels))
        test, rest = order[: len(order) // 2], order[len(order) // 2 :]
        return np.concatenate([rest[self.lanes[rest]][:FEW], rest[~self.lanes[rest]][: len(rest) // 2]]), test

    def examples(self, images: np.ndarray, target: np.ndarray, labels: pd.DataFrame) -> Examples:
        return Examples.from_labels(images, target, labels, self.schema.names, self.schema)


def few_shot(work: Path, quick: bool, seeds: int = 5, steps: int = 400) -> dict[str, Any]:
    """Return coverage of predicted votes and the gain by injected dust lanes, as `main` does."""
    seeds, steps = (2, 8) if quick else (seeds, steps)
    return _votes(work, 32 if quick else 64, steps, seeds, quick)


def _learn(store: Path, size: int, steps: int, seed: int, injected: int, path: Path) -> None:
    """Train a network to predict votes, with so many injected dust lanes or none. In a process of its own."""
    if path.is_file():
        return
    voted = Voted.load(store, size)
    train, _ = voted.divided(seed)
    images, target = voted.galaxies.images[train], voted.galaxies.table["target"].to_numpy()[train]
    real, synthetic = voted.examples(images, target, voted.labels.iloc[train]), None
    if injected:
        candidates = candidates_of(voted.galaxies, train, [galscan.open(store)], None, [], voted.schema, CPU)
        made, _ = inject(
            candidates, voted.schema, voted.rules, SyntheticSettings(injected=injected, mined=0),
            MapSettings(kind="maps", maps="prior"), path.parent, seed=seed, device=CPU,
        )  # fmt: skip
        synthetic = examples_of(made, made.target, voted.schema.names, voted.schema)
    settings = load_recipe("dustlane").classifier.model_copy(update={"morphology_weight": 1.0})
    network = train_classifier(real, synthetic, settings, steps=steps, seed=seed, device=CPU, label=path.stem)
    save_network(network, path)


def _votes(work: Path, size: int, steps: int, seeds: int, quick: bool) -> dict[str, Any]:
    """Train on votes with and without injected dust lanes, several times over."""
    store = work / "voted.zarr"
    _sky(store, 1_500 if quick else 12_000, size, 91, rare_fraction=0.04, votes=True)
    arms = {"real": 0, "injected": 60 if quick else 1_000}
    networks = {(name, seed): work / f"{name}-{seed}-{steps}.safetensors" for seed in range(seeds) for name in arms}
    jobs = [(store, size, steps, seed, arms[name], path) for (name, seed), path in networks.items()]
    side_by_side(_learn, jobs, cores())

    voted = Voted.load(store, size)
    answers, schema = voted.schema.names, voted.schema
    groups = groups_of(answers, schema)
    found: dict[str, list[Any]] = {"coverage": [], "real": [], "injected": [], "few": [], "tested": []}
    for seed in range(seeds):
        train, test = voted.divided(seed)
        found["few"].append(int(voted.lanes[train].sum()))
        found["tested"].append(int(voted.lanes[test].sum()))
        for name in arms:
            _, raw = member_outputs([load_network(networks[name, seed])], voted.galaxies.images[test], CPU)
            predicted = pd.DataFrame(expected_fractions(torch.from_numpy(raw[0]), groups).numpy(), columns=answers)
            # Of all volunteers: only those who answered yes before reach the question.
            score = (predicted[LANE] * predicted["t06_odd_a14_yes"]).to_numpy()
            found[name].append(_curve(score, voted.lanes[test]))
            if name == "real":
                found["coverage"].append(_coverage(raw, voted.labels.iloc[test], answers, schema))
    gains = []
    for real_curve, injected_curve in zip(found["real"], found["injected"], strict=True):
        purity = real_curve[1][np.searchsorted(real_curve[0], 0.5)]
        without, with_ = (c[0][c[1] >= purity].max(initial=0.0) for c in (real_curve, injected_curve))
        gains.append(with_ / without - 1 if without else np.nan)
    spread = np.random.default_rng(0).choice(gains, (4000, len(gains))).mean(1)
    return {
        "vote_coverage_90": float(np.mean(found["coverage"])), "vote_coverage_90_by_seed": found["coverage"],
        "few_shot_gain": float(np.mean(gains)), "few_shot_gain_lo": float(np.quantile(spread, 0.025)),
        "few_shot_gain_hi": float(np.quantile(spread, 0.975)), "few_shot_gain_by_seed": [float(g) for g in gains],
        "few_shot_examples": found["few"], "few_shot_tested": found["tested"], "vote_steps": steps,
    }  # fmt: skip


def _curve(score: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return completeness and purity down to each rank."""
    hits = truth[np.argsort(-score)].cumsum()
    return hits / hits[-1], hits / np.arange(1, len(hits) + 1)


def _coverage(raw: np.ndarray, labels: Any, answers: list[str], schema: Any) -> float:
    """Return the fraction of vote fractions within their 90 % intervals, of all questions that were answered."""
    from galscan.training.morphology import evaluate

    results = [q for q in evaluate(raw, labels, answers, schema)["questions"] if q["coverage"] is not None]
    weights = [q["n"] * len(q["answers"]) for q in results]
    return float(np.average([q["coverage"] for q in results], weights=weights))


def _recipe(path: Path, target: str, size: int) -> Path:
    """Write a shipped recipe for cutouts of `size` pixels: one network takes all targets at the same size."""
    text = re.sub(r"^size = \d+", f"size = {size}", load_recipe(target).text, count=1, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")
    return path


def _targets(work: Path, size: int, quick: bool) -> dict[str, Any]:
    """Scan for six targets and for one of them, in turn."""
    labelled_sky = _sky(work / "teach.zarr", 1_200 if quick else 16_000, size, 92, rare_fraction=0.03, labelled=0.4)
    write = tiny_recipe if quick else _recipe
    recipes = [str(write(work / f"{target}.toml", target, size=size)) for target in TARGETS]
    budget = None if quick else 4
    models = galscan.train_rare(recipes, store=labelled_sky.path, out=work / "six", synthetic=False, budget=budget)
    survey = _sky(work / "survey.zarr", 2_000 if quick else 50_000, size, 93)
    paths = [model.path for model in models]
    seconds: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for cascade in (False,) if quick else (False, True):
        for _ in range(1 if quick or cascade else 2):
            for name, which in (("one", paths[:1]), ("six", paths)):
                shutil.rmtree(work / "run", ignore_errors=True)
                started = time.perf_counter()
                limit = None if cascade or quick else 20_000
                run = galscan.scan(store=survey.path, model=which, out=work / "run", cascade=cascade, limit=limit)
                how = f"{name}{'_first_look' if cascade else ''}"
                seconds.setdefault(how, []).append(time.perf_counter() - started)
                rates.setdefault(how, []).append(run.info.images_per_s)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    looked = middle.get("six_first_look", np.nan) / middle.get("one_first_look", np.nan)
    return {
        "six_target_cost": middle["six"] / middle["one"], "six_target_cost_first_look": None if quick else looked,
        "six_target_scan_cost": statistics.median(rates["one"]) / statistics.median(rates["six"]),
        "target_seconds": seconds, "target_rates": rates, "targets": list(run.targets),
    }  # fmt: skip


if __name__ == "__main__":
    main()
