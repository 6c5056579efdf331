"""The map of a scan: where it looked and where its candidates are, in equal areas, right ascension to the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from galscan.reports.plots import Plot, as_plot, new_axes, styled
from galscan.reports.scan_facts import Footprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = 20_000  # candidates at most: so many cover the sky, and more make a page that no browser opens
FIELD = 25.0  # degrees from the middle, within which all is drawn as a field
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15)
DARK = ["#9dbdd3", "#1f5f8b", "#0a2438"]  # the purer the darker: the best must not vanish on white
GROUND = "#dfe4ea"


@styled
def sky(placed: pd.DataFrame, footprint: Footprint | None) -> Plot:
    """Draw candidates with a position over the cells that were scanned: the whole sky, or a field of it."""
    from matplotlib.colors import LinearSegmentedColormap

    count = len(placed)
    placed = placed.iloc[np.argsort(placed["purity"].to_numpy(), kind="stable")[-DRAWN:]]  # the best on top
    ra, dec = placed["ra"].to_numpy(), placed["dec"].to_numpy()
    middle, reach = _middle(ra, dec)
    field = reach < FIELD
    if field:
        figure, axes = new_axes(height=4.2)
        x, y = lambert(ra, dec, middle)
    else:
        figure, axes = new_axes(height=3.1, projection="mollweide")
        x, y = _mollweide(ra, dec)
    colours = LinearSegmentedColormap.from_list("purity", DARK)
    drawn = axes.scatter(x, y, c=placed["purity"], s=14, cmap=colours, vmin=0, vmax=1, linewidth=0, zorder=3)
    if field:  # square, and as wide as the candidates ask for
        half = 1.06 * max(np.abs(x).max(), np.abs(y).max(), 0.005)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    if footprint is not None:
        _ground(axes, footprint, middle if field else None)
    if field:
        _graticule(axes, middle)
    else:
        axes.set_axisbelow("line")  # the lines over the grey
        ticks = ["120°", "60°", "0°", "300°", "240°"]
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ticks, fontsize=8, color="#1d2733")
        for label in axes.get_xticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8})
        axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"], fontsize=8)
    figure.colorbar(drawn, ax=axes, label="purity", shrink=0.75, pad=0.06)
    which_of = f"{count:,}" if count <= DRAWN else f"purest {DRAWN:,} of {count:,}"
    ground = "" if footprint is None else "; grey is where it was scanned"
    which = "Lambert's" if field else "Mollweide's"
    return as_plot(
        figure,
        f"Sky map of {count:,} candidates with known positions",
        f"Where the {which_of} candidates with coordinates are{ground}. ICRS in degrees, right ascension to the "
        f"left, {which} projection: equal areas are equal.",
    )


def lambert(ra: np.ndarray, dec: np.ndarray, middle: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return Lambert's azimuthal equal-area projection about `middle`, in degrees, east to the left (Snyder 1987)."""
    along, up, up0 = np.radians(ra - middle[0]), np.radians(dec), np.radians(middle[1])
    cosine = np.sin(up0) * np.sin(up) + np.cos(up0) * np.cos(up) * np.cos(along)
    scale = np.degrees(np.sqrt(2 / np.maximum(1 + cosine, 1e-9)))
    x = -scale * np.cos(up) * np.sin(along)
    return x, scale * (np.cos(up0) * np.sin(up) - np.sin(up0) * np.cos(up) * np.cos(along))


def _mollweide(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return -np.radians((ra + 180) % 360 - 180), np.radians(dec)


def _middle(ra: np.ndarray, dec: np.ndarray) -> tuple[tuple[float, float], float]:
    """Return the middle of some positions, and how far the farthest is from it, in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    points = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    mean = points.mean(axis=1)
    if (length := float(np.linalg.norm(mean))) < 1e-6:
        return (0.0, 0.0), 180.0
    mean /= length
    reach = float(np.degrees(np.arccos(np.clip(mean @ points, -1, 1).min())))
    return (float(np.degrees(np.arctan2(mean[1], mean[0])) % 360), float(np.degrees(np.arcsin(mean[2])))), reach


def _ground(axes: Axes, footprint: Footprint, middle: tuple[float, float] | None) -> None:
    """Shade the cells that hold something; `middle` is that of a field, None for the whole sky."""
    from matplotlib.colors import ListedColormap

    rows, columns = footprint.counts.shape
    edges = np.linspace(0, 360, columns + 1), np.degrees(np.arcsin(np.linspace(-1, 1, rows + 1)))
    used, limits = np.where(footprint.counts > 0, 1.0, np.nan), (axes.get_xlim(), axes.get_ylim())
    if middle is None:  # turned, so that no cell crosses the map's edge
        used, ra = np.roll(used, columns // 2, axis=1), edges[0] - 180
        x, y = np.meshgrid(-np.radians(ra), np.radians(edges[1]))
    else:
        turn = round((180 - middle[0]) / 360 * columns)
        used, ra = np.roll(used, turn, axis=1), edges[0] - turn * 360 / columns
        keep = np.abs(edges[1] - middle[1]) < 2 * FIELD
        first, last = np.flatnonzero(keep)[[0, -1]]
        grid_ra, grid_dec = np.meshgrid(ra, edges[1][first : last + 1])
        x, y = lambert(grid_ra, grid_dec, middle)
        used = used[first:last]
    axes.pcolormesh(x, y, used, cmap=ListedColormap([GROUND]), rasterized=True, zorder=0)
    if middle is not None:
        axes.set(xlim=limits[0], ylim=limits[1])


def _graticule(axes: Axes, middle: tuple[float, float]) -> None:
    """Draw lines of right ascension and declination over a field, and say their degrees at its edges."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    height = high - low
    around = height / max(np.cos(np.radians(middle[1])), 0.05)
    axes.grid(False)
    ticks: dict[str, list[tuple[float, str]]] = {"x": [], "y": []}
    for name, width, at in (("x", around, middle[0]), ("y", height, middle[1])):
        step = next((s for s in STEPS if width / s <= 6), STEPS[-1])
        digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        reach = min(2 * width, 179.9)
        for value in np.arange(np.ceil((at - reach) / step), (at + reach) / step) * step:
            if name == "y" and abs(value) > 90:
                continue
            along, all_of_it = np.linspace(-2, 2, 200), np.full(200, value)
            if name == "x":
                x, y = lambert(all_of_it, np.clip(middle[1] + along * height, -90, 90), middle)
            else:
                x, y = lambert(middle[0] + np.clip(along * around, -89, 89), all_of_it, middle)
            axes.plot(x, y, color="#c3ccd6", linewidth=0.7, zorder=1)
            here, there, edge = (y, x, low) if name == "x" else (-x, y, -left)
            order = np.argsort(here)
            place = float(np.interp(edge, here[order], there[order], left=np.nan, right=np.nan))
            limits = (left, right) if name == "x" else (low, high)
            if min(limits) <= place <= max(limits):
                shown = value % 360 if name == "x" else value
                ticks[name].append((place, f"{shown:.{digits}f}°".replace("-", "−")))
    axes.set_xticks(*map(list, zip(*ticks["x"], strict=True)) if ticks["x"] else ([],))
    axes.set_yticks(*map(list, zip(*ticks["y"], strict=True)) if ticks["y"] else ([],))
    axes.set(xlabel="right ascension", ylabel="declination", xlim=(left, right), ylim=(low, high))
