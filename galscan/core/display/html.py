"""HTML of objects in notebooks: facts, thumbnails and a small chart, for light and dark themes.

All colours are the notebook's own (``currentColor``) or readable on both. Nothing is loaded and no script is run; text
is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

PICTURES = 12  # thumbnails at most
_SIDE = 72  # pixels of a thumbnail on the page
_STORED = 96  # pixels of a thumbnail in its file
_ACCENT = "#3f88bd"  # readable on white and on black
_WIDTH, _HEIGHT = 270, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 34  # margins of a chart


class Picture(NamedTuple):
    """A thumbnail: uint8 of shape (size, size, 3), and its caption."""

    image: np.ndarray
    caption: str


def card(
    title: str,
    where: str,
    facts: Sequence[tuple[str, Any]],
    *,
    pictures: Sequence[Picture] = (),
    chart: str = "",
    notes: Sequence[str] = (),
    inner: Sequence[str] = (),
) -> str:
    """Return the HTML of an object.

    Parameters
    ----------
    where : str
        Path or URL.
    facts : sequence of (name, value)
        Short values; empty ones are left out.
    chart, inner : str
        HTML: a chart of `curve`, and cards below.
    """
    shown = "".join(
        f'<div><div style="opacity:.7;font-size:.8em">{_escaped(name)}</div><div>{_escaped(value)}</div></div>'
        for name, value in facts if value not in ("", None)
    )  # fmt: skip
    images = "".join(map(_thumbnail, pictures[:PICTURES]))
    if images:
        images = f'<div style="display:flex;flex-wrap:wrap;gap:8px;flex:1 1 260px">{images}</div>'
    body = f'<div style="display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start">{images}{chart}</div>'
    lines = "".join(f'<div style="margin-top:8px;font-size:.88em">{_escaped(note)}</div>' for note in notes)
    return (
        '<div class="galscan-card" style="font-family:system-ui,sans-serif;font-size:14px;line-height:1.4;'
        "color:inherit;max-width:880px;box-sizing:border-box;border:1px solid rgba(128,128,128,.45);border-radius:6px;"
        'padding:10px 14px;margin:4px 0">'
        f'<div style="font-weight:600">{_escaped(title)}</div>'
        f'<div style="opacity:.7;font-size:.85em;overflow-wrap:anywhere">{_escaped(where)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:6px 22px;margin:8px 0">{shown}</div>'
        f"{body if images or chart else ''}{lines}{''.join(inner)}</div>"
    )


def _escaped(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _thumbnail(picture: Picture) -> str:
    uri, caption = jpeg_uri(picture.image), _escaped(picture.caption)
    return (
        f'<div style="width:{_SIDE}px"><img src="{uri}" alt="{caption}" title="{caption}" width="{_SIDE}" '
        f'height="{_SIDE}" style="display:block;max-width:none;margin:0;border-radius:3px">'
        '<div style="font-size:11px;opacity:.8;white-space:nowrap;overflow:hidden;text-overflow:ellipsis">'
        f"{caption}</div></div>"
    )


def jpeg_uri(image: np.ndarray) -> str:
    """Return an image as a small JPEG in a ``data:`` URL."""
    picture = Image.fromarray(np.asarray(image, dtype=np.uint8))
    if max(picture.size) > _STORED:
        picture = picture.resize((_STORED, _STORED), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curve(
    x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, *, names: tuple[str, str], description: str,
    by_rank: bool = True,
) -> str:  # fmt: skip
    """Return a chart as SVG; empty if no value is known.

    Parameters
    ----------
    x, y, low, high : ndarray of float, shape (n,)
        Values with their limits, 0 to 1.
    names : tuple of str
        Labels of the axes.
    description : str
        Text for readers who do not see the chart.
    by_rank : bool
        Draw a line over ranks, on a logarithmic axis; otherwise points with bars over 0 to 1, and the diagonal.
    """
    values = np.stack([np.asarray(v, dtype=float) for v in (x, y, low, high)])
    x, y, low, high = values[:, np.isfinite(values).all(axis=0)]
    if not len(x):
        return ""
    ends = (math.log(x[0]), math.log(max(x[-1], x[0] * 1.001))) if by_rank else (0.0, 1.0)
    across = (np.log(x) if by_rank else x) - ends[0]
    px = _LEFT + across / (ends[1] - ends[0]) * (_WIDTH - _LEFT - _RIGHT)
    py, top, bottom = (_TOP + (1 - v.clip(0, 1)) * (_HEIGHT - _TOP - _BOTTOM) for v in (y, high, low))
    if by_rank:
        band = " ".join(_points(np.r_[px, px[::-1]], np.r_[top, bottom[::-1]]))
        marks = (
            f'<polygon points="{band}" fill="{_ACCENT}" fill-opacity=".35"/>'
            f'<polyline points="{" ".join(_points(px, py))}" fill="none" stroke="{_ACCENT}" stroke-width="2"/>'
        )
    else:
        marks = (
            f'<path d="M{_LEFT} {_HEIGHT - _BOTTOM}L{_WIDTH - _RIGHT} {_TOP}" stroke="currentColor" '
            'stroke-opacity=".5" stroke-dasharray="2 3"/>'
        )
        for at, middle, t, b in zip(px, py, top, bottom, strict=True):
            marks += f'<path d="M{at:.1f} {t:.1f}V{b:.1f}" stroke="{_ACCENT}" stroke-width="1.5"/>'
            marks += f'<circle cx="{at:.1f}" cy="{middle:.1f}" r="3" fill="{_ACCENT}"/>'
    text_ends = (f"{x[0]:,.0f}", f"{x[-1]:,.0f}") if by_rank else ("0", "1")
    return (
        f'<svg role="img" aria-label="{_escaped(description)}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" style="flex:none;max-width:100%;font-size:11px" fill="currentColor" '
        f'xmlns="http://www.w3.org/2000/svg">'
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="currentColor" '
        f'stroke-opacity=".6"/>{marks}'
        f"{_text(_LEFT - 6, _TOP + 4, '1', 'end')}{_text(_LEFT - 6, _HEIGHT - _BOTTOM + 4, '0', 'end')}"
        f"{_text(_LEFT, _HEIGHT - _BOTTOM + 14, text_ends[0], 'start')}"
        f"{_text(_WIDTH - _RIGHT, _HEIGHT - _BOTTOM + 14, text_ends[1], 'end')}"
        f"{_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, names[0], 'middle')}"
        f'<text transform="translate(12 {(_TOP + _HEIGHT - _BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{_escaped(names[1])}</text></svg>"
    )


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_escaped(text)}</text>'
