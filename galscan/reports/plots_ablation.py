"""Figures of an ablation: purity against completeness of every arm, and the gain of each arm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from galscan.core.files import atomic_path
from galscan.reports.plots import BLUE, GREY, ORANGE, STYLE, Plot, as_plot, new_axes, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5


def _curve_figure(result: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    curves, best = result["curves"], result["best_baseline"]["ap"]
    names = [name for name in curves if name != "completeness"]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(2.5 * min(COLUMNS, len(names)), 2.35 * rows), layout="constrained")
    panels = figure.subplots(rows, min(COLUMNS, len(names)), sharex=True, sharey=True, squeeze=False)
    x = curves["completeness"]
    for panel, name in zip(panels.flat, names, strict=False):
        arm = result["arms"][name]
        colour = BLUE if arm["synthetic"] else ORANGE
        if name != best:
            panel.plot(x, curves[best]["purity"], color=GREY, linewidth=1.2, linestyle="--")
        panel.fill_between(x, curves[name]["lo"], curves[name]["hi"], color=colour, alpha=0.18, linewidth=0)
        panel.plot(x, curves[name]["purity"], color=colour, linewidth=2)
        weight = "bold" if name == result["method"] else "normal"
        panel.set_title(f"{name}  {arm['ap']['mean']:.3f}", fontsize=10, fontweight=weight)
        panel.set(xlim=(0, 1), ylim=(-0.02, 1.05))
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("completeness", fontsize=10)
    figure.supylabel("purity", fontsize=10)
    return figure


@styled
def curves(result: Mapping[str, Any]) -> Plot:
    """Draw purity against completeness, one panel per arm, with the range over repeats."""
    alt = f"Purity against completeness of each arm at a prevalence of {result['point']['prevalence']:.3g}"
    caption = (
        f"{alt}: line, the mean over {len(result['repeats'])} repeats; band, their range. Blue arms are trained on "
        f"synthetic galaxies as well, orange ones on real ones only; dashed, '{result['best_baseline']['ap']}', the "
        "best baseline. Beside each name, its average precision."
    )
    return as_plot(_curve_figure(result), alt, caption)


def write_curves(result: Mapping[str, Any], path: Path) -> None:
    """Write the same figure as `curves` as PNG."""
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(STYLE):
        figure = _curve_figure(result)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


@styled
def gains(result: Mapping[str, Any], metric: str, title: str) -> Plot | None:
    """Draw a forest plot of the gain of each arm in `metric`, over the best baseline and over `attributes`.

    None if no gain has a value. `title` is the name of the metric in the figure.
    """
    names = list(result["gains"])[::-1]
    figure, axes = new_axes(height=1.2 + 0.42 * len(names))
    baselines = (
        ("best_baseline", BLUE, "over the best baseline", 0.12),
        ("attributes", ORANGE, "over attributes", -0.12),
    )
    ends = []
    for label, colour, legend, shift in baselines:
        points = [(y, g[label][metric]) for y, name in enumerate(names) if label in (g := result["gains"][name])]
        points = [(y, g) for y, g in points if g["gain"] is not None]
        if not points:
            continue
        y = np.array([y for y, _ in points]) + shift
        value = 100 * np.array([g["gain"] for _, g in points])
        low, high = (
            100 * np.array([g["gain"] if g[end] is None else g[end] for _, g in points]) for end in ("lo", "hi")
        )
        axes.hlines(y, low, high, color=colour, linewidth=1.6)
        axes.plot(value, y, "o", color=colour, markersize=5, label=legend)
        axes.plot(value[open_ := [g["hi"] is None for _, g in points]], y[open_], ">", color=colour, markersize=9)
        ends += [*low, *high]
    if not ends:
        return None
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"gain in {title} (%)", ylim=(-0.6, len(names) - 0.4))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2, fontsize=9)
    return as_plot(
        figure,
        f"Gain in {title} of each arm with its interval, from {min(ends):.0f} % to {max(ends):.0f} %",
        f"Relative gain in {title} with its 95 % paired interval; an arrow marks an interval without upper limit. "
        "Positive is better.",
    )
