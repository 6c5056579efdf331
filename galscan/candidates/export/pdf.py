"""PDF with pages of cutouts, written page by page.

Matplotlib and `Image.save` keep all pages in memory. Pillow's writer of PDF objects, used here, keeps their offsets.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PdfParser import IndirectReference, PdfDict, PdfName, PdfParser, pdf_repr

from galscan.candidates.ranking import caption
from galscan.candidates.table_stream import TableStream
from galscan.core import progress
from galscan.core.files import atomic_path
from galscan.core.version import __version__
from galscan.scanning.run import Run
from galscan.store.layout import read_images

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


def pdf(rows: TableStream, out: Path, run: Run) -> dict[str, Any]:
    """Write pages of 8 x 10 candidates in rank order, with rank, probability and designation."""
    stores = run.stores()
    wanted = ["rank", "p_target", "score", "designation", "store", "index", "in_train", "known_name"]
    rows = rows.select([name for name in wanted if name in rows.names])
    pages = max(-(-rows.count // PAGE), 1)
    footer = f"run {run.info.fingerprint[:12]}, galscan {__version__}"
    title = f"{run.info.target}: {rows.count:,} candidates of {run.info.scanned:,} galaxies"
    with (
        atomic_path(out) as temporary,
        PdfParser(str(temporary), mode="w+b") as document,
        progress.track("pages", pages, "pages") as advance,
    ):
        document.start_writing()
        document.write_header()
        document.info.update({"Title": title, "Producer": f"galscan {__version__}"})
        document.pages = [document.next_object_id(0) for _ in range(pages)]
        document.write_catalog()
        font = document.write_obj(
            None, Type=PdfName("Font"), Subtype=PdfName("Type1"), BaseFont=PdfName("Helvetica"),
            Encoding=PdfName("WinAnsiEncoding"),
        )  # fmt: skip
        candidates = (row for piece in rows for row in piece.to_pylist())
        for first in range(0, pages, _AHEAD):
            block = list(islice(candidates, _AHEAD * PAGE))
            images = dict(read_images(stores, [(row["store"], row["index"]) for row in block]))
            for page in range(first, min(first + _AHEAD, pages)):
                numbers = range((page - first) * PAGE, min((page - first + 1) * PAGE, len(block)))
                stamps = [(block[k], images[k]) for k in numbers]
                head = f"{title}; page {page + 1} of {pages}" if rows.count else f"{title}: no candidates"
                _write_page(document, page, font, stamps, head, footer)
                advance()
        document.write_xref_and_trailer()
    return {"pages": pages}


def _write_page(
    document: PdfParser, number: int, font: IndirectReference, stamps: Sequence[tuple[dict[str, Any], np.ndarray]],
    title: str, footer: str,
) -> None:  # fmt: skip
    """Write a page of images with captions below."""
    pictures = {}
    drawing = [_text(_MARGIN, _HEIGHT - _MARGIN - 6, _LARGE, title), _text(_MARGIN, _MARGIN - 14, _SMALL, footer)]
    for k, (candidate, image) in enumerate(stamps):
        x = _MARGIN + (k % COLUMNS) * _STEP[0]
        y = _HEIGHT - _MARGIN - _HEAD - (k // COLUMNS) * _STEP[1] - _STAMP + 12
        pictures[f"I{k}"] = _write_image(document, image)
        drawing.append(f"q {_STAMP:.2f} 0 0 {_STAMP:.2f} {x:.2f} {y:.2f} cm /I{k} Do Q".encode())
        if candidate["in_train"]:
            side = _STAMP + 2  # the frame is outside the image
            frame = f"{x - 1:.2f} {y - 1:.2f} {side:.2f} {side:.2f} re"
            drawing.append(f"q {_TRAINED_ON} RG 1.5 w {frame} S Q".encode())
        for n, line in enumerate((caption(candidate), candidate["designation"], candidate.get("known_name"))):
            drawing.append(_text(x, y - 5.4 - n * 5.6, _SMALL, (line or "")[:_LETTERS]))
    content = document.write_obj(None, stream=zlib.compress(b"\n".join(drawing)), Filter=PdfName("FlateDecode"))
    document.write_page(
        number, MediaBox=[0, 0, _WIDTH, _HEIGHT], Contents=content,
        Resources=PdfDict(Font=PdfDict(F=font), XObject=PdfDict(pictures)),
    )  # fmt: skip


def _write_image(document: PdfParser, image: np.ndarray) -> IndirectReference:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=_QUALITY, subsampling=0)
    return document.write_obj(
        None, stream=buffer.getvalue(), Type=PdfName("XObject"), Subtype=PdfName("Image"), Width=image.shape[1],
        Height=image.shape[0], ColorSpace=PdfName("DeviceRGB"), BitsPerComponent=8, Filter=PdfName("DCTDecode"),
    )  # fmt: skip


def _text(x: float, y: float, size: float, text: str) -> bytes:
    text = re.sub(r"\s", " ", text)
    return b"BT /F %g Tf %.2f %.2f Td %s Tj ET" % (size, x, y, pdf_repr(text.encode("cp1252", "replace")))
