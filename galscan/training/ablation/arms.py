"""Arms of an ablation, division of the objects, and evaluation of the scores.

An arm changes a few settings of the recipe's classifier. Data, number of steps, network and classical augmentation are
the same for all arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.recipe import Recipe
from galscan.labels.settings import (
    ClassifierSettings,
    GeneratorSettings,
    MapSettings,
    StableDiffusionSettings,
    SyntheticSettings,
)
from galscan.stats import metrics
from galscan.stats.metrics import METRICS, Scored, WorkingPoint

PRIOR, MAPS, BOTH, IMAGES = SYNTHETIC = ("prior", "maps", "both", "images")  # kinds of synthetic training sets
MAP_KINDS = {PRIOR: "prior", MAPS: "diffusion", BOTH: "both"}  # of `MapSettings.maps`
_NO_HEADS = {"morphology_weight": 0.0}
_OVERSAMPLED = {"sampling": "oversampled", "loss": "plain"}


@dataclass(frozen=True)
class Arm:
    """A training method, defined by changes to the recipe's settings."""

    title: str
    kind: str = ""
    """Kind of synthetic galaxies: "" (none), "prior" (maps of the physical prior injected into real galaxies), "maps"
    (maps sampled by the diffusion model, injected), "both" or "images" (whole images)."""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        return bool(self.kind)

    @property
    def injected(self) -> bool:
        """Whether it needs the recipe's ``inject`` rule."""
        return self.kind in MAP_KINDS

    @property
    def generated(self) -> bool:
        """Whether it needs a generator of whole images."""
        return self.kind == IMAGES

    def settings(self, recipe: ClassifierSettings) -> ClassifierSettings:
        """Return the recipe's settings with this arm's changes."""
        return recipe.model_copy(update=dict(self.changes))


ARMS: dict[str, Arm] = {
    "plain": Arm("every galaxy as often as any other", "", {"sampling": "natural", "loss": "plain", **_NO_HEADS}),
    "weighted": Arm("positives weighted up", "", {"sampling": "natural", "loss": "weighted", **_NO_HEADS}),
    "focal": Arm("focal loss", "", {"sampling": "natural", "loss": "focal", **_NO_HEADS}),
    "oversampled": Arm("oversampled with classical augmentation", "", {**_OVERSAMPLED, **_NO_HEADS}),
    "attributes": Arm("real only, with morphology heads", "", _OVERSAMPLED),
    "prior": Arm("features of the physical prior injected into real galaxies", PRIOR, _OVERSAMPLED),
    "maps": Arm("features sampled by the diffusion model, injected into real galaxies", MAPS, _OVERSAMPLED),
    "both": Arm("features of the prior and sampled features like measured ones, injected", BOTH, _OVERSAMPLED),
    "images": Arm("whole images by a diffusion model", IMAGES, _OVERSAMPLED),
    "without_hosts": Arm("as both, without the unmodified hosts", BOTH, {**_OVERSAMPLED, "hosts": 0.0}),
    "fewer": Arm("as both, with half as many synthetic positives", BOTH, {**_OVERSAMPLED, "synthetic_positives": 0.12}),
    "to_the_end": Arm("as both, with synthetic galaxies to the last step", BOTH, {**_OVERSAMPLED, "real_last": 0.0}),
}
VARIANTS = ("without_hosts", "fewer", "to_the_end")  # compared only on request
BASELINES = ("plain", "weighted", "focal", "oversampled")
# The reference arm: its network, trained on real galaxies, selects unlabelled hosts and filters generated images.
REFERENCE = "attributes"
REAL_ONLY = (*BASELINES, REFERENCE)


def generator_settings(recipe: Recipe) -> GeneratorSettings | StableDiffusionSettings:
    """Return the settings of the generator of whole images: the recipe's, or defaults if it injects features."""
    return GeneratorSettings() if isinstance(recipe.generator, MapSettings) else recipe.generator


def image_settings(recipe: Recipe) -> SyntheticSettings:
    """Return the settings of generated whole images: the recipe's, or defaults if the recipe has none."""
    if recipe.synthetic.positives:
        return recipe.synthetic
    return recipe.synthetic.model_copy(update={"positives": SyntheticSettings().positives})


# Division of the objects


@dataclass(frozen=True)
class Repeat:
    """One division of the objects into training and test sets."""

    number: int
    seed: int
    fold: int
    side: pd.Series
    """"train" or "test" by object (`galscan.training.dataset.read_table`); other objects are not used."""
    counts: dict[str, dict[str, int]]
    """Numbers of objects by side and kind: positives, negatives, ambiguous."""

    def has(self, objects: pd.Series, side: str) -> np.ndarray:
        """Return a mask of `objects` on that side."""
        return (objects.map(self.side) == side).to_numpy()


def labelled_objects(table: pd.DataFrame, answers: Sequence[str]) -> pd.Series:
    """Return the target (1, 0, NaN = ambiguous) of every labelled object, by name."""
    labelled = table[table[list(answers)].notna().any(axis=1)]
    return labelled.groupby("object")["target"].max()


def make_repeats(
    objects: pd.Series,
    *,
    seeds: int,
    folds: int,
    positives: int | None,
    negatives: int | None,
    max_test: int | None,
    seed: int,
    reserved: int = 0,
) -> list[Repeat]:
    """Divide objects by name, stratified, once for each of `seeds` and `folds`.

    With one fold, `positives` (default half) are trained on and the rest is the test set; with more, each fold is the
    test set once, and `positives` (default all) of the other folds are trained on. `negatives` (default: in the
    proportion of the positives) are trained on, and ambiguous objects (for morphology only, never in the test set) in
    the proportion of the negatives. The test set has at most `max_test` negatives. The first `reserved` positives are
    never in the test set, so that calls with different `positives` have the same test set.
    """
    of_kind = {
        name: objects.index[kind].to_numpy(object)
        for name, kind in (("positives", objects == 1), ("negatives", objects == 0), ("ambiguous", objects.isna()))
    }
    n = {name: len(ids) for name, ids in of_kind.items()}
    if folds > 1 and n["positives"] < 2 * folds:
        raise InputError(f"--folds {folds}: {n['positives']} positives are too few; use at most {n['positives'] // 2}")
    limit = n["positives"] - (2 if folds == 1 else -(-n["positives"] // folds))
    train_positives = positives if positives is not None else n["positives"] // 2 if folds == 1 else limit
    if reserved and folds > 1:
        raise InputError(f"--reserved {reserved}: with --folds {folds} every positive is tested once; omit one of them")
    for option, value in (("positives", train_positives), ("reserved", reserved)):
        if not 0 <= value <= limit:
            raise InputError(
                f"--{option} {value}: of {n['positives']} positives, 0 to {limit} are possible; choose one"
            )
    if not train_positives and negatives is None:
        raise InputError("--positives 0 needs --negatives, the number of negatives to train on")
    train_negatives = min(negatives or round(train_positives * n["negatives"] / n["positives"]), n["negatives"])
    count = {"positives": train_positives, "negatives": train_negatives}
    count["ambiguous"] = round(n["ambiguous"] * train_negatives / n["negatives"])
    repeats: list[Repeat] = []
    for s in range(seeds):
        random = np.random.default_rng([seed, s])
        shuffled = {name: random.permutation(ids) for name, ids in of_kind.items()}
        for fold in range(folds):
            pool = shuffled
            if folds == 1:
                not_tested = {"positives": max(train_positives, reserved), "negatives": count["negatives"]}
                test = {name: shuffled[name][first:] for name, first in not_tested.items()}
            else:
                test = {name: shuffled[name][fold::folds] for name in ("positives", "negatives")}
                pool = shuffled | {name: shuffled[name][np.arange(n[name]) % folds != fold] for name in test}
            train = {name: pool[name][: count[name]] for name in count}
            test["negatives"] = test["negatives"][:max_test]
            left = len(train["negatives"]), len(test["negatives"])
            if min(left) < 2:
                raise InputError(
                    f"{n['negatives']} negatives leave {left[0]} for training and {left[1]} for testing, and at least "
                    "2 each are needed; change --positives or --negatives"
                )
            sides = {"train": train, "test": test}
            side = {i: name for name, kinds in sides.items() for ids in kinds.values() for i in ids}
            counts = {name: {kind: len(ids) for kind, ids in kinds.items()} for name, kinds in sides.items()}
            repeats.append(Repeat(len(repeats), s, fold, pd.Series(side, dtype=object), counts))
    return repeats


# Evaluation of the scores


def evaluate(
    repeats: Sequence[Scored], point: WorkingPoint, *, survey_size: int, method: str, seed: int
) -> dict[str, Any]:
    """Return the metrics of every arm, gains over real-only arms, and curves; JSON-able.

    The best baseline is selected for each metric by its mean; the selection is not repeated in the bootstrap. Metrics
    at ``point`` are for its prevalence.
    """
    values, draws = metrics.measure(repeats, point), metrics.bootstrap(repeats, point, seed)
    targets = point.prevalence * survey_size

    def gain(name: str, baseline: Mapping[str, str]) -> dict[str, Any]:
        """Return the gain in each metric over the baseline of that metric."""
        gains = {
            metric: {"against": (other := baseline[metric])}
            | _gain(values[name][:, k], draws[name][:, k], values[other][:, k], draws[other][:, k])
            for k, metric in enumerate(METRICS)
        }
        found = gains["completeness"]
        ratio, low, high = (None if found[key] is None else 1 + found[key] for key in ("gain", "lo", "hi"))
        words = {"against": found["against"], "note": found["note"]}
        return gains | {"detections": words | {"ratio": ratio, "lo": low, "hi": high}}

    arms: dict[str, Any] = {}
    for name in values:
        arms[name] = {"title": ARMS[name].title, "synthetic": ARMS[name].synthetic}
        for k, metric in enumerate(METRICS):
            arms[name][metric] = _interval(values[name][:, k], draws[name][:, k])
        arms[name]["detections"] = {key: x * targets for key, x in arms[name]["completeness"].items() if key != "each"}
    baselines = [name for name in REAL_ONLY if name in values]
    best = {m: max(baselines, key=lambda name: arms[name][m]["mean"]) for m in METRICS}
    gains: dict[str, Any] = {}
    for name in (n for n in values if ARMS[n].synthetic or n == REFERENCE):
        gains[name] = {"best_baseline": gain(name, best)}
        if REFERENCE in values and name != REFERENCE:
            gains[name][REFERENCE] = gain(name, dict.fromkeys(METRICS, REFERENCE))
    return {"method": method, "arms": arms, "best_baseline": best, "gains": gains, "curves": _curves(repeats, point)}


def _interval(values: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(values.mean()), "lo": float(low), "hi": float(high), "each": values.tolist()}


def _gain(values: np.ndarray, draws: np.ndarray, baseline: np.ndarray, baseline_draws: np.ndarray) -> dict[str, Any]:
    """Return the relative gain of a mean over the baseline's, with its paired interval; an infinite bound is None.

    In draws where the baseline is 0, the gain is infinite, or -1 if both are 0, which is conservative for the lower
    bound.
    """
    if not baseline.mean() > 0:
        return {"gain": None, "lo": None, "hi": None, "note": "the baseline finds none"}
    ratios = np.divide(draws, baseline_draws, out=np.where(draws > 0, np.inf, 0.0), where=baseline_draws > 0)
    ends = np.quantile(ratios, 0.025, method="lower"), np.quantile(ratios, 0.975, method="higher")
    low, high = (float(end) - 1 if np.isfinite(end) else None for end in ends)
    note = "no upper bound: in some resamples the baseline finds none" if high is None else ""
    return {"gain": float(values.mean() / baseline.mean()) - 1, "lo": low, "hi": high, "note": note}


def _curves(repeats: Sequence[Scored], point: WorkingPoint) -> dict[str, Any]:
    """Return the largest purity at each completeness or above: mean, minimum and maximum over repeats."""
    grid = np.linspace(0.02, 1, 50)
    curves: dict[str, Any] = {"completeness": grid.round(4).tolist()}
    for name in repeats[0].scores:
        rows = []
        for repeat in repeats:
            completeness, purity = metrics.rank_targets(repeat.scores[name], repeat.targets).curve(point.prevalence)
            envelope = np.maximum.accumulate(purity[::-1])[::-1]
            rows.append(envelope[np.searchsorted(completeness, grid - 1e-9).clip(max=len(purity) - 1)])
        low, mean, high = np.min(rows, 0), np.mean(rows, 0), np.max(rows, 0)
        curves[name] = {"purity": mean.tolist(), "lo": low.tolist(), "hi": high.tolist()}
    return curves


# Text


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on the gain of the method over the best baseline and over the reference arm."""
    gains, title = result["gains"][result["method"]], result["arms"][result["method"]]["title"]
    lines = []
    for label, words in (
        ("best_baseline", "the best baseline"),
        (REFERENCE, "the same network without synthetic galaxies"),
    ):
        if label not in gains:
            continue
        ap, found = gains[label]["ap"], gains[label]["detections"]
        comparison = "gains over" if ap["lo"] > 0 else "loses against" if ap["hi"] < 0 else "shows no certain gain over"
        if found["ratio"] is None:
            ratio = f"no ratio of detections ({found['note']})"
        else:
            ends = [format(end, ".2f") if end is not None else "no upper bound" for end in (found["lo"], found["hi"])]
            ratio = f"{found['ratio']:.2f} times its detections at purity {result['point']['purity']:g} "
            ratio += f"({ends[0]} to {ends[1]})"
        lines.append(
            f"The arm '{title}' {comparison} {words}: average precision {100 * ap['gain']:+.1f} % "
            f"({100 * ap['lo']:+.1f} to {100 * ap['hi']:+.1f}) over '{ap['against']}', {ratio}."
        )
    return lines


def as_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per arm, with every metric and its interval."""
    rows = []
    for name, arm in result["arms"].items():
        rows.append({"arm": name, "title": arm["title"], "synthetic": arm["synthetic"]})
        for metric in (*METRICS, "detections"):
            ends = {"": "mean", "_lo": "lo", "_hi": "hi"}
            rows[-1] |= {f"{metric}{suffix}": arm[metric][end] for suffix, end in ends.items()}
    return pd.DataFrame(rows)


def as_text(result: Mapping[str, Any]) -> str:
    """Return table and verdict as text."""
    point = result["point"]
    heads = ("AP", f"completeness at purity {point['purity']:g}", f"purity at completeness {point['completeness']:g}")
    width = max(13, *(len(name) + 1 for name in result["arms"]))
    lines = [f"{'arm':<{width}}" + "".join(f"{h:>29}" for h in heads) + f"{'detections':>12}"]
    for name, arm in result["arms"].items():
        cells = [f"{arm[m]['mean']:.3f} [{arm[m]['lo']:.3f}, {arm[m]['hi']:.3f}]" for m in METRICS]
        mark = "  <- method" if name == result["method"] else ""
        lines.append(
            f"{name:<{width}}" + "".join(f"{c:>29}" for c in cells) + f"{arm['detections']['mean']:>12.1f}{mark}"
        )
    return "\n".join([*lines, *verdict(result)])
