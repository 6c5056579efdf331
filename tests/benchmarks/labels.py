"""Few labels on real galaxies: trained on real ones only, beside real and synthetic ones.

    python -m tests.benchmarks.labels [--quick] [--json] [--seeds N] [--workers N]

Classes of Galaxy Zoo 1 (``gz1-sdss``), and spirals and odd galaxies of Galaxy Zoo 2 (``gz2-kaggle``; both of
``GALSCAN_TEST_DATA``, default ``../shared/data``). Four in ten of the labelled galaxies are the test set, the same in
every repeat; of the others 50, 200 or 1,000 keep their labels, drawn by the seed as the survey has them, but at least
three of every class. All others still train the generator, without labels: from the base weights, once for a data set,
and for every repeat a little longer with the repeat's labels. It then draws galaxies of every class; a network that
never saw one of them screens them, as in ``train-rare``. One network learns all classes of a data set:

    real       on the labelled galaxies, rare classes oversampled, as ``train-rare --no-synthetic`` does
    natural    the same, every galaxy as often as any other
    augmented  as `real`, and with what the generator drew

All three take as many steps. Average precision, and completeness at 80 % purity, are those of one class against the
rest at its prevalence in the test set; gains are of `augmented` over `real` (``over_better``: over the better of
`real` and `natural`), differences with 95 % intervals from resampled repeats and test galaxies, in pairs.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

import galscan
from galscan.core.concurrency import cores
from galscan.core.files import atomic_path, read_json, write_json, write_text
from galscan.labels.recipe import (
    ClassifierSettings,
    GeneratorSettings,
    LabelRules,
    Split,
    SyntheticRule,
    SyntheticSettings,
)
from galscan.labels.schema import Schema, load_schema
from galscan.models.ensemble import member_scores
from galscan.models.network import GalaxyNet
from galscan.models.roles import one_row_per_object
from galscan.models.weights import load_network, save_network
from galscan.stats.metrics import METRICS, Scored, WorkingPoint, bootstrap, measure
from galscan.synthesis import backends
from galscan.synthesis.evaluation import ReferenceClassifier, filter_synthetic
from galscan.synthesis.synthetic_set import SyntheticSet, generate_set, read_synthetic_set, write_synthetic_set
from galscan.training.dataset import Galaxies, join_targets, load_galaxies, read_table, target_column, targets_of
from galscan.training.train import Examples, train_classifier
from tests.benchmarks._processes import side_by_side
from tests.benchmarks._record import DATA, arguments, record, work_folder

FOLDERS = {"gz1": "gz1-sdss", "gz2": "gz2-kaggle"}
CLASSES = {"gz1": ("elliptical", "spiral", "edge_on", "merger"), "gz2": ("spiral", "odd")}
ARMS = ("real", "natural", "augmented")
CENTRE, SIZE = 64, 32  # of the 96 px the galaxy fills the middle; pixels on a side of the cutouts
FEWEST = 3  # of a class among the labelled
PURITY = 0.8
CPU = torch.device("cpu")

SCHEMA = """name = "{dataset}_few"
title = "Classes of {dataset}, 1 or 0 each"
kind = "attributes"
reference = "Lintott et al. 2011, MNRAS 410, 166; Willett et al. 2013, MNRAS 435, 2835"
"""
ANSWER = """
[[answer]]
name = "{answer}"
low = 0.0
high = 1.0
"""


class Settings(NamedTuple):
    """Of everything that is trained and drawn."""

    classifier: ClassifierSettings
    generator: GeneratorSettings
    common: int
    """Steps of the generator that all repeats begin with; ``generator.steps`` are those of each."""
    synthetic: SyntheticSettings


FULL = Settings(
    ClassifierSettings(steps=300), GeneratorSettings(steps=250, rare_share=0.3), 1_500,
    SyntheticSettings(injected=0, positives=120, negatives=60, steps=14),
)  # fmt: skip
QUICK = Settings(
    ClassifierSettings(steps=8, width=8), GeneratorSettings(steps=4), 4,
    SyntheticSettings(injected=0, positives=16, negatives=8, steps=4),
)  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("labels", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=3, help="repeats with other labelled galaxies and networks")
    parser.add_argument(
        "--workers", type=int, default=cores(), help="repeats at a time, each on its share of the cores"
    )
    options = parser.parse_args(argv)
    quick = options.quick
    work = work_folder("labels", options).absolute()
    os.environ["GALSCAN_HOME"] = str(work / "home")  # its label schemas are nobody's else
    counts, seeds = ((20, 60), 1) if quick else ((50, 200, 1_000), options.seeds)
    settings = QUICK if quick else FULL
    for name in CLASSES:
        _prepare(name, work / name, 1_000 if quick else None, settings)
    trials = [
        Repetition(name, work / name, count, options.seed + seed, settings)
        for count in counts for seed in range(seeds) for name in CLASSES
    ]  # fmt: skip
    side_by_side(_common, [(name, work / name, settings) for name in CLASSES], options.workers)
    side_by_side(Repetition.run, [(trial,) for trial in trials], options.workers)
    figures = _figures(trials, options.seed) | {
        "seeds": seeds, "size": SIZE, "classifier_steps": settings.classifier.steps,
        "generator_steps": [settings.common, settings.generator.steps], "seconds": _seconds(work),
        "workers": options.workers,
    }  # fmt: skip
    record("labels", options, figures)
    print(_table(figures["table"]), file=sys.stderr)
    return figures


def _prepare(name: str, folder: Path, most: int | None, settings: Settings) -> None:
    """Write what a user would have, pictures with a catalog and a label schema, and ingest it."""
    folder.mkdir(parents=True, exist_ok=True)
    _same(folder / "settings.txt", repr(settings))
    schema, images = folder / "schema.toml", folder / "images"
    write_text(schema, SCHEMA.format(dataset=name) + "".join(ANSWER.format(answer=a) for a in CLASSES[name]))
    if (folder / "survey.zarr").is_dir():
        return
    catalog = pd.read_csv(DATA / FOLDERS[name] / "catalog.csv", dtype=str)
    if most:
        catalog = catalog.sample(most, random_state=0).reset_index(drop=True)
    images.mkdir(exist_ok=True)
    for number, file in zip(catalog["id"], catalog["file"], strict=True):
        with Image.open(DATA / FOLDERS[name] / file) as picture:
            edge = (picture.width - CENTRE) // 2
            picture.crop((edge, edge, edge + CENTRE, edge + CENTRE)).save(images / f"{number}.png")
    catalog[["id"]].join(_classes(name, catalog)).to_csv(images / "catalog.csv", index=False)
    galscan.ingest("local", path=images, labels=[str(schema)], size=SIZE, out=folder / "survey.zarr")


def _same(path: Path, text: str) -> None:
    """Write `text`; a run with other settings is not resumed."""
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path} is of a run with other settings; give another --work")
    write_text(path, text)


def _classes(name: str, catalog: pd.DataFrame) -> pd.DataFrame:
    """Return 1 or 0 for every class; empty where nobody could tell, and of Galaxy Zoo 2 where either is not known."""
    if name == "gz1":
        kind = catalog["label"].replace({"clockwise": "spiral", "anticlockwise": "spiral"})
        known = kind.isin(CLASSES[name])
        found = pd.DataFrame({answer: (kind == answer).astype(float) for answer in CLASSES[name]})
    else:
        known = catalog["leading_answer"].notna() & catalog["spiral"].notna()
        odd = (catalog["leading_answer"] == "odd").astype(float)
        found = pd.DataFrame({"spiral": catalog["spiral"].astype(float), "odd": odd})
    return found[known].reindex(catalog.index)


@dataclass(frozen=True)
class Data:
    """The galaxies of a data set in memory."""

    survey: str
    schema: Schema
    rules: list[LabelRules]
    """One for each class."""
    galaxies: Galaxies
    targets: np.ndarray
    """1 or 0, NaN where it is not known; shape (n, classes)."""

    @classmethod
    def load(cls, name: str, folder: Path) -> Data:
        store, schema = galscan.open(folder / "survey.zarr"), load_schema(str(folder / "schema.toml"))
        rules = [
            LabelRules(
                positive=f"{answer} >= 0.5", negative=f"{answer} < 0.5", morphology=tuple(schema.names),
                synthetic=SyntheticRule(base=f"{answer} >= 0.5", weights={answer: 1.5}),
            )
            for answer in schema.names
        ]  # fmt: skip
        tables = {answer: read_table([store], schema, rule) for answer, rule in zip(schema.names, rules, strict=True)}
        # Nothing is calibrated here: the calibration galaxies are among those that may train.
        table = join_targets(tables, Split(train=0.5, calibration=0.1, test=0.4), seed=0)
        galaxies = load_galaxies([store], table, schema.names, SIZE, seed=0, unlabelled=True)
        targets = galaxies.table[[target_column(answer) for answer in schema.names]].to_numpy(np.float32)
        return cls(store.name, schema, rules, galaxies, targets)

    @property
    def test(self) -> np.ndarray:
        table = self.galaxies.table
        return np.flatnonzero((table["split"] == "test") & one_row_per_object(table))

    def examples(self, images: np.ndarray, targets: np.ndarray, labels: pd.DataFrame) -> Examples:
        return Examples.from_labels(images, targets, labels, self.schema.names, self.schema)

    def labelled(self, count: int, seed: int) -> np.ndarray:
        """Return rows of `count` galaxies, none of them of the test set, with at least a few of every class."""
        side = np.setdiff1d(np.flatnonzero(np.isfinite(self.targets).all(1)), self.test)
        order = np.random.default_rng([seed, 29]).permutation(side)
        needed = np.unique(np.concatenate([order[positive[order]][:FEWEST] for positive in self.targets.T == 1]))
        others = order[~np.isin(order, needed)]
        return np.sort(np.concatenate([needed, others[: count - len(needed)]]))

    def train_generator(
        self, rows: np.ndarray, settings: GeneratorSettings, out: Path, name: str, seed: int, start: Path | None = None
    ) -> None:
        """Train a generator on all galaxies but the test set, and on the labels of `rows` alone."""
        ids, shown = self.galaxies.table["id"], np.isin(np.arange(len(self.targets)), rows)
        apart = np.setdiff1d(np.arange(len(self.targets)), self.test)
        assert not set(ids.iloc[apart]) & set(ids.iloc[self.test]), "a galaxy of the test set would train"
        labels = self.galaxies.labels.copy()
        labels.loc[~shown] = np.nan
        table = self.galaxies.table.assign(target=self.galaxies.table["target"].where(shown), split="")
        side = Galaxies(self.galaxies.images[apart], table.iloc[apart], labels.iloc[apart])
        backends.train(
            side.generator_set(settings), self.schema, [self.survey], settings, out, name=name, seed=seed,
            device=CPU, start=start,
        )  # fmt: skip


def _common(name: str, folder: Path, settings: Settings) -> None:
    """Train a generator on the galaxies of a data set but for the test set, without labels. In a process of its own."""
    if not backends.find(folder, "common"):
        with _timed(folder, "generator, common"):
            how = settings.generator.model_copy(update={"steps": settings.common})
            Data.load(name, folder).train_generator(np.empty(0, int), how, folder, "common", seed=0)


@dataclass(frozen=True)
class Repetition:
    """One repeat with so many labels; every stage leaves its result in `folder`."""

    dataset: str
    place: Path
    count: int
    seed: int
    settings: Settings

    @property
    def folder(self) -> Path:
        return self.place / f"{self.count}-{self.seed}"

    def run(self) -> None:
        """Do what is not done. In a process of its own."""
        if (self.folder / "scores.parquet").is_file():
            return
        self.folder.mkdir(exist_ok=True)
        data = Data.load(self.dataset, self.place)
        rows, test = data.labelled(self.count, self.seed), data.test
        assert not set(rows) & set(test), "a galaxy of the test set would train"
        real = data.examples(data.galaxies.images[rows], data.targets[rows], data.galaxies.labels.iloc[rows])
        networks = {arm: self._network(arm, real, None) for arm in ("real", "natural")}
        synthetic, made = self._generate(data, rows, networks["real"]), None
        if len(synthetic):
            targets = [targets_of(synthetic.labels, data.schema, rules) for rules in data.rules]
            made = data.examples(synthetic.images, np.stack(targets, 1), synthetic.labels)
        networks["augmented"] = self._network("augmented", real, made)
        columns = {"id": data.galaxies.table["id"].to_numpy()[test]}
        scores = {arm: member_scores([n], data.galaxies.images[test], CPU)[0] for arm, n in networks.items()}
        for k, answer in enumerate(data.schema.names):
            columns[answer] = data.targets[test, k].astype(int)
            columns |= {f"{arm} {answer}": scores[arm][:, k] for arm in ARMS}
        positives = (data.targets[rows] == 1).sum(0).tolist()
        write_json(self.folder / "labelled.json", dict(zip(data.schema.names, positives, strict=True)))
        with atomic_path(self.folder / "scores.parquet") as temporary:
            pd.DataFrame(columns).to_parquet(temporary, index=False)

    def _network(self, arm: str, real: Examples, made: Examples | None) -> GalaxyNet:
        path, settings = self.folder / f"{arm}.safetensors", self.settings.classifier
        if arm == "natural":
            settings = settings.model_copy(update={"sampling": "natural"})
        if not path.is_file():
            with _timed(self.folder, "classifiers"):
                network = train_classifier(
                    real, made, settings, steps=settings.steps, seed=self.seed, device=CPU,
                    label=f"{self.dataset}, {self.count} labels, seed {self.seed}: {arm}",
                )  # fmt: skip
            save_network(network, path)
        return load_network(path)

    def _generate(self, data: Data, rows: np.ndarray, network: GalaxyNet) -> SyntheticSet:
        """Generate galaxies of every class, and return those that a network trained on real ones accepts."""
        path = self.folder / "synthetic.zarr"
        if path.is_dir():
            return read_synthetic_set(path, data.schema.name)
        if not backends.find(self.folder):
            with _timed(self.folder, "generator"):
                common = backends.find(self.place, "common")
                data.train_generator(rows, self.settings.generator, self.folder, "generator", self.seed, common)
        generator, survey = backends.load(self.folder), data.galaxies.table["survey"].to_numpy()[rows]
        images, parts, dropped = data.galaxies.images[rows], [], Counter[str]()
        with _timed(self.folder, "synthetic"):
            for k, rules in enumerate(data.rules):
                synthetic = generate_set(
                    generator, data.galaxies.conditions(rows), data.targets[rows, k], survey, rules,
                    self.settings.synthetic, seed=self.seed * len(data.rules) + k, device=CPU,
                )  # fmt: skip
                reference = ReferenceClassifier(network.only(k), data.schema.names, data.schema, CPU)
                accepted = filter_synthetic(synthetic, images, reference, rules, data.schema)
                dropped.update(accepted.loc[~accepted["kept"], "reason"])
                parts.append(synthetic.select(accepted["kept"].to_numpy()))
        kept = SyntheticSet.joined(parts)
        write_json(self.folder / "dreams.json", {"kept": len(kept), "dropped": dict(dropped)})
        if len(kept):
            write_synthetic_set(kept, path, f"dreams-{self.dataset}", data.schema, {"seed": self.seed})
        return kept

    def scored(self, answer: str) -> Scored:
        """Return the scores of a class by each arm."""
        table = pd.read_parquet(self.folder / "scores.parquet")
        scores = {arm: table[f"{arm} {answer}"].to_numpy() for arm in ARMS}
        return Scored(table["id"].to_numpy(object), table[answer].to_numpy(int), scores)


@contextmanager
def _timed(folder: Path, stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    path = folder / "seconds.json"
    spent = read_json(path) if path.is_file() else {}
    write_json(path, spent | {stage: round(spent.get(stage, 0.0) + time.monotonic() - started, 1)})


def _seconds(work: Path) -> dict[str, float]:
    """Return how long the stages took, over all processes and calls."""
    whole: Counter[str] = Counter()
    for path in work.glob("**/seconds.json"):
        whole.update(read_json(path))
    return {stage: round(spent, 1) for stage, spent in whole.items()}


# What the scores say

GAINS = ("gain", "gain_over_better", "completeness_gain")


def _figures(trials: list[Repetition], seed: int) -> dict[str, Any]:
    """Return a row for each class and number of labels, and the mean gains over all classes."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for count in dict.fromkeys(trial.count for trial in trials):
        values, draws = [], []
        for dataset, answers in CLASSES.items():
            same = [trial for trial in trials if (trial.dataset, trial.count) == (dataset, count)]
            for answer in answers:
                row, value, drawn = _row(same, answer, seed)
                rows.append({"data": dataset, "class": answer, "labels": count} | row)
                values.append(value)
                draws.append(drawn)
        # Classes of one data set meet the same draws of repeats and galaxies, so their mean is paired as well.
        figures |= _with_intervals([f"{name}_{count}" for name in GAINS], np.mean(values, 0), np.mean(draws, 0))
        for arm in ARMS:
            figures[f"ap_{arm}_{count}"] = float(np.mean([row[f"ap_{arm}"] for row in rows if row["labels"] == count]))
        figures[f"dreams_{count}"] = _kept([trial for trial in trials if trial.count == count])
    return figures | {"table": rows}


def _row(trials: list[Repetition], answer: str, seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Return the figures of a class, its `GAINS`, and draws of them, (draws, gains)."""
    repeats = [trial.scored(answer) for trial in trials]
    truth = repeats[0].targets
    point = WorkingPoint(float(truth.mean()), PURITY, 0.5)
    drawn = bootstrap(repeats, point, seed)
    means = {arm: value.mean(0) for arm, value in measure(repeats, point).items()}
    ap, completeness = METRICS.index("ap"), METRICS.index("completeness")
    row: dict[str, Any] = {
        "positives": [read_json(trial.folder / "labelled.json")[answer] for trial in trials],
        "test_positives": int(truth.sum()), "test": len(truth),
    }  # fmt: skip
    for arm in ARMS:
        names = [f"ap_{arm}", f"completeness_{arm}"]
        row |= _with_intervals(names, means[arm][[ap, completeness]], drawn[arm][:, [ap, completeness]])
    better = max(("real", "natural"), key=lambda arm: means[arm][ap])  # which favours it, as it is chosen here
    against = (("real", ap), (better, ap), ("real", completeness))
    gains = np.array([means["augmented"][k] - means[arm][k] for arm, k in against])
    draws = np.stack([drawn["augmented"][:, k] - drawn[arm][:, k] for arm, k in against], 1)
    return row | _with_intervals(GAINS, gains, draws), gains, draws


def _with_intervals(names: Sequence[str], values: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Return values by name, with the ends of their 95 % intervals."""
    ends = np.percentile(draws, [2.5, 97.5], axis=0)
    columns = [(values, ""), (ends[0], "_lo"), (ends[1], "_hi")]
    return {f"{name}{mark}": round(float(row[k]), 4) for k, name in enumerate(names) for row, mark in columns}


def _kept(trials: list[Repetition]) -> dict[str, int]:
    """Return how many images were kept, and dropped for which reason, in all of some trials."""
    whole: Counter[str] = Counter()
    for trial in trials:
        notes = read_json(trial.folder / "dreams.json")
        whole.update({"kept": notes["kept"]} | notes["dropped"])
    return dict(whole)


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the rows for people."""
    heads = ["data", "class", "labels (positive)", "test", *(f"AP {arm}" for arm in ARMS), "gain", "over the better"]
    heads += [f"completeness at {PURITY:.0%} purity: real", "augmented", "gain"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in rows:
        gain, better, more = (f"{r[g]:+.3f} ({r[f'{g}_lo']:+.3f} to {r[f'{g}_hi']:+.3f})" for g in GAINS)
        cells = [
            r["data"], r["class"], f"{r['labels']} ({', '.join(map(str, r['positives']))})",
            f"{r['test_positives']} of {r['test']}", *(f"{r[f'ap_{arm}']:.3f}" for arm in ARMS), gain, better,
            *(f"{r[f'completeness_{arm}']:.2f}" for arm in ("real", "augmented")), more,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
