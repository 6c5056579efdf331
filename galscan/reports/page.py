"""What all report pages have in common: self-contained HTML, and numbers as people write them.

No scripts and no requests: every picture and curve is inside the page. Text goes through jinja2's autoescape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jinja2

from galscan.core.version import __version__


def render(template: str, **values: Any) -> str:
    """Return a page made of one of the package's templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("galscan.reports"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(version=__version__, **values)


def number(value: float | None, *, sign: bool = False) -> str:
    """Return three decimals, a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def count(value: int | None) -> str:
    """Return a whole number, a dash for what is not known."""
    return "–" if value is None else f"{value:,}"


def duration(value: float | None) -> str:
    """Return seconds as seconds, minutes or hours."""
    if value is None:
        return "not measured"
    return f"{value:,.1f} s" if value < 120 else f"{value / 60:,.1f} min" if value < 7200 else f"{value / 3600:,.1f} h"


def interval(entry: Mapping[str, float | None], *, percent: bool = False) -> str:
    """Return ``value (low to high)``, with two figures; a dash for what is not known."""
    value, low, high = (entry.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "–"
    scale, unit = (100, " %") if percent else (1, "")
    ends = [scale * end for end in (value, low or 0.0, 1.0 if high is None else high)]
    told, least, most = (f"{end:.0f}" if end > 99 else f"{end:.2g}" for end in ends)
    return f"{told}{unit} ({least} to {most})"
