"""Sky map of a scan: coverage and candidates, in an equal-area projection with east to the left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from galscan.core.sky import unit_vectors
from galscan.reports.plots import Plot, as_plot, new_axes, styled
from galscan.reports.scan_facts import Footprint

if TYPE_CHECKING:
    from astropy.wcs import WCS
    from matplotlib.axes import Axes

MAX_POINTS = 20_000  # maximum number of candidates: more make the page too large for browsers
VECTORS = 200  # number of candidates, above which they are drawn as pixels: thousands of paths take seconds
FIELD = 25.0  # degrees; if all candidates are this near the centre, a field is drawn instead of the whole sky
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
        wcs = _projection(centre)
        figure, axes = new_axes(height=4.2, projection=wcs)
        x, y = wcs.world_to_pixel_values(ra, dec)
    else:
        figure, axes = new_axes(height=3.1, projection="mollweide")
        x, y = -np.radians((ra + 180) % 360 - 180), np.radians(dec)
    colours = LinearSegmentedColormap.from_list("purity", DARK)
    points = axes.scatter(
        x, y, c=candidates["purity"], s=14, cmap=colours, vmin=0, vmax=1, linewidth=0, zorder=3,
        rasterized=count > VECTORS,
    )  # fmt: skip
    if field:  # square, just wide enough for all candidates
        half = 1.06 * max(np.abs(x).max(), np.abs(y).max(), 0.005)
        axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    if footprint is not None:
        _shade_coverage(axes, footprint, centre if field else None)
    if field:
        axes.coords.grid(color="#c3ccd6", linewidth=0.7)
        for coordinate, name in zip(axes.coords, ("right ascension", "declination"), strict=True):
            coordinate.set_format_unit("deg", decimal=True, show_decimal_unit=True)
            coordinate.set_axislabel(name)
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


def _projection(centre: tuple[float, float]) -> WCS:
    """Return Lambert's azimuthal equal-area projection about `centre`, a degree per pixel, east to the left."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = ["RA---ZEA", "DEC--ZEA"], centre, [1, 1], [-1, 1]
    return wcs


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
        x, y = _projection(centre).world_to_pixel_values(grid_ra, grid_dec)
        used = used[first:last]
    axes.pcolormesh(x, y, used, cmap=ListedColormap([SHADE]), rasterized=True, zorder=0)
    if centre is not None:
        axes.set(xlim=limits[0], ylim=limits[1])
