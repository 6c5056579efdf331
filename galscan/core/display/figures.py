"""Colours and style of figures, axes for them, and pictures drawn into axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#1f5f8b", "#b0601a", "#6b7684"  # dark enough on white for lines and text
STYLE: Any = {
    "svg.hashsalt": "galscan", "svg.fonttype": "path", "font.size": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a95a3", "axes.labelcolor": "#1d2733",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6eaee", "grid.linewidth": 0.8,
    "xtick.color": "#55616f", "ytick.color": "#55616f",
}  # fmt: skip


def given_or_new(ax: Axes | None) -> Axes:
    """Return the axes of the caller, or those of a new figure in the caller's style."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def show_images(images: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> np.ndarray:
    """Draw images in rows of `columns` in a new figure; return its axes, an array of shape (n,)."""
    from matplotlib import pyplot

    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    _, grid = pyplot.subplots(rows, columns, figsize=(1.6 * columns, 1.85 * rows), squeeze=False, layout="constrained")
    axes = np.array(grid).ravel()
    for one in axes:
        one.set_axis_off()
    for one, image, title in zip(axes, images, titles, strict=False):
        one.imshow(image)
        one.set_title(title, fontsize=8)
    return axes[: len(images)]
