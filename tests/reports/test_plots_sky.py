"""Sky map of a field, also at the pole and across 0 h, and of the whole sky."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from galscan.reports import plots_sky
from galscan.reports.scan_facts import Footprint
from tests.candidate_tables import candidates
from tests.reports.test_plots import svg


def around(ra: float, dec: float, reach: float, n: int = 60) -> pd.DataFrame:
    """Return candidates within `reach` degrees of a position."""
    rng = np.random.default_rng(0)
    up = np.clip(dec + rng.uniform(-reach, reach, n), -90, 90)
    along = rng.uniform(-reach, reach, n) / np.maximum(np.cos(np.radians(up)), 0.1)
    return candidates(n).assign(ra=np.mod(ra + along, 360), dec=up)


def footprint_of(placed: pd.DataFrame) -> Footprint:
    counts = np.zeros((80, 256), int)
    row = ((np.sin(np.radians(placed["dec"])) + 1) / 2 * 80).astype(int).clip(upper=79)
    counts[row, (placed["ra"] / 360 * 256).astype(int) % 256] = 9
    return Footprint(counts, None, (-90.0, 90.0), int(counts.sum()))


@pytest.mark.parametrize("place", [(359.5, 12.0, 3.0), (200.0, 0.0, 0.01), (30.0, 89.0, 0.5)])
def test_field_with_east_to_the_left(place, monkeypatch):
    figures = []
    as_plot = plots_sky.as_plot

    def record(figure, *texts):
        figures.append(figure)
        return as_plot(figure, *texts)

    monkeypatch.setattr(plots_sky, "as_plot", record)
    placed = around(*place)
    plot = plots_sky.sky(placed, footprint_of(placed))
    assert svg(plot) and "60 candidates" in plot.caption and "Lambert" in plot.caption
    axes = figures[0].axes[0]
    ra, dec = axes.wcs.wcs.crval
    assert axes.wcs.world_to_pixel_values(ra + 1, dec)[0] < 0 < axes.wcs.world_to_pixel_values(ra, dec + 0.5)[1]
    x, y = axes.collections[0].get_offsets().T
    half = axes.get_xlim()[1]
    assert max(abs(x).max(), abs(y).max()) == pytest.approx(half / 1.06) and axes.get_xlim()[0] == -half


def test_whole_sky():
    placed = candidates(60).dropna(subset=["ra"])
    with_coverage, without = plots_sky.sky(placed, footprint_of(placed)), plots_sky.sky(placed, None)
    assert "scanned cells are grey" in with_coverage.caption and "grey" not in without.caption
    assert "58 candidates" in without.caption and "Mollweide" in without.caption
    root = ET.fromstring(svg(without))
    width, height = (float(root.get(k, "").removesuffix("pt")) for k in ("width", "height"))
    assert width / height > 1.65  # Mollweide is twice as wide as high
    assert svg(with_coverage) != svg(without)


def test_one_candidate_is_a_field():
    assert "Lambert" in plots_sky.sky(around(10, 20, 1, 2).head(1), None).caption
