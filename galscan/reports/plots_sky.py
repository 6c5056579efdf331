"""Sky map of a scan: coverage and candidates, in an equal-area projection with east to the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from galscan.core.sky import unit_vectors
from galscan.reports.plots import Plot, as_plot, new_axes, styled
from galscan.reports.scan_facts import Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 20_000  # maximum number of candidates: more make the page too large for browsers
FIELD = 25.0  # degrees; if all candidates are this near the centre, a field is drawn instead of the whole sky
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15)
DARK = ["#9dbdd3", "#1f5f8b", "#0a2438"]  # darker for higher purity, so that the best candidates stand out on white
SHADE = "#dfe4ea"


@styled
def sky(candidates: pd.DataFrame, footprint: Footprint | None) -> Plot:
    """Draw candidates over the scanned cells: the whole sky, or a field."""
    from matplotlib.colors import LinearSegmentedColormap

    count = len(candidates)
    order = np.argsort(candidates["purity"].to_numpy(), kind="stable")
    candidates = candidates.iloc[order[-MAX_POINTS:]]  # highest purity drawn last, on top
    ra, dec = candidates["ra"].to_numpy(), candidates["dec"].to_numpy()
    centre, reach = _centre(ra, dec)
    field = reach < FIELD
    if field:
        figure, axes = new_axes(height=4.2)
        x, y = lambert(ra, dec, centre)
    else:
        figure, axes = new_axes(height=3.1, projection="mollweide")
        x, y = -np.radians((ra + 180) % 360 - 180), np.radians(dec)
    colours = LinearSegmentedColormap.from_list("purity", DARK)
    points = axes.scatter(x, y, c=candidates["purity"], s=14, cmap=colours, vmin=0, vmax=1, linewidth=0, zorder=3)
    if field:  # square, just wide enough for all candidates
        half = 1.06 * max(np.abs(x).max(), np.abs(y).max(), 0.005)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    if footprint is not None:
        _shade_coverage(axes, footprint, centre if field else None)
    if field:
        _graticule(axes, centre)
    else:
        axes.set_axisbelow("line")  # grid lines above the shading
        ticks = ["120°", "60°", "0°", "300°", "240°"]
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ticks, fontsize=8, color="#1d2733")
        for label in axes.get_xticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8})
        axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"], fontsize=8)
    figure.colorbar(points, ax=axes, label="purity", shrink=0.75, pad=0.06)
    subset = f"{count:,}" if count <= MAX_POINTS else f"{MAX_POINTS:,} of highest purity, of {count:,}"
    coverage = "" if footprint is None else "; scanned cells are grey"
    projection = "Lambert azimuthal" if field else "Mollweide"
    return as_plot(
        figure,
        f"Sky map of {count:,} candidates with known positions",
        f"Positions of the {subset} candidates with coordinates{coverage}. ICRS in degrees, east to the left, "
        f"{projection} equal-area projection.",
    )


def lambert(ra: np.ndarray, dec: np.ndarray, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return Lambert's azimuthal equal-area projection about `centre`, in degrees, east to the left (Snyder 1987)."""
    along, up, up0 = np.radians(ra - centre[0]), np.radians(dec), np.radians(centre[1])
    cosine = np.sin(up0) * np.sin(up) + np.cos(up0) * np.cos(up) * np.cos(along)
    scale = np.degrees(np.sqrt(2 / np.maximum(1 + cosine, 1e-9)))
    x = -scale * np.cos(up) * np.sin(along)
    return x, scale * (np.cos(up0) * np.sin(up) - np.sin(up0) * np.cos(up) * np.cos(along))


def _centre(ra: np.ndarray, dec: np.ndarray) -> tuple[tuple[float, float], float]:
    """Return the centre of positions and the largest distance from it, in degrees."""
    points = unit_vectors(ra, dec)
    mean = points.mean(axis=0)
    if (length := float(np.linalg.norm(mean))) < 1e-6:
        return (0.0, 0.0), 180.0
    mean /= length
    reach = float(np.degrees(np.arccos(np.clip(points @ mean, -1, 1).min())))
    return (float(np.degrees(np.arctan2(mean[1], mean[0])) % 360), float(np.degrees(np.arcsin(mean[2])))), reach


def _shade_coverage(axes: Axes, footprint: Footprint, centre: tuple[float, float] | None) -> None:
    """Shade the occupied cells; `centre` is the centre of a field, None for the whole sky."""
    from matplotlib.colors import ListedColormap

    rows, columns = footprint.counts.shape
    edges = np.linspace(0, 360, columns + 1), np.degrees(np.arcsin(np.linspace(-1, 1, rows + 1)))
    used, limits = np.where(footprint.counts > 0, 1.0, np.nan), (axes.get_xlim(), axes.get_ylim())
    if centre is None:  # shifted, so that no cell crosses the edge of the map
        used, ra = np.roll(used, columns // 2, axis=1), edges[0] - 180
        x, y = np.meshgrid(-np.radians(ra), np.radians(edges[1]))
    else:
        turn = round((180 - centre[0]) / 360 * columns)
        used, ra = np.roll(used, turn, axis=1), edges[0] - turn * 360 / columns
        keep = np.abs(edges[1] - centre[1]) < 2 * FIELD
        first, last = np.flatnonzero(keep)[[0, -1]]
        grid_ra, grid_dec = np.meshgrid(ra, edges[1][first : last + 1])
        x, y = lambert(grid_ra, grid_dec, centre)
        used = used[first:last]
    axes.pcolormesh(x, y, used, cmap=ListedColormap([SHADE]), rasterized=True, zorder=0)
    if centre is not None:
        axes.set(xlim=limits[0], ylim=limits[1])


def _graticule(axes: Axes, centre: tuple[float, float]) -> None:
    """Draw lines of right ascension and declination over a field, with tick labels at its edges."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    height = high - low
    around = height / max(np.cos(np.radians(centre[1])), 0.05)
    axes.grid(False)
    ticks: dict[str, list[tuple[float, str]]] = {"x": [], "y": []}
    for name, width, at in (("x", around, centre[0]), ("y", height, centre[1])):
        step = next((s for s in STEPS if width / s <= 6), STEPS[-1])
        digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        reach = min(2 * width, 179.9)
        for value in np.arange(np.ceil((at - reach) / step), (at + reach) / step) * step:
            if name == "y" and abs(value) > 90:
                continue
            along, constant = np.linspace(-2, 2, 200), np.full(200, value)
            if name == "x":
                x, y = lambert(constant, np.clip(centre[1] + along * height, -90, 90), centre)
            else:
                x, y = lambert(centre[0] + np.clip(along * around, -89, 89), constant, centre)
            axes.plot(x, y, color="#c3ccd6", linewidth=0.7, zorder=1)
            across, position, edge = (y, x, low) if name == "x" else (-x, y, -left)
            order = np.argsort(across)
            tick = float(np.interp(edge, across[order], position[order], left=np.nan, right=np.nan))
            limits = (left, right) if name == "x" else (low, high)
            if min(limits) <= tick <= max(limits):
                shown = value % 360 if name == "x" else value
                ticks[name].append((tick, f"{shown:.{digits}f}°".replace("-", "−")))
    axes.set_xticks(*map(list, zip(*ticks["x"], strict=True)) if ticks["x"] else ([],))
    axes.set_yticks(*map(list, zip(*ticks["y"], strict=True)) if ticks["y"] else ([],))
    axes.set(xlabel="right ascension", ylabel="declination", xlim=(left, right), ylim=(low, high))
