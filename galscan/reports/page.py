"""Rendering of report pages, and formatting of numbers.

Pages are self-contained HTML without requests: all images are embedded. Text is escaped by jinja2. Only the page of a
scan has a script, for the panel with Aladin Lite, which loads nothing before it is opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jinja2

from galscan.core.version import __version__


def render(template: str, **values: Any) -> str:
    """Render one of the package's templates."""
    loader = jinja2.PackageLoader("galscan.reports")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(version=__version__, **values)


def number(value: float | None, *, sign: bool = False) -> str:
    """Format with three decimals; a dash for unknown values."""
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def count(value: int | None) -> str:
    """Format an integer; a dash for unknown values."""
    return "–" if value is None else f"{value:,}"


def duration(value: float | None) -> str:
    """Format a duration in seconds as seconds, minutes or hours."""
    if value is None:
        return "not measured"
    return f"{value:,.1f} s" if value < 120 else f"{value / 60:,.1f} min" if value < 7200 else f"{value / 3600:,.1f} h"


def interval(entry: Mapping[str, float | None], *, percent: bool = False) -> str:
    """Format ``value (low to high)`` with two significant digits; a dash for unknown values."""
    value, low, high = (entry.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "–"
    scale, unit = (100, " %") if percent else (1, "")
    ends = [scale * end for end in (value, low or 0.0, 1.0 if high is None else high)]
    value_text, low_text, high_text = (f"{end:.0f}" if end > 99 else f"{end:.2g}" for end in ends)
    return f"{value_text}{unit} ({low_text} to {high_text})"
