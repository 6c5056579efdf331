"""The figures of the page on synthetic galaxies: pictures, features, light, profiles, and how conditions hold."""

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

SIDE_BY_SIDE, SHEET, DROPPED = 12, 24, 20  # pictures of each kind
QUIZ = 24  # pictures of real and as many of synthetic galaxies to tell apart
BANDS = (("red", "#b3413a"), ("green", "#3d8a4e"), ("blue", BLUE))
QUANTITIES = {  # what is measured of a feature, in words
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
    synthetic: list[int]  # numbers of the synthetic ones, from 1
    real: list[int]
    enough: int
    """Right answers that guessing reaches in fewer than 5 % of tries."""


def quiz(dreams: SyntheticSet, real_images: np.ndarray, real: np.ndarray) -> Quiz | None:
    """Show as many real as synthetic positives in random order, numbered; None where there are none.

    Parameters
    ----------
    real : ndarray of int
        Rows of `real_images` that are real positives.
    """
    random = np.random.default_rng(0)  # the same order each time
    positive = np.flatnonzero(dreams.synthetic & (dreams.target == 1))
    count = min(QUIZ, len(positive), len(real))
    if not count:
        return None
    chosen = [random.choice(rows, count, replace=False) for rows in (positive, real)]
    images = np.concatenate([dreams.images[chosen[0]], real_images[chosen[1]]])
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
    dreams: SyntheticSet, each: pd.DataFrame, real_images: np.ndarray, real: np.ndarray, shown: Sequence[str]
) -> list[list[Plot]]:
    """Show synthetic galaxies beside real ones, row by row.

    Parameters
    ----------
    each : DataFrame
        Columns reason, nearest (row of `real_images`) and distance (of it, in units of the 1st percentile of real
        distances); one row for each synthetic galaxy of `dreams`, in their order.
    real : ndarray of int
        Rows of `real_images` that are real positives.
    shown : sequence of str
        Conditions whose values are written below a synthetic galaxy.
    """
    from galscan.synthesis.synthetic_set import DRAWN

    # In random order, but the same one each time: stores are often sorted.
    real = np.random.default_rng(0).permutation(real)
    rows = np.flatnonzero(dreams.synthetic)
    positive = np.random.default_rng(1).permutation(np.flatnonzero(dreams.target[rows] == 1))  # rows of `each`
    first, nearest = positive[:SIDE_BY_SIDE], each["nearest"].to_numpy()
    host = dreams.host[rows[first]]
    beside = [dreams.images[h] if h >= 0 else real_images[nearest[k]] for k, h in zip(first, host, strict=True)]
    apart = ["host" if h >= 0 else f"distance {each['distance'][k]:.2f}" for k, h in zip(first, host, strict=True)]
    drawn = dreams.origin[rows] == DRAWN
    middle = []
    if (host >= 0).any():
        middle += ["the host of each, as it is"]
    if (host < 0).any():
        middle += [
            "the training picture nearest to each that was drawn whole, whichever way it is turned, and how far it is "
            "(below 1: nearer than 1 % of real galaxies are to another)"
        ]
    others = _first(real_images[real], len(first))
    values = ["  ".join(f"{dreams.labels[a].iloc[i]:.2f}" for a in shown) for i in rows[positive[:SHEET]]]
    words = f", with the condition for {' and '.join(shown)}" if shown else ""
    sheets = [
        [
            _sheet(
                np.concatenate([dreams.images[rows[first]], *(b[None] for b in beside), others]),
                [*values[: len(first)], *apart, *[""] * len(first)], max(len(first), 1), 74,
                f"Top: synthetic positives{words}. Middle: {'; or '.join(middle) or 'none'}. Bottom: real positives.",
            )
        ],
        [
            _sheet(dreams.images[rows[positive[:SHEET]]], values, 6, 72, f"Synthetic positives{words}."),
            _sheet(real_images[real[:SHEET]], None, 6, 72, "Real positives."),
        ],
    ]  # fmt: skip
    last = []
    if drawn.any():
        k = int(np.where(drawn, each["distance"], np.inf).argmin())
        last.append(
            _sheet(
                np.stack([dreams.images[rows[k]], real_images[nearest[k]]]), ["synthetic", "real"], 2, 200,
                f"The synthetic galaxy most like a copy, and the training picture it is nearest to: "
                f"{each['distance'][k]:.2f} of the distance that 1 % of real galaxies fall below.",
            )
        )  # fmt: skip
    dropped = np.flatnonzero(each["reason"] != "")
    chosen = np.random.default_rng(0).permutation(dropped)[:DROPPED]
    if len(dropped):
        said = [f"{each['reason'][k]}\n{'positive' if dreams.target[rows[k]] == 1 else 'negative'}" for k in chosen]
        caption = (
            f"{len(chosen):,} of {len(dropped):,} synthetic galaxies that the screening drops, each with the reason."
        )
        last.append(_sheet(dreams.images[rows[chosen]], said, 5, 90, caption))
    return [*sheets, last] if last else sheets


def _first(images: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the images; black ones where there are fewer."""
    missing = max(0, count - len(images))
    return np.concatenate([images[:count], np.zeros((missing, *images.shape[1:]), np.uint8)])


@styled
def features(values: Mapping[str, pd.DataFrame], comparison: Mapping[str, Any]) -> Plot | None:
    """Draw how a feature's depth, shape and colour are distributed in synthetic and in real positives.

    Parameters
    ----------
    values : mapping
        ``synthetic`` and ``real``: what `galscan.synthesis.features.comparison.measure_features` gives.
    comparison : mapping
        What `galscan.synthesis.features.comparison.compare_features` gives of these.
    """
    quantities = comparison["quantities"]
    if not any(entry["synthetic"]["n"] and entry["real"]["n"] for entry in quantities.values()):
        return None
    figure, panels = _panels(len(quantities), 2.6 * len(quantities), 3.0)
    for axes, (name, entry) in zip(panels, quantities.items(), strict=True):
        both = {which: values[which][name].dropna().to_numpy() for which in ("real", "synthetic")}
        low, high = np.percentile(np.concatenate(list(both.values())), [1, 99])  # a few stand far out
        edges = np.linspace(low, high + 1e-3, 15)
        shown = {which: of.clip(low, high) for which, of in both.items()}
        axes.hist(shown["real"], edges, density=True, color=GREY, alpha=0.45, label="real")
        axes.hist(
            shown["synthetic"], edges, density=True, histtype="step", color=ORANGE, linewidth=2, label="synthetic"
        )
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
        f"{count['real']['feature_measured']:,} real positives, each to an area of 1. KS: the largest difference of "
        "the two cumulative distributions, 0 for equal ones.",
    )


@styled
def profiles(light: Mapping[str, Any]) -> Plot | None:
    """Draw the mean radial profile of synthetic and of training positives in each band, and the scatter of these."""
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
    most = synthetic["max_deviation"]
    return as_plot(
        figure,
        f"Mean radial profiles of synthetic and real positives in three bands; they differ by at most {most:.2f} "
        "scatters",
        f"Mean radial profiles of {synthetic['n']:,} synthetic and {real['n']:,} real positives. The band is the "
        f"scatter from one real galaxy to another; the means differ by at most {most:.2f} of it.",
    )


@styled
def histograms(synthetic_images: np.ndarray, real_images: np.ndarray) -> Plot:
    """Draw brightness and colour of synthetic and real positives, each to an area of 1."""
    synthetic, real = measure(synthetic_images), measure(real_images)
    figure, panels = _panels(2)
    for k, (axes, name) in enumerate(zip(panels, ("brightness", "colour, (red − blue) / (red + blue)"), strict=True)):
        both = np.concatenate([synthetic[:, k], real[:, k]])
        edges = np.linspace(both.min(), both.max() + 1e-3, 25)
        axes.hist(real[:, k], edges, density=True, color=GREY, alpha=0.45, label="real")
        axes.hist(synthetic[:, k], edges, density=True, histtype="step", color=ORANGE, linewidth=2, label="synthetic")
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
    """Draw by answer how prediction and condition correlate, for synthetic and for real galaxies."""
    if not answers:
        return None
    figure, (axes,) = _panels(1, 8.4, 0.9 + 0.42 * len(answers))
    places = np.arange(len(answers))[::-1]
    for which, colour, shift in (("real", GREY, -0.13), ("synthetic", ORANGE, 0.13)):
        found = [np.nan if (c := entry[which]["correlation"]) is None else c for entry in answers.values()]
        axes.hlines(places + shift, 0, found, color=colour, linewidth=1.4)
        axes.plot(
            found, places + shift, "o", color=colour, markersize=6, label="real, held out" if which == "real" else which
        )
    axes.axvline(0, color="#b8c1cb", linewidth=1)
    axes.set_yticks(places, list(answers))
    axes.set(xlabel="correlation of condition (real: label) and prediction", xlim=(-1.02, 1.02))
    axes.legend(loc="lower left")
    return as_plot(
        figure,
        "Correlation of conditions and predicted answers, synthetic and real: "
        + "; ".join(
            f"{a} {e['synthetic']['correlation'] or 0:.2f} and {e['real']['correlation'] or 0:.2f}"
            for a, e in answers.items()
        ),
        "How each condition holds: the correlation of the condition with what the reference classifier predicts, over "
        "all synthetic galaxies. Beside it the same of held-out real galaxies and their labels: the classifier is no "
        "better than that.",
    )
