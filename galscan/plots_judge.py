"""The figures of the page on dreams: pictures, light, radial profiles, and how the conditions were followed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan.generate.galaxies import measure
from galscan.pictures import contact_sheet, data_uri
from galscan.plots import BLUE, GREY, ORANGE, Plot, as_plot, styled

if TYPE_CHECKING:
    from galscan.generate.dreams import Dreams

SIDE_BY_SIDE, SHEET, DROPPED = 12, 24, 20  # pictures of each kind
BANDS = (("red", "#b3413a"), ("green", "#3d8a4e"), ("blue", BLUE))


def _panels(count: int, width: float = 8.4, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _sheet(images: np.ndarray, captions: Sequence[str] | None, columns: int, tile: int, caption: str) -> Plot:
    with tempfile.TemporaryDirectory() as folder:
        path = contact_sheet(images, Path(folder) / "sheet.png", captions=captions, columns=columns, tile=tile)
        return Plot(data_uri(path.read_bytes()), caption, caption)


def pictures(
    dreams: Dreams, each: pd.DataFrame, real_images: np.ndarray, real: np.ndarray, shown: Sequence[str]
) -> list[list[Plot]]:
    """Show dreams beside real galaxies, row by row.

    Parameters
    ----------
    each : DataFrame
        Columns reason, nearest (row of `real_images`) and distance (of it, in units of the 1st percentile of real
        distances); one row a dream.
    real : ndarray of int
        Rows of `real_images` that are real positives.
    shown : sequence of str
        Conditions whose values are written below a dream.
    """
    positive = np.flatnonzero(dreams.target == 1)
    # In an order of chance, but the same one each time: stores are often sorted.
    real = np.random.default_rng(0).permutation(real)
    first, nearest = positive[:SIDE_BY_SIDE], each["nearest"].to_numpy()
    others = _first(real_images[real], len(first))
    asked = ["  ".join(f"{dreams.labels[a].iloc[i]:.2f}" for a in shown) for i in positive[:SHEET]]
    words = f", with what was asked for {' and '.join(shown)}" if shown else ""
    apart = [f"distance {d:.2f}" for d in each["distance"].iloc[first]]
    rows = [
        [
            _sheet(
                np.concatenate([dreams.images[first], real_images[nearest[first]], others]),
                [*asked[: len(first)], *apart, *[""] * len(first)], max(len(first), 1), 74,
                f"Top: dreamt positives{words}. Middle: the training picture nearest to each, whichever way it is "
                "turned, and how far it is (below 1: nearer than 1 % of real galaxies are to another). Bottom: real "
                "positives.",
            )
        ],
        [
            _sheet(dreams.images[positive[:SHEET]], asked, 6, 72, f"Dreamt positives{words}."),
            _sheet(real_images[real[:SHEET]], None, 6, 72, "Real positives."),
        ],
    ]  # fmt: skip
    dream = int(each["distance"].argmin())
    dropped = np.flatnonzero(each["reason"] != "")
    chosen = np.random.default_rng(0).permutation(dropped)[:DROPPED]
    last = [
        _sheet(
            np.stack([dreams.images[dream], real_images[nearest[dream]]]), ["dreamt", "real"], 2, 200,
            f"The dream most like a copy, and the training picture it is nearest to: {each['distance'][dream]:.2f} of "
            "the distance that 1 % of real galaxies fall below.",
        )
    ]  # fmt: skip
    if len(dropped):
        said = [f"{each['reason'][i]}\n{'positive' if dreams.target[i] == 1 else 'negative'}" for i in chosen]
        caption = f"{len(chosen):,} of {len(dropped):,} dreams that the screening drops, each with the reason."
        last.append(_sheet(dreams.images[chosen], said, 5, 90, caption))
    return [*rows, last]


def _first(images: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the images; black ones where there are fewer."""
    missing = max(0, count - len(images))
    return np.concatenate([images[:count], np.zeros((missing, *images.shape[1:]), np.uint8)])


@styled
def profiles(light: Mapping[str, Any]) -> Plot | None:
    """Draw the mean radial profile of dreamt and of training positives in each band, and the scatter of these."""
    dreamt, real = light["dreamt"], light["training"]
    if dreamt["profile"] is None or real["profile"] is None:
        return None
    figure, panels = _panels(3)
    rings = (np.arange(len(real["profile"])) + 0.5) / len(real["profile"])
    for k, (axes, (band, colour)) in enumerate(zip(panels, BANDS, strict=True)):
        mean, scatter, drawn = (np.array(v)[:, k] for v in (real["profile"], light["scatter"], dreamt["profile"]))
        axes.fill_between(rings, mean - scatter, mean + scatter, color=GREY, alpha=0.22, linewidth=0)
        axes.plot(rings, mean, color=GREY, linewidth=2, label="real")
        axes.plot(rings, drawn, color=colour, linewidth=2, linestyle="--", label="dreamt")
        axes.set(xlabel="radius / half the frame", ylabel=f"{band}, square root", ylim=(0, None))
        axes.legend(loc="upper right")
    most = dreamt["max_deviation"]
    return as_plot(
        figure,
        f"Mean radial profiles of dreamt and real positives in three bands; they differ by at most {most:.2f} scatters",
        f"Mean radial profiles of {dreamt['n']:,} dreamt and {real['n']:,} real positives. The band is the scatter "
        f"from one real galaxy to another; the means differ by at most {most:.2f} of it.",
    )


@styled
def histograms(dreamt_images: np.ndarray, real_images: np.ndarray) -> Plot:
    """Draw brightness and colour of dreamt and real positives, each to an area of 1."""
    dreamt, real = measure(dreamt_images), measure(real_images)
    figure, panels = _panels(2)
    for k, (axes, name) in enumerate(zip(panels, ("brightness", "colour, (red − blue) / (red + blue)"), strict=True)):
        both = np.concatenate([dreamt[:, k], real[:, k]])
        edges = np.linspace(both.min(), both.max() + 1e-3, 25)
        axes.hist(real[:, k], edges, density=True, color=GREY, alpha=0.45, label="real")
        axes.hist(dreamt[:, k], edges, density=True, histtype="step", color=ORANGE, linewidth=2, label="dreamt")
        axes.set(xlabel=name, ylabel="density")
        axes.legend(loc="upper right")
    shift = ", ".join(f"{dreamt[:, k].mean():.3f} against {real[:, k].mean():.3f}" for k in (0, 1))
    return as_plot(
        figure,
        f"Histograms of brightness and colour of dreamt and real positives; means {shift}",
        f"Brightness and colour of {len(dreamt):,} dreamt and {len(real):,} real positives (means {shift}).",
    )


@styled
def adherence(answers: Mapping[str, Any]) -> Plot | None:
    """Draw by answer how what the critic sees goes along with what was asked, for dreams and for real galaxies."""
    if not answers:
        return None
    figure, (axes,) = _panels(1, 8.4, 0.9 + 0.42 * len(answers))
    places = np.arange(len(answers))[::-1]
    for which, colour, shift in (("real", GREY, -0.13), ("dreamt", ORANGE, 0.13)):
        found = [np.nan if (c := entry[which]["correlation"]) is None else c for entry in answers.values()]
        axes.hlines(places + shift, 0, found, color=colour, linewidth=1.4)
        axes.plot(
            found, places + shift, "o", color=colour, markersize=6, label="real, held out" if which == "real" else which
        )
    axes.axvline(0, color="#b8c1cb", linewidth=1)
    axes.set_yticks(places, list(answers))
    axes.set(xlabel="correlation of asked (real: labelled) and seen by the critic", xlim=(-1.02, 1.02))
    axes.legend(loc="lower left")
    return as_plot(
        figure,
        "Correlation of asked and predicted answers, dreamt and real: "
        + "; ".join(
            f"{a} {e['dreamt']['correlation'] or 0:.2f} and {e['real']['correlation'] or 0:.2f}"
            for a, e in answers.items()
        ),
        "How each condition was followed: the correlation of what was asked with what the critic sees, over all "
        "dreams. Beside it the same of held-out real galaxies and their labels: the critic is no better than that.",
    )
