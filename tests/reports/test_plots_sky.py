"""Sky map: equal areas, east to the left, tick labels in degrees, at any position."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def scanned(placed: pd.DataFrame) -> Footprint:
    counts = np.zeros((800, 2560), int)
    row = ((np.sin(np.radians(placed["dec"])) + 1) / 2 * 800).astype(int).clip(upper=799)
    counts[row, (placed["ra"] / 360 * 2560).astype(int) % 2560] = 9
    return Footprint(counts, None, (-90.0, 90.0), int(counts.sum()))


@given(st.floats(0, 360), st.floats(-85, 85), st.floats(0.01, 20), st.floats(0, 360))
def test_areas_are_kept_and_east_is_left(ra, dec, reach, angle):
    """A small circle somewhere in the field keeps its area, in square degrees."""
    middle, size = (ra, dec), 0.01
    turn = np.linspace(0, 2 * np.pi, 200)
    at = dec + (reach if dec < 0 else -reach) * abs(np.cos(np.radians(angle)))
    up, along = at + size * np.sin(turn), ra + 3 + size * np.cos(turn) / np.cos(np.radians(at))
    x, y = plots_sky.lambert(along, up, middle)
    area = 0.5 * abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
    assert area == pytest.approx(np.pi * size**2, rel=3e-3)
    assert plots_sky.lambert(np.array([ra + 1]), np.array([dec]), middle)[0][0] < 0


@pytest.mark.parametrize(
    ("place", "ticks"),
    [
        ((359.5, 12.0, 3.0), {"358°", "0°", "2°", "10°", "12°", "14°"}),  # across 0 h
        ((200.0, 0.0, 0.2), {"200.0°", "0.0°", "−0.1°"}),
        ((150.0, -70.0, 1.5), {"150°", "−70°"}),
        ((30.0, 89.0, 0.5), {"30°"}),
    ],
)
def test_a_field_is_drawn_flat_with_its_degrees(place, ticks, monkeypatch):
    said = []
    real = plots_sky.as_plot
    spy = lambda figure, *words: (said.append(figure), real(figure, *words))[1]  # noqa: E731
    monkeypatch.setattr(plots_sky, "as_plot", spy)
    placed = around(*place)
    drawn = plots_sky.sky(placed, scanned(placed))
    assert svg(drawn) and "60 candidates" in drawn.caption and "Lambert" in drawn.caption
    axes = said[0].axes[0]
    shown = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert ticks <= set(shown) and len(shown) == len(set(shown))
    edges = [label.get_text() for label in axes.get_xticklabels()]
    places = [float(re.sub("[°−]", "", text)) for text in edges]
    unwrapped = np.unwrap(np.radians(places))
    assert (np.diff(unwrapped[np.argsort(axes.get_xticks())]) < 0).all()  # right ascension grows to the left
    x, y = axes.collections[0].get_offsets().T
    assert max(abs(x).max(), abs(y).max()) < axes.get_xlim()[1] and axes.get_xlim()[0] == -axes.get_xlim()[1]


def test_the_whole_sky_is_drawn_as_one():
    placed = candidates(60).dropna(subset=["ra"])
    with_ground, without = plots_sky.sky(placed, scanned(placed)), plots_sky.sky(placed, None)
    assert "scanned cells are grey" in with_ground.caption and "grey" not in without.caption
    assert "58 candidates" in without.caption and "Mollweide" in without.caption
    root = ET.fromstring(svg(without))
    width, height = (float(root.get(k, "").removesuffix("pt")) for k in ("width", "height"))
    assert width / height > 1.65  # Mollweide is twice as wide as high
    assert svg(with_ground) != svg(without) and plots_sky.sky(placed, scanned(placed)) == with_ground


def test_one_candidate_alone_is_a_field():
    assert "Lambert" in plots_sky.sky(around(10, 20, 1, 2).head(1), None).caption
