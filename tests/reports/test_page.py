"""Contrast of colours and formatting of numbers in all report pages."""

from __future__ import annotations

import importlib.resources
import math
import re

import pytest

from galscan.reports import plots, plots_sky
from galscan.reports.page import count, duration, interval, number
from tests.pages import contrast

PACKAGE = importlib.resources.files("galscan")
BASE = "reports/templates/base.html.j2"
READ, SEEN = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11: of text, and of graphics


def palette(name: str) -> dict[str, str]:
    """Return the colours a page declares."""
    root = re.search(r":root \{(.*?)\}", (PACKAGE / name).read_text(encoding="utf-8"))
    assert root
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", root[1]))


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("page", "inks", "grounds"),
    [
        (BASE, ("ink", "soft", "accent", "mark"), ("ground", "wash")),
        ("vetting/page.html", ("ink", "faint", "mark", "bad"), ("ground", "panel")),
    ],
)
def test_every_text_can_be_read_on_every_ground(page, inks, grounds):
    colours = palette(page)
    for ink in inks:
        for ground in grounds:
            assert contrast(colours[ink], colours[ground]) >= READ, (ink, ground)


def test_frames_and_lines_can_be_seen():
    assert contrast(palette(BASE)["frame"], "#ffffff") >= SEEN
    for colour in (plots.BLUE, plots.ORANGE, plots.GREY):
        assert contrast(colour, "#ffffff") >= SEEN
    assert contrast(plots.ORANGE, "#ffffff") >= READ  # it writes the number of the accepted, too
    for name in ("axes.labelcolor", "xtick.color", "ytick.color"):
        assert contrast(plots.STYLE[name], "#ffffff") >= READ
    assert contrast(plots_sky.DARK[-1], plots_sky.SHADE) >= SEEN  # the purest candidates on what was scanned


def test_numbers_are_written_for_people():
    assert [number(x) for x in (0.12345, None, math.nan)] == ["0.123", "–", "–"] and number(-0.5, sign=True) == "−0.500"
    assert [count(x) for x in (12345, None)] == ["12,345", "–"]
    assert [duration(x) for x in (None, 12.34, 600, 36000)] == ["not measured", "12.3 s", "10.0 min", "10.0 h"]
    assert interval({"value": 0.004, "low": None, "high": None}, percent=True) == "0.4 % (0 to 100)"
    assert interval({}) == "–"
