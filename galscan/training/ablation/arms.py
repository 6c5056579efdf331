"""What synthetic galaxies bring: the arms that are compared, how objects are divided, and what the scores say.

An arm changes a few settings of the recipe's classifier and nothing else: data, number of steps, network and
classical augmentation are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.settings import ClassifierSettings
from galscan.stats import metrics
from galscan.stats.metrics import METRICS, Scored, WorkingPoint

PRIOR, MAPS, BOTH, IMAGES = SYNTHETIC = ("prior", "maps", "both", "images")  # kinds of synthetic training sets
MAP_KINDS = {PRIOR: "prior", MAPS: "diffusion", BOTH: "both"}  # of `MapSettings.maps`
_NO_HEADS = {"morphology_weight": 0.0}
_OVERSAMPLED = {"sampling": "oversampled", "loss": "plain"}


@dataclass(frozen=True)
class Arm:
    """One way to train, by what it changes in the recipe's settings."""

    title: str
    kind: str = ""
    """Which synthetic galaxies it is trained on: none, "prior" (maps of the physical prior injected into real ones),
    "maps" (maps sampled by the diffusion model, injected alike), "both" or "images" (whole images)."""
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dreams(self) -> bool:
        """Whether it is trained on any."""
        return bool(self.kind)

    @property
    def injected(self) -> bool:
        """Whether it needs the recipe's ``inject`` rule."""
        return self.kind in MAP_KINDS

    @property
    def drawn(self) -> bool:
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
    "both": Arm("features of the prior, and sampled ones like measured ones, injected", BOTH, _OVERSAMPLED),
    "images": Arm("whole images by a diffusion model", IMAGES, _OVERSAMPLED),
    "without_hosts": Arm("as both, without the untouched hosts", BOTH, {**_OVERSAMPLED, "hosts": 0.0}),
    "fewer": Arm("as both, half as many of them", BOTH, {**_OVERSAMPLED, "synthetic_positives": 0.12}),
    "to_the_end": Arm("as both, to the last step", BOTH, {**_OVERSAMPLED, "real_last": 0.0}),
}
VARIANTS = ("without_hosts", "fewer", "to_the_end")  # compared where they are named
BASELINES = ("plain", "weighted", "focal", "oversampled")
CRITIC = "attributes"  # the arm whose network, trained on real galaxies, chooses unlabelled hosts and filters images
REAL_ONLY = (*BASELINES, CRITIC)


# How objects are divided


@dataclass(frozen=True)
class Repeat:
    """One division of the objects.

    Attributes
    ----------
    side : Series of str
        "train" or "test" by object (`galscan.training.dataset.read_table`); one in neither is not used in this repeat.
    counts : dict
        Objects by side and kind: positives, negatives, ambiguous.
    """

    number: int
    seed: int
    fold: int
    side: pd.Series
    counts: dict[str, dict[str, int]]

    def has(self, objects: pd.Series, side: str) -> np.ndarray:
        """Return which of `objects` are on that side."""
        return (objects.map(self.side) == side).to_numpy()


def labelled_objects(table: pd.DataFrame, answers: Sequence[str]) -> pd.Series:
    """Return the target (1, 0, NaN = ambiguous) of every object with labels, by name, in their order."""
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

    With one fold, `positives` (default half) train and the rest is the test set; with more, each fold is the test set
    once, and of the others `positives` (default all) train. `negatives` (default: in the proportion of the positives)
    train, and ambiguous objects, on which morphology alone is trained and which are never tested, in the proportion of
    the negatives. At most `max_test` negatives are tested. With fewer positives than another call the same objects are
    tested: `reserved` positives never are.

    Raises
    ------
    InputError
        If a side would have too few of a kind.
    """
    of_kind = {
        name: objects.index[kind].to_numpy(object)
        for name, kind in (("positives", objects == 1), ("negatives", objects == 0), ("ambiguous", objects.isna()))
    }
    n = {name: len(ids) for name, ids in of_kind.items()}
    if folds > 1 and n["positives"] < 2 * folds:
        raise InputError(f"--folds {folds}: {n['positives']} positives are too few; use at most {n['positives'] // 2}")
    room = n["positives"] - (2 if folds == 1 else -(-n["positives"] // folds))
    wanted = positives if positives is not None else n["positives"] // 2 if folds == 1 else room
    if not 0 <= wanted <= room:
        raise InputError(f"--positives {wanted}: of {n['positives']} positives, 0 to {room} may train; choose such")
    if reserved and folds > 1:
        raise InputError(
            f"--reserved {reserved}: with --folds {folds} every positive is tested once; leave one of them out"
        )
    if not 0 <= reserved <= room:
        raise InputError(
            f"--reserved {reserved}: of {n['positives']} positives, 0 to {room} may be left out of the test set; "
            "choose such"
        )
    if not wanted and negatives is None:
        raise InputError("--positives 0 needs --negatives: how many others train")
    repeats: list[Repeat] = []
    for s in range(seeds):
        random = np.random.default_rng([seed, s])
        shuffled = {name: random.permutation(ids) for name, ids in of_kind.items()}
        for fold in range(folds):
            take = {"positives": wanted, "negatives": negatives or round(wanted * n["negatives"] / n["positives"])}
            take["negatives"] = min(take["negatives"], n["negatives"])
            take["ambiguous"] = round(n["ambiguous"] * take["negatives"] / n["negatives"])
            if folds == 1:
                rest = shuffled
                first = {"positives": max(wanted, reserved), "negatives": take["negatives"]}
                test = {name: shuffled[name][first[name] :] for name in first}
            else:
                test = {name: shuffled[name][fold::folds] for name in ("positives", "negatives")}
                rest = shuffled | {name: shuffled[name][np.arange(n[name]) % folds != fold] for name in test}
            train = {name: rest[name][: take[name]] for name in take}
            test["negatives"] = test["negatives"][:max_test]
            if min(map(len, (train["negatives"], test["negatives"]))) < 2:
                raise InputError(
                    f"{n['negatives']} negatives leave {len(train['negatives'])} to train and "
                    f"{len(test['negatives'])} to test, at least 2 each are needed; change --positives or --negatives"
                )
            sides = {"train": train, "test": test}
            side = {i: name for name, kinds in sides.items() for ids in kinds.values() for i in ids}
            counts = {name: {kind: len(ids) for kind, ids in kinds.items()} for name, kinds in sides.items()}
            repeats.append(Repeat(len(repeats), s, fold, pd.Series(side, dtype=object), counts))
    return repeats


# What the scores say


def evaluate(
    repeats: Sequence[Scored], point: WorkingPoint, *, survey_size: int, method: str, seed: int
) -> dict[str, Any]:
    """Return the figures of every arm, what each gains over real-only ones, and the curves; JSON-able.

    The best baseline is chosen by the mean of the figure in question, so that it may be another for another
    figure. The choice is not repeated in the bootstrap. Figures at ``point`` are for its prevalence.
    """
    values, draws = metrics.measure(repeats, point), metrics.bootstrap(repeats, point, seed)
    targets = point.prevalence * survey_size
    arms: dict[str, Any] = {}
    for name in values:
        arms[name] = {"title": ARMS[name].title, "dreams": ARMS[name].dreams}
        for k, metric in enumerate(METRICS):
            arms[name][metric] = _interval(values[name][:, k], draws[name][:, k])
        arms[name]["detections"] = {key: x * targets for key, x in arms[name]["completeness"].items() if key != "each"}
    baselines = [name for name in REAL_ONLY if name in values]
    best = {m: max(baselines, key=lambda name: arms[name][m]["mean"]) for m in METRICS}
    gains: dict[str, Any] = {}
    for name in (n for n in values if ARMS[n].dreams or n == CRITIC):
        against = {"best_baseline": best} | (
            {CRITIC: dict.fromkeys(METRICS, CRITIC)} if CRITIC in values and name != CRITIC else {}
        )
        gains[name] = {
            label: {
                metric: {"against": other[metric]}
                | _gain(values[name][:, k], draws[name][:, k], values[other[metric]][:, k], draws[other[metric]][:, k])
                for k, metric in enumerate(METRICS)
            }
            for label, other in against.items()
        }
        for gain in gains[name].values():
            times = {key: None if (x := gain["completeness"][key]) is None else 1 + x for key in ("gain", "lo", "hi")}
            gain["detections"] = {
                "against": gain["completeness"]["against"], "ratio": times["gain"], "lo": times["lo"],
                "hi": times["hi"], "note": gain["completeness"]["note"],
            }  # fmt: skip
    return {"method": method, "arms": arms, "best_baseline": best, "gains": gains, "curves": _curves(repeats, point)}


def _interval(each: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(each.mean()), "lo": float(low), "hi": float(high), "each": each.tolist()}


def _gain(ours: np.ndarray, our_draws: np.ndarray, theirs: np.ndarray, their_draws: np.ndarray) -> dict[str, Any]:
    """Return the relative gain of one mean over another, with its paired interval; what has no bound is None.

    A draw in which the other finds nothing has a gain without bound, or, if neither finds anything, of -1: the
    lower end is never flattered.
    """
    ratios = np.divide(
        our_draws, their_draws, out=np.where(our_draws > 0, np.inf, 0.0), where=their_draws > 0
    )  # fmt: skip
    ratios.sort()
    last = len(ratios) - 1
    low, high = ratios[int(0.025 * last)], ratios[int(np.ceil(0.975 * last))]
    value = ours.mean() / theirs.mean() if theirs.mean() > 0 else None
    note = ""
    if value is None:
        note = "the other finds none"
    elif not np.isfinite(high):
        note = "no upper end: in some resamples the other finds none"
    low, high = (float(x) - 1 if value is not None and np.isfinite(x) else None for x in (low, high))
    return {"gain": None if value is None else float(value) - 1, "lo": low, "hi": high, "note": note}


def _curves(repeats: Sequence[Scored], point: WorkingPoint) -> dict[str, Any]:
    """Return the largest purity at each completeness: the mean over repeats, the least and the most."""
    grid = np.linspace(0.02, 1, 50)
    curves: dict[str, Any] = {"completeness": grid.round(4).tolist()}
    for name in repeats[0].scores:
        rows = []
        for repeat in repeats:
            completeness, purity = metrics.standing(repeat.scores[name], repeat.targets).curve(point.prevalence)
            at_least = np.maximum.accumulate(purity[::-1])[::-1]
            rows.append(at_least[np.searchsorted(completeness, grid - 1e-9).clip(max=len(purity) - 1)])
        low, mean, high = np.min(rows, 0), np.mean(rows, 0), np.max(rows, 0)
        curves[name] = {"purity": mean.tolist(), "lo": low.tolist(), "hi": high.tolist()}
    return curves


# In words


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Return in two sentences what the method gained, or did not; over the best baseline and over real + heads."""
    gains, title = result["gains"][result["method"]], result["arms"][result["method"]]["title"]
    lines = []
    for label, words in (
        ("best_baseline", "the best baseline"),
        (CRITIC, "the same network without synthetic galaxies"),
    ):
        if label not in gains:
            continue
        ap, found = gains[label]["ap"], gains[label]["detections"]
        said = "gains over" if ap["lo"] > 0 else "loses against" if ap["hi"] < 0 else "shows no certain gain over"
        if found["ratio"] is None:
            times = f"no ratio of detections ({found['note']})"
        else:
            ends = [format(end, ".2f") if end is not None else "no upper end" for end in (found["lo"], found["hi"])]
            times = f"{found['ratio']:.2f} times its detections at purity {result['point']['purity']:g} "
            times += f"({ends[0]} to {ends[1]})"
        lines.append(
            f"The arm '{title}' {said} {words}: average precision {100 * ap['gain']:+.1f} % "
            f"({100 * ap['lo']:+.1f} to {100 * ap['hi']:+.1f}) over '{ap['against']}', {times}."
        )
    return lines


def as_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row an arm: every figure with its interval."""
    rows = []
    for name, arm in result["arms"].items():
        row = {"arm": name, "title": arm["title"], "dreams": arm["dreams"]}
        for metric in (*METRICS, "detections"):
            row |= {metric: arm[metric]["mean"], f"{metric}_lo": arm[metric]["lo"], f"{metric}_hi": arm[metric]["hi"]}
        rows.append(row)
    return pd.DataFrame(rows)


def as_text(result: Mapping[str, Any]) -> str:
    """Return the table and the verdict for people."""
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
