"""Contact sheets of cutouts, and PNG data for images embedded in HTML pages."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from galscan.core.errors import InputError
from galscan.core.files import atomic_path

_BACKGROUND = (18, 20, 26)
_INK = (222, 226, 234)
_FAINT = (150, 157, 170)
_GAP = 10  # pixels between tiles
_LINE = 15  # pixels a caption line
_MARGIN = 16

Colour = tuple[int, int, int]


def contact_sheet(
    images: np.ndarray | Sequence[np.ndarray],
    path: str | os.PathLike[str],
    *,
    captions: Sequence[str] | None = None,
    columns: int = 8,
    title: str = "",
    tile: int = 96,
    borders: Sequence[Colour | None] | None = None,
) -> Path:
    """Write a PNG of `images` in rows of `columns` on a dark background, atomically.

    Raises `InputError` if shapes or lengths are inconsistent.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, size, size, 3), or sequence of ndarray, each of shape (size, size, 3)
        Red, green, blue; n may be 0. Images of a sequence may differ in size.
    captions : sequence of str, optional
        One per image; may have several lines, which are truncated to the width of the tile.
    tile : int
        Pixels on a side of each image in the sheet.
    borders : sequence of (r, g, b) or None, optional
        Colour of the frame around each image; None for no frame.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"contact_sheet: an image is {image.dtype} {image.shape}; give uint8 of shape (size, size, 3)"
            )
    count = len(images)
    for name, values in (("captions", captions), ("borders", borders)):
        if values is not None and len(values) != count:
            raise InputError(f"contact_sheet: {len(values)} {name} for {count} images; give one for each")
    if columns < 1 or tile < 8:
        raise InputError(f"contact_sheet: columns={columns}, tile={tile}; use at least 1 column and 8 pixels")

    lines = [caption.split("\n") for caption in captions] if captions is not None else [[] for _ in range(count)]
    depth = max((len(entry) for entry in lines), default=0)
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    step_x, step_y = tile + _GAP, tile + _GAP + depth * _LINE
    head = 34 if title else 0
    font, title_font = ImageFont.load_default(11), ImageFont.load_default(17)
    title_width = int(title_font.getlength(title)) if title else 0
    width = 2 * _MARGIN + max(columns * step_x - _GAP, min(title_width, 1600))
    height = 2 * _MARGIN + head + max(rows * step_y - _GAP, 2 * _LINE)

    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), _fitted(title, title_font, width - 2 * _MARGIN), fill=_INK, font=title_font)
    if count == 0:
        draw.text((_MARGIN, _MARGIN + head), "no images", fill=_FAINT, font=font)
    for k in range(count):
        x, y = _MARGIN + (k % columns) * step_x, _MARGIN + head + (k // columns) * step_y
        sheet.paste(Image.fromarray(images[k]).resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
        if borders is not None and (colour := borders[k]) is not None:
            # Outside the image, so that no pixel is hidden.
            draw.rectangle((x - 3, y - 3, x + tile + 2, y + tile + 2), outline=colour, width=3)
        for n, line in enumerate(lines[k]):
            ink = _INK if n == 0 else _FAINT
            draw.text((x, y + tile + 3 + n * _LINE), _fitted(line, font, tile), fill=ink, font=font)

    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=False)
    return Path(path)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return `text`, truncated with three dots if it is wider than `width` pixels."""
    text = text[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def sprite(images: Iterable[np.ndarray], count: int, tile: int = 64, quality: int = 75) -> tuple[bytes, int]:
    """Return one JPEG with many small images in rows, for pages that show some of them at a time.

    Parameters
    ----------
    images : iterable of ndarray of uint8, shape (size, size, 3)
        They are resampled; only one at a time is held in memory.
    count : int
        Number of images, at least 1.
    tile : int
        Pixels on a side of an image in the JPEG; a multiple of 16, so that images share no block of the JPEG.
    quality : int
        Of the JPEG, 1 to 95.

    Returns
    -------
    jpeg : bytes
    columns : int
        Images in a row: image k is in row ``k // columns``.
    """
    if count < 1 or tile < 16 or tile % 16:
        raise InputError(f"sprite: {count} images of {tile} pixels; give at least one, and a multiple of 16 pixels")
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * tile, math.ceil(count / columns) * tile))
    for k, image in enumerate(images):
        shown = Image.fromarray(image).resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(shown, (k % columns * tile, k // columns * tile))
    buffer = io.BytesIO()
    # Colours at full resolution: at half, those of neighbouring images would mix at their edges.
    sheet.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue(), columns


def png_bytes(image: np.ndarray) -> bytes:
    """Return `image` (uint8, (size, size, 3) or (size, size)) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(image: np.ndarray | bytes) -> str:
    """Return a PNG (bytes), or an image as for `png_bytes`, as a ``data:`` URL for an ``img`` tag."""
    data = image if isinstance(image, bytes) else png_bytes(image)
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
