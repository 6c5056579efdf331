"""Figures of the report pages: SVG in a data URI, reproducible to the byte."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from galscan.models.model import Model
from galscan.scanning.run import Run
from galscan.stats import purity as purities
from galscan.stats.histogram import ScoreHistogram
from galscan.vetting.planning import estimate_by_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P, R = ParamSpec("P"), TypeVar("R")
BLUE, ORANGE, GREY = "#1f5f8b", "#b0601a", "#6b7684"  # dark enough on white for lines and text
STYLE: Any = {
    "svg.hashsalt": "galscan", "svg.fonttype": "path", "font.size": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a95a3", "axes.labelcolor": "#1d2733",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6eaee", "grid.linewidth": 0.8,
    "xtick.color": "#55616f", "ytick.color": "#55616f",
}  # fmt: skip


class Plot(NamedTuple):
    """A figure for a page."""

    uri: str
    alt: str
    caption: str


def as_plot(figure: Figure, alt: str, caption: str) -> Plot:
    """Return a figure as SVG, without a date so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", dpi=150)
    return Plot("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), alt, caption)


def new_axes(width: float = 5.4, height: float = 3.5, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot(**options)


def styled(draw: Any) -> Any:
    """Draw with the style of the pages, independent of the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapper(*args: Any) -> Plot | None:
        import matplotlib

        with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(STYLE):
            return draw(*args)  # type: ignore[no-any-return]

    return wrapper


def _by_rank(axes: Axes, ranks: np.ndarray, label: str) -> None:
    axes.set(xlabel="rank", ylabel=label, ylim=(-0.02, 1.02))
    if len(ranks) > 20:
        axes.set(xscale="log", xlim=(1, ranks[-1]))


def _band(axes: Axes, ranks: Any, low: Any, high: Any, colour: str, label: str | None = None) -> None:
    """Shade an interval; those by the scores alone are fainter."""
    alpha = 0.22 if colour == BLUE else 0.18
    axes.fill_between(ranks, low, high, color=colour, alpha=alpha, linewidth=0, label=label)


@styled
def purity(frame: pd.DataFrame, accepted: int, before: pd.DataFrame | None = None) -> Plot:
    """Draw purity against rank with its interval, and the rank of the last accepted candidate.

    If `frame` holds estimates with grades, `before` holds those by the scores alone.
    """
    figure, axes = new_axes()
    rows = purities.nodes(len(frame)) - 1  # a subset of a long list
    frame, before = frame.iloc[rows], None if before is None else before.iloc[rows]
    ranks = frame["rank"].to_numpy()
    if before is not None:
        _band(axes, ranks, before["purity_lo"], before["purity_hi"], GREY, "by scores alone")
        axes.plot(ranks, before["purity"], color=GREY, linewidth=1.4)
    _band(axes, ranks, frame["purity_lo"], frame["purity_hi"], BLUE)
    label = "purity down to this rank" if before is None else "with grades"
    axes.plot(ranks, frame["purity"], color=BLUE, linewidth=2, label=label)
    if before is None:
        label = "probability of this candidate"
        # Objects with a known label have probability 0 or 1, which would make the line jump.
        unlabelled = frame[frame["known"] == ""] if "known" in frame else frame
        axes.plot(unlabelled["rank"], unlabelled["p_target"], color=GREY, linewidth=1.2, linestyle="--", label=label)
    if accepted:
        axes.axvline(accepted, color=ORANGE, linewidth=1.2)
        side = "right" if accepted > ranks[-1] / 2 else "left"
        axes.text(
            accepted, 1.02, f" {accepted:,} ", color=ORANGE, va="bottom", ha=side, transform=axes.get_xaxis_transform()
        )
    _by_rank(axes, ranks, "purity")
    axes.legend(loc="lower left")
    ends = "unknown" if len(frame) else "no candidates"
    if frame["purity"].notna().any():
        ends = f"{frame['purity'].iloc[0]:.2f} at rank 1 to {frame['purity'].iloc[-1]:.2f} at rank {ranks[-1]:,}"
    how = "" if before is None else ", with the grades and by the scores alone"
    return as_plot(
        figure,
        f"Purity against rank with its interval{how}: {ends}",
        f"Expected fraction of targets among the candidates down to a rank, and its interval{how}.",
    )


@styled
def completeness(
    frame: pd.DataFrame,
    run: Run,
    model: Model | None,
    graded: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    limits_by_scores: pd.DataFrame | None = None,
) -> Plot:
    """Draw completeness against rank; with its interval if the model is available.

    `graded` is the table with grades, and the limits of its completeness at selected ranks (rank, low, high);
    `limits_by_scores` holds the limits by the scores alone, if known.
    """
    figure, axes = new_axes()
    rows = purities.nodes(len(frame)) - 1  # a subset of a long list
    ranks = frame["rank"].to_numpy()[rows]
    colour = BLUE if graded is None else GREY
    if limits_by_scores is not None:
        _band(axes, limits_by_scores["rank"], limits_by_scores["low"], limits_by_scores["high"], colour)
    elif model is not None and len(frame) and run.info.histogram:
        # The table holds no interval of completeness; it is recomputed with the seed of the scan.
        estimate = estimate_by_scores(run)[0]
        low, high = (estimate.published(f"completeness_{end}") for end in ("lo", "hi"))
        _band(axes, ranks, low[rows], high[rows], colour)
    axes.plot(ranks, frame["completeness"].iloc[rows], color=colour, linewidth=2, label="by scores alone")
    shown = frame
    if graded is not None:
        shown, limits = graded
        _band(axes, limits["rank"], limits["low"], limits["high"], BLUE)
        axes.plot(ranks, shown["completeness"].iloc[rows], color=BLUE, linewidth=2, label="with grades")
        axes.legend(loc="upper left")
    _by_rank(axes, ranks, "completeness")
    known = shown["completeness"].dropna()
    ends = f"{known.iloc[-1]:.2f} at rank {len(frame):,}" if len(known) else "unknown"
    how = "" if graded is None else ", with the grades and by the scores alone"
    return as_plot(
        figure,
        f"Completeness against rank{how}: {ends}",
        f"Expected fraction of all targets in the survey that a list down to a rank holds{how}.",
    )


@styled
def scores(frame: pd.DataFrame, run: Run, model: Model | None, histogram: ScoreHistogram) -> Plot:
    """Draw the histogram of all scores, and that expected from the calibration."""
    figure, axes = new_axes()
    centres, used = histogram.centres, np.flatnonzero(histogram.counts)
    caption = "Scores of all scanned objects."
    if len(used):
        span = slice(used[0], used[-1] + 1)
        wide = max(1, round((span.stop - span.start) / 60))  # about 60 bars
        starts = np.arange(0, span.stop - span.start, wide)
        step = centres[1] - centres[0]
        middle = centres[used[0]] + step * (starts + 0.5 * (wide - 1))
        bars = np.add.reduceat(histogram.counts[span], starts)
        axes.bar(middle, bars, width=wide * step, color="#cbd3dc", label="all objects")
        prevalence = (run.info.purity.get("prevalence") or {}).get("value")
        if model is not None and prevalence:
            _, negatives, targets = purities.fitted_mixture(model.calibration, histogram, prevalence)
            expected = {"expected by the calibration": negatives + targets, "expected targets": targets}
            for (label, counts), colour in zip(expected.items(), ("#55616f", ORANGE), strict=True):
                line = np.maximum(np.add.reduceat(counts, starts), 1e-9)
                axes.step(middle, line, where="mid", color=colour, linewidth=1.5, label=label)
            caption = (
                "Scores of all scanned objects, with the histograms expected from the calibration: all objects, and "
                "targets. Where the upper line deviates from the bars, the survey differs from the calibration set."
            )
        if len(frame):
            last = float(frame["score"].iloc[-1])
            axes.axvline(last, color=BLUE, linewidth=1.2, linestyle=":", label=f"last ranked ({len(frame):,})")
        axes.set(yscale="log", ylim=(0.3, 2 * bars.max()))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)  # above the axes, so that it covers no bar
    axes.set(xlabel="score (logit)", ylabel="objects")
    return as_plot(figure, f"Histogram of {histogram.total:,} scores on a logarithmic scale", caption)


@styled
def precision_recall(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Plot | None:
    """Draw precision against recall of the classifiers called `names`; None where no curve was recorded."""
    curves = {key: (metrics.get(key) or {}).get("pr_curve") for key in ("real_only", "real_plus_synthetic")}
    if not any(curves.values()):
        return None
    figure, axes = new_axes()
    for (key, curve), colour in zip(curves.items(), (GREY, BLUE), strict=True):
        if curve:
            axes.step(curve["recall"], curve["precision"], where="post", color=colour, linewidth=2, label=names[key])
    if (prevalence := (metrics.get("test") or {}).get("prevalence")) is not None:
        axes.axhline(prevalence, color=GREY, linewidth=1, linestyle=":", label="at random")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    axes.legend(loc="lower left")
    return as_plot(
        figure,
        "Precision against recall on real galaxies",
        "Precision and recall of the ensemble, on "
        + ("out-of-fold scores of real galaxies." if metrics.get("crossfit") else "held-out real galaxies."),
    )


@styled
def calibration(model: Model) -> Plot:
    """Draw observed against predicted fractions, in groups with about as many targets each, with binomial intervals."""
    from scipy.stats import beta

    calibration = model.calibration
    predicted = calibration.probability(calibration.scores)
    found = predicted[calibration.targets == 1]
    # Groups of equal size would all lie near zero where targets are rare.
    edges = np.unique(np.quantile(found, np.linspace(0, 1, max(2, min(8, len(found) // 5)) + 1)))
    group = np.searchsorted(edges, predicted, side="right")
    groups = [np.flatnonzero(group == g) for g in np.unique(group)]
    x = np.array([predicted[g].mean() for g in groups])
    hits, sizes = np.array([calibration.targets[g].sum() for g in groups]), np.array([len(g) for g in groups])
    y = hits / sizes
    low, high = beta.ppf(0.025, hits + 0.5, sizes - hits + 0.5), beta.ppf(0.975, hits + 0.5, sizes - hits + 0.5)
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    axes.errorbar(x, y, yerr=np.clip([y - low, high - y], 0, 1), fmt="o", color=BLUE, markersize=5, linewidth=1.2)
    axes.set(xlabel="predicted probability", ylabel="fraction of targets", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return as_plot(
        figure,
        "Observed fraction of targets against predicted probability",
        f"Calibration on {hits.sum():,.0f} targets and {(sizes - hits).sum():,.0f} negatives; "
        "bars are 95 % intervals, the dotted line is perfect calibration. The calibration was fitted to these objects.",
    )
