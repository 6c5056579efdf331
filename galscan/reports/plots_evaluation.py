"""Figures of the page on synthetic galaxies: images, features, radial profiles, histograms and adherence."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom

from galscan.core.thumbnails import contact_sheet, data_uri
from galscan.reports.plots import BLUE, GREY, ORANGE, Plot, as_plot, styled
from galscan.synthesis.galaxies import measure

if TYPE_CHECKING:
    from galscan.synthesis.synthetic_set import SyntheticSet

SIDE_BY_SIDE, SHEET, DROPPED = 12, 24, 20  # number of images of each kind
QUIZ = 24  # number of real and of synthetic galaxies in the quiz
BANDS = (("red", "#b3413a"), ("green", "#3d8a4e"), ("blue", BLUE))
QUANTITIES = {  # axis labels of the measurements of a feature
    "log_depth": "depth, ln of attenuation",
    "log_length": "length, ln of half-light radii",
    "axis_ratio": "width over length",
    "colour_excess": "optical depth, blue − red",
    "reddening": "1 − optical depth, red / blue",
}


def _panels(count: int, width: float = 8.4, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _sheet(
    images: np.ndarray, captions: Sequence[str] | None, columns: int, tile: int, caption: str, alt: str = ""
) -> Plot:
    with tempfile.TemporaryDirectory() as folder:
        path = contact_sheet(images, Path(folder) / "sheet.png", captions=captions, columns=columns, tile=tile)
        return Plot(data_uri(path.read_bytes()), alt or caption, caption)


class Quiz(NamedTuple):
    """Real and synthetic galaxies to tell apart, and the answer key."""

    plot: Plot
    synthetic: list[int]  # numbers on the sheet, from 1
    real: list[int]
    enough: int
    """Number of right answers that a guesser reaches with a probability below 5 %."""


def quiz(synthetic_set: SyntheticSet, real_images: np.ndarray, real: np.ndarray) -> Quiz | None:
    """Draw equal numbers of real and synthetic positives in random order, numbered; None without any.

    `real` are the rows of `real_images` that are positives.
    """
    random = np.random.default_rng(0)  # the same order each time
    positive = np.flatnonzero(synthetic_set.synthetic & (synthetic_set.target == 1))
    count = min(QUIZ, len(positive), len(real))
    if not count:
        return None
    chosen = [random.choice(rows, count, replace=False) for rows in (positive, real)]
    images = np.concatenate([synthetic_set.images[chosen[0]], real_images[chosen[1]]])
    order = random.permutation(2 * count)
    synthetic = order < count
    numbers = np.arange(1, 2 * count + 1)
    plot = _sheet(
        images[order], [str(n) for n in numbers], 8, 118,
        f"{count} real and {count} synthetic positives in random order. Which are which?",
        f"{2 * count} numbered pictures of galaxies, half of them synthetic",
    )  # fmt: skip
    enough = int(binom.ppf(0.95, 2 * count, 0.5)) + 1
    return Quiz(plot, numbers[synthetic].tolist(), numbers[~synthetic].tolist(), enough)


def pictures(
    synthetic_set: SyntheticSet, each: pd.DataFrame, real_images: np.ndarray, real: np.ndarray, shown: Sequence[str]
) -> list[list[Plot]]:
    """Draw synthetic galaxies beside real ones, row by row.

    `each` has one row per synthetic galaxy, in the order of the set, with the columns reason, nearest (row of
    `real_images`) and distance (to that image, in units of the 1st percentile of real distances). `real` are the rows
    of `real_images` that are positives; the values of the conditions `shown` are written below each synthetic galaxy.
    """
    from galscan.synthesis.synthetic_set import GENERATED

    # In a fixed random order: stores are often sorted.
    real = np.random.default_rng(0).permutation(real)
    rows = np.flatnonzero(synthetic_set.synthetic)
    positive = np.random.default_rng(1).permutation(np.flatnonzero(synthetic_set.target[rows] == 1))  # rows of `each`
    first, nearest = positive[:SIDE_BY_SIDE], each["nearest"].to_numpy()
    host = synthetic_set.host[rows[first]]
    compared = np.where((host >= 0)[:, None, None, None], synthetic_set.images[host], real_images[nearest[first]])
    captions = ["host" if h >= 0 else f"distance {each['distance'][k]:.2f}" for k, h in zip(first, host, strict=True)]
    generated = synthetic_set.origin[rows] == GENERATED
    middle = []
    if (host >= 0).any():
        middle += ["the unchanged host of each"]
    if (host < 0).any():
        middle += [
            "the training image nearest to each whole image, in any orientation, and its distance (below 1: nearer "
            "than the 1st percentile of distances between real galaxies)"
        ]
    real_positives = real_images[real[: len(first)]]
    black = np.zeros((len(first) - len(real_positives), *real_images.shape[1:]), np.uint8)
    values = ["  ".join(f"{synthetic_set.labels[a].iloc[i]:.2f}" for a in shown) for i in rows[positive[:SHEET]]]
    conditions = f", with the condition for {' and '.join(shown)}" if shown else ""
    sheets = [
        [
            _sheet(
                np.concatenate([synthetic_set.images[rows[first]], compared, real_positives, black]),
                [*values[: len(first)], *captions, *[""] * len(first)], max(len(first), 1), 74,
                f"Top: synthetic positives{conditions}. Middle: {'; or '.join(middle) or 'none'}. "
                "Bottom: real positives.",
            )
        ],
        [
            _sheet(synthetic_set.images[rows[positive[:SHEET]]], values, 6, 72, f"Synthetic positives{conditions}."),
            _sheet(real_images[real[:SHEET]], None, 6, 72, "Real positives."),
        ],
    ]  # fmt: skip
    last = []
    if generated.any():
        k = int(np.where(generated, each["distance"], np.inf).argmin())
        last.append(
            _sheet(
                np.stack([synthetic_set.images[rows[k]], real_images[nearest[k]]]), ["synthetic", "real"], 2, 200,
                f"The synthetic galaxy nearest to a training image, and that image: their distance is "
                f"{each['distance'][k]:.2f} of the 1st percentile of distances between real galaxies.",
            )
        )  # fmt: skip
    dropped = np.flatnonzero(each["reason"] != "")
    chosen = np.random.default_rng(0).permutation(dropped)[:DROPPED]
    if len(dropped):
        captions = [
            f"{each['reason'][k]}\n{'positive' if synthetic_set.target[rows[k]] == 1 else 'negative'}" for k in chosen
        ]
        caption = f"{len(chosen):,} of {len(dropped):,} synthetic galaxies dropped by the filter, with the reasons."
        last.append(_sheet(synthetic_set.images[rows[chosen]], captions, 5, 90, caption))
    return [*sheets, last] if last else sheets


def _histograms(axes: Any, real: np.ndarray, synthetic: np.ndarray, edges: np.ndarray) -> None:
    axes.hist(real, edges, density=True, color=GREY, alpha=0.45, label="real")
    axes.hist(synthetic, edges, density=True, histtype="step", color=ORANGE, linewidth=2, label="synthetic")


@styled
def features(values: Mapping[str, pd.DataFrame], comparison: Mapping[str, Any]) -> Plot | None:
    """Draw histograms of a feature's depth, shape and colour in synthetic and in real positives.

    `values` are the tables of both (`galscan.synthesis.features.comparison.measure_features`), and `comparison` the
    result of `compare_features` there.
    """
    quantities = comparison["quantities"]
    if not any(entry["synthetic"]["n"] and entry["real"]["n"] for entry in quantities.values()):
        return None
    figure, panels = _panels(len(quantities), 2.6 * len(quantities), 3.0)
    for axes, (name, entry) in zip(panels, quantities.items(), strict=True):
        both = {which: values[which][name].dropna().to_numpy() for which in ("real", "synthetic")}
        low, high = np.percentile(np.concatenate(list(both.values())), [1, 99])  # without outliers
        edges = np.linspace(low, high + 1e-3, 15)
        _histograms(axes, both["real"].clip(low, high), both["synthetic"].clip(low, high), edges)
        distance = "not compared" if entry["ks"] is None else f"KS {entry['ks']:.2f}"
        axes.set(xlabel=QUANTITIES.get(name, name), title=distance)
        axes.title.set_fontsize(10)
    panels[0].set_ylabel("density")
    panels[0].legend(loc="upper left", fontsize=9)
    count = comparison["galaxies"]
    distances = ", ".join(
        f"{QUANTITIES.get(name, name)} {'–' if entry['ks'] is None else format(entry['ks'], '.2f')}"
        for name, entry in quantities.items()
    )
    return as_plot(
        figure,
        f"Histograms of the feature's depth, shape and colour in synthetic and real positives; KS distances: "
        f"{distances}",
        f"The feature as measured in the same way on {count['synthetic']['feature_measured']:,} synthetic and "
        f"{count['real']['feature_measured']:,} real positives, each normalised to an area of 1. KS: the largest "
        "difference of the two cumulative distributions, 0 for equal ones.",
    )


@styled
def profiles(light: Mapping[str, Any]) -> Plot | None:
    """Draw the mean radial profiles of synthetic and of training positives in each band, with the real scatter."""
    synthetic, real = light["synthetic"], light["training"]
    if synthetic["profile"] is None or real["profile"] is None:
        return None
    figure, panels = _panels(3)
    rings = (np.arange(len(real["profile"])) + 0.5) / len(real["profile"])
    for k, (axes, (band, colour)) in enumerate(zip(panels, BANDS, strict=True)):
        mean, scatter, other = (np.array(v)[:, k] for v in (real["profile"], light["scatter"], synthetic["profile"]))
        axes.fill_between(rings, mean - scatter, mean + scatter, color=GREY, alpha=0.22, linewidth=0)
        axes.plot(rings, mean, color=GREY, linewidth=2, label="real")
        axes.plot(rings, other, color=colour, linewidth=2, linestyle="--", label="synthetic")
        axes.set(xlabel="radius / half the frame", ylabel=f"{band}, square root", ylim=(0, None))
        axes.legend(loc="upper right")
    deviation = synthetic["max_deviation"]
    return as_plot(
        figure,
        f"Mean radial profiles of synthetic and real positives in three bands; the largest difference is "
        f"{deviation:.2f} of the scatter",
        f"Mean radial profiles of {synthetic['n']:,} synthetic and {real['n']:,} real positives. The band is the "
        f"scatter between real galaxies; the means differ by at most {deviation:.2f} of it.",
    )


@styled
def histograms(synthetic_images: np.ndarray, real_images: np.ndarray) -> Plot:
    """Draw histograms of brightness and colour of synthetic and real positives, each normalised to an area of 1."""
    synthetic, real = measure(synthetic_images), measure(real_images)
    figure, panels = _panels(2)
    for k, (axes, name) in enumerate(zip(panels, ("brightness", "colour, (red − blue) / (red + blue)"), strict=True)):
        both = np.concatenate([synthetic[:, k], real[:, k]])
        edges = np.linspace(both.min(), both.max() + 1e-3, 25)
        _histograms(axes, real[:, k], synthetic[:, k], edges)
        axes.set(xlabel=name, ylabel="density")
        axes.legend(loc="upper right")
    shift = ", ".join(f"{synthetic[:, k].mean():.3f} against {real[:, k].mean():.3f}" for k in (0, 1))
    return as_plot(
        figure,
        f"Histograms of brightness and colour of synthetic and real positives; means {shift}",
        f"Brightness and colour of {len(synthetic):,} synthetic and {len(real):,} real positives (means {shift}).",
    )


@styled
def adherence(answers: Mapping[str, Any]) -> Plot | None:
    """Draw the correlation of prediction and condition for each answer, for synthetic and for real galaxies."""
    if not answers:
        return None
    figure, (axes,) = _panels(1, 8.4, 0.9 + 0.42 * len(answers))
    y = np.arange(len(answers))[::-1]
    for which, colour, shift in (("real", GREY, -0.13), ("synthetic", ORANGE, 0.13)):
        found = [np.nan if (c := entry[which]["correlation"]) is None else c for entry in answers.values()]
        axes.hlines(y + shift, 0, found, color=colour, linewidth=1.4)
        label = "real, held out" if which == "real" else which
        axes.plot(found, y + shift, "o", color=colour, markersize=6, label=label)
    axes.axvline(0, color="#b8c1cb", linewidth=1)
    axes.set_yticks(y, list(answers))
    axes.set(xlabel="correlation of condition (real: label) and prediction", xlim=(-1.02, 1.02))
    axes.legend(loc="lower left")
    return as_plot(
        figure,
        "Correlation of conditions and predicted answers, synthetic and real: "
        + "; ".join(
            f"{a} {e['synthetic']['correlation'] or 0:.2f} and {e['real']['correlation'] or 0:.2f}"
            for a, e in answers.items()
        ),
        "Adherence: the correlation of each condition with the prediction of the reference classifier, over all "
        "synthetic galaxies. For comparison the correlation of label and prediction over held-out real galaxies, an "
        "upper limit set by the classifier.",
    )
