from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from galscan.core.display import html

NAMES = ("rank", "purity")


def parsed(text: str) -> ET.Element:
    """Return the elements of HTML that is also valid XML."""
    return ET.fromstring(text.replace('border-radius:3px">', 'border-radius:3px"/>'))


def test_a_card_escapes_text_and_loads_nothing():
    images = [html.Picture(np.full((20, 20, 3), k, np.uint8), f"<i>{k}</i>") for k in range(15)]
    text = html.card(
        "Run <script>", '/a/"b"', [("scored", "1 & 2"), ("empty", ""), ("none", None), ("zero", 0)],
        pictures=images, notes=["<b>"], inner=[html.card("inner", "/c", [])],
    )  # fmt: skip
    root = parsed(text)
    words = [e.text for e in root.iter() if e.text]
    assert {"Run <script>", '/a/"b"', "1 & 2", "0", "<b>", "inner", "<i>0</i>"} <= {*words}
    assert not {"empty", "none"} & {*words}
    tags = [e.tag for e in root.iter()]
    assert set(tags) == {"div", "img"} and tags.count("img") == html.PICTURES
    assert all(e.get("src", "data:").startswith("data:") and e.get("alt", "-") for e in root.iter())


def test_thumbnails_are_small():
    large = np.random.default_rng(0).integers(0, 255, (424, 424, 3), dtype=np.uint8)
    head, _, data = html.jpeg_uri(large).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert head == "data:image/jpeg;base64" and image.size == (96, 96)


def test_a_curve_runs_from_left_to_right_within_its_axes():
    x = np.arange(1, 200.0)
    text = html.curve(x, 0.9 - x / 400, 0.5 - x / 400, 1.2 - x / 400, names=NAMES, description='"<')
    root = ET.fromstring(text)
    assert root.get("aria-label") == '"<'
    line = next(e for e in root.iter() if e.tag.endswith("polyline"))
    px, py = np.array([pair.split(",") for pair in line.get("points").split()], float).T
    assert (np.diff(px) > 0).all() and (np.diff(py) >= 0).all(), "y grows downwards"
    band = next(e for e in root.iter() if e.tag.endswith("polygon")).get("points")
    points = np.array([pair.split(",") for pair in band.split()], float)
    assert points.min() >= 0 and points[:, 0].max() <= 270 and points[:, 1].max() <= 150
    assert {"1", "199", *NAMES} <= {e.text for e in root.iter()}


def test_points_and_unknown_values():
    unknown = np.full(3, np.nan)
    assert html.curve(np.arange(1, 4), unknown, unknown, unknown, names=NAMES, description="") == ""
    x = np.array([0.1, 0.5, np.nan])
    points = html.curve(x, x, x - 0.05, x + 0.05, names=NAMES, description="", by_rank=False)
    assert points.count("<circle") == 2
    one = np.array([1.0])
    assert "nan" not in html.curve(one, one, one, one, names=NAMES, description="")
