"""PDF with pages of cutouts, written page by page.

Matplotlib keeps the images of all pages in memory, and Pillow's PDFs have no text. The subset of PDF needed here is
small (ISO 32000-1, 7.5: objects, cross-reference table, trailer).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from galscan.candidates import scan_tables
from galscan.candidates.ranking import caption
from galscan.candidates.table_stream import TableStream
from galscan.core import progress
from galscan.core.files import atomic_path
from galscan.core.version import __version__

COLUMNS, LINES = 8, 10
PAGE = COLUMNS * LINES
_AHEAD = 10  # pages whose images are read together, as candidates are scattered over the store
_WIDTH, _HEIGHT = 595.0, 842.0  # points: A4
_MARGIN, _STAMP, _HEAD = 36.0, 56.0, 30.0
_STEP = (_WIDTH - 2 * _MARGIN - _STAMP) / (COLUMNS - 1), (_HEIGHT - 2 * _MARGIN - _HEAD) / LINES
_SMALL, _LARGE = 5.0, 10.0  # points, of text
_TRAINED_ON = "0.84 0.54 0.24"  # frame colour of candidates in the model's training set, whose scores are biased
_QUALITY = 93
_LETTERS = 24  # maximum length of a caption line


def pdf(rows: TableStream, out: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write pages of 8 x 10 candidates in rank order, with rank, probability and designation.

    At most ten pages are held in memory.

    Raises
    ------
    InputError
        If a store is missing or has changed since the scan.
    """
    stores = scan_tables.open_stores(info)
    wanted = ["rank", "p_target", "score", "designation", "store", "index", "in_train", "known_name"]
    rows = rows.select([name for name in wanted if name in rows.names])
    pages = -(-rows.count // PAGE)
    footer = f"run {str(info.get('fingerprint'))[:12]}, galscan {__version__}"
    title = f"{info.get('target')}: {rows.count:,} candidates of {info.get('scanned', 0):,} galaxies"
    with (
        atomic_path(out) as temporary,
        open(temporary, "wb") as handle,
        progress.track("pages", max(pages, 1), "pages") as advance,
    ):
        document = _Document(handle, title)
        for block in _blocks(rows, _AHEAD * PAGE):
            stored = list(zip(block["store"].to_pylist(), block["index"].to_pylist(), strict=True))
            images = dict(scan_tables.read_images(stores, stored))
            for start in range(0, len(block), PAGE):
                page = block.slice(start, PAGE).to_pylist()
                number = len(document.kids) + 1
                shown = [images[start + k] for k in range(len(page))]
                document.page(shown, page, f"{title}; page {number} of {pages}", footer)
                advance()
        if not pages:
            document.page([], [], f"{title}: no candidates", "")
        document.close()
    return {"pages": max(pages, 1)}


def _blocks(rows: TableStream, count: int) -> Iterator[pa.Table]:
    """Yield the rows in blocks of `count`, the last of which may be smaller."""
    rest: pa.Table | None = None
    for piece in rows:
        rest = piece if rest is None else pa.concat_tables([rest, piece])
        while len(rest) >= count:
            yield rest.slice(0, count)
            rest = rest.slice(count)
    if rest is not None and len(rest):
        yield rest


class _Document:
    """Writer of a PDF; objects are written at once, and only their offsets are kept."""

    def __init__(self, handle: BinaryIO, title: str):
        self.handle, self.kids = handle, list[int]()
        self.starts = [0, 0, 0]  # offsets by object number: 0 is unused, 1 the catalogue, 2 the page tree
        handle.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
        self.font = self._add("/Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding")
        self.info = self._add(f"/Title ({_escaped(title)}) /Producer (galscan {__version__})")

    def _add(self, entries: str, data: bytes | None = None, number: int | None = None) -> int:
        """Write an object, a dictionary with an optional data stream; return its number."""
        if number is None:
            number = len(self.starts)
            self.starts.append(0)
        self.starts[number] = self.handle.tell()
        stream = b"" if data is None else b"stream\n" + data + b"\nendstream\n"
        entries += "" if data is None else f" /Length {len(data)}"
        self.handle.write(f"{number} 0 obj\n<< {entries} >>\n".encode("cp1252", "replace") + stream + b"endobj\n")
        return number

    def page(self, images: list[np.ndarray], candidates: list[dict[str, Any]], title: str, footer: str) -> None:
        """Add a page of images with captions below."""
        drawing = [
            _text(_MARGIN, _HEIGHT - _MARGIN - 6, _LARGE, title), _text(_MARGIN, _MARGIN - 14, _SMALL, footer)
        ]  # fmt: skip
        names = []
        for k, (image, candidate) in enumerate(zip(images, candidates, strict=True)):
            x = _MARGIN + (k % COLUMNS) * _STEP[0]
            y = _HEIGHT - _MARGIN - _HEAD - (k // COLUMNS) * _STEP[1] - _STAMP + 12
            names.append(f"/I{k} {self._picture(image)} 0 R")
            drawing.append(f"q {_STAMP:.2f} 0 0 {_STAMP:.2f} {x:.2f} {y:.2f} cm /I{k} Do Q")
            if candidate["in_train"]:
                side = _STAMP + 2  # the frame is outside the image
                drawing.append(f"q {_TRAINED_ON} RG 1.5 w {x - 1:.2f} {y - 1:.2f} {side:.2f} {side:.2f} re S Q")
            lines = caption(candidate), candidate["designation"], candidate.get("known_name")
            for n, line in enumerate(lines):
                drawing.append(_text(x, y - 5.4 - n * 5.6, _SMALL, (line or "")[:_LETTERS]))
        content = self._add("/Filter /FlateDecode", zlib.compress("\n".join(drawing).encode("cp1252", "replace")))
        self.kids.append(self._add(
            f"/Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH:g} {_HEIGHT:g}] /Contents {content} 0 R /Resources "
            f"<< /Font << /F {self.font} 0 R >> /XObject << {' '.join(names)} >> >>"
        ))  # fmt: skip

    def _picture(self, image: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "jpeg", quality=_QUALITY, subsampling=0)
        height, width = image.shape[:2]
        return self._add(
            f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB "
            "/BitsPerComponent 8 /Filter /DCTDecode",
            buffer.getvalue(),
        )

    def close(self) -> None:
        """Write catalogue, page tree, cross-reference table and trailer."""
        self._add("/Type /Catalog /Pages 2 0 R", number=1)
        kids = " ".join(f"{kid} 0 R" for kid in self.kids)
        self._add(f"/Type /Pages /Count {len(self.kids)} /Kids [{kids}]", number=2)
        table = self.handle.tell()
        entries = "".join(f"{start:010d} 00000 n \n" for start in self.starts[1:])
        self.handle.write(f"xref\n0 {len(self.starts)}\n0000000000 65535 f \n{entries}".encode())
        self.handle.write(f"trailer\n<< /Size {len(self.starts)} /Root 1 0 R /Info {self.info} 0 R >>\n".encode())
        self.handle.write(f"startxref\n{table}\n%%EOF\n".encode())


def _text(x: float, y: float, size: float, text: str) -> str:
    return f"BT /F {size:g} Tf {x:.2f} {y:.2f} Td ({_escaped(text)}) Tj ET"


def _escaped(text: str) -> str:
    """Return text escaped for a PDF string."""
    text = "".join(c if c >= " " else " " for c in text)
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
