"""Figures of the report pages: SVG in a data URI, reproducible to the byte."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from galscan.candidates.display import by_rank, draw_purity, shade
from galscan.core.display.figures import BLUE, GREY, ORANGE, STYLE
from galscan.models.display import draw_calibration
from galscan.models.model import Model
from galscan.scanning.run import Run
from galscan.stats import purity as purities
from galscan.stats.histogram import ScoreHistogram
from galscan.vetting.planning import estimate_by_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P, R = ParamSpec("P"), TypeVar("R")


class Plot(NamedTuple):
    """A figure for a page."""

    uri: str
    alt: str
    caption: str


def as_plot(figure: Figure, alt: str, caption: str) -> Plot:
    """Return a figure as SVG, without a date so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    # With a layout engine, or bbox_inches="tight", matplotlib draws everything twice: only the layout is needed first.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=150)
    return Plot("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), alt, caption)


def new_axes(width: float = 5.4, height: float = 3.5, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(**options)


def styled(draw: Any) -> Any:
    """Draw with the style of the pages, independent of the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapper(*args: Any) -> Plot | None:
        import matplotlib

        with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(STYLE):
            return draw(*args)  # type: ignore[no-any-return]

    return wrapper


@styled
def purity(frame: pd.DataFrame, accepted: int, before: pd.DataFrame | None = None) -> Plot:
    """Draw purity against rank with its interval, and the rank of the last accepted candidate.

    If `frame` holds estimates with grades, `before` holds those by the scores alone.
    """
    figure, axes = new_axes()
    rows = purities.nodes(len(frame)) - 1  # a subset of a long list
    frame, before = frame.iloc[rows], None if before is None else before.iloc[rows]
    ranks = frame["rank"].to_numpy()
    draw_purity(axes, frame, accepted, before)
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
        shade(axes, limits_by_scores["rank"], limits_by_scores["low"], limits_by_scores["high"], colour)
    elif model is not None and len(frame) and run.info.histogram:
        # Runs of older versions hold no interval of completeness; it is recomputed with the seed of the scan.
        estimate = estimate_by_scores(run)[0]
        low, high = (estimate.published(f"completeness_{end}") for end in ("lo", "hi"))
        shade(axes, ranks, low[rows], high[rows], colour)
    axes.plot(ranks, frame["completeness"].iloc[rows], color=colour, linewidth=2, label="by scores alone")
    shown = frame
    if graded is not None:
        shown, limits = graded
        shade(axes, limits["rank"], limits["low"], limits["high"], BLUE)
        axes.plot(ranks, shown["completeness"].iloc[rows], color=BLUE, linewidth=2, label="with grades")
        axes.legend(loc="upper left")
    by_rank(axes, ranks, "completeness")
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
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)  # above the axes, so that it covers no curve
    return as_plot(
        figure,
        "Precision against recall on real galaxies",
        "Precision and recall of the ensemble, on "
        + ("out-of-fold scores of real galaxies." if metrics.get("crossfit") else "held-out real galaxies."),
    )


@styled
def calibration(model: Model) -> Plot:
    """Draw observed against predicted fractions, in groups with about as many targets each, with binomial intervals."""
    targets = model.calibration.targets
    figure, axes = new_axes()
    draw_calibration(axes, model.calibration.reliability())
    return as_plot(
        figure,
        "Observed fraction of targets against predicted probability",
        f"Calibration on {targets.sum():,.0f} targets and {(1 - targets).sum():,.0f} negatives; "
        "bars are 95 % intervals, the dotted line is perfect calibration. The calibration was fitted to these objects.",
    )
