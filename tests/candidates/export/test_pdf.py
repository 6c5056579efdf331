"""PDF pages, read back with Pillow's parser: captions, and the image above each."""

from __future__ import annotations

import io
import re
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from PIL.PdfParser import PdfParser

from galscan.candidates.export import pdf
from galscan.candidates.run import open_candidates
from galscan.core.errors import InputError
from galscan.scanning.run import Run


def write(run, out, change=None, **more):
    rows, opened = open_candidates(run)
    opened = Run(opened.path, opened.info.updated(**more))
    return pdf.pdf(rows.map(change) if change else rows, out, opened)


def read(path):
    """Return of each page the texts, the drawing commands, and the images in their order."""
    pages = []
    with PdfParser(str(path)) as document:
        assert document.info.Producer.startswith("galscan")
        for reference in document.pages:
            page = document.read_indirect(reference)
            assert page[b"MediaBox"] == [0, 0, 595.0, 842.0]
            drawing = zlib.decompress(document.read_indirect(page[b"Contents"]).buf).decode("cp1252")
            texts = [re.sub(r"\\(.)", r"\1", text) for text in re.findall(r" Td \((.*)\) Tj", drawing)]
            pictures = page[b"Resources"][b"XObject"]
            streams = [document.read_indirect(pictures[f"I{k}".encode()]).buf for k in range(len(pictures))]
            pages.append((texts, drawing, [np.asarray(Image.open(io.BytesIO(data)), float) for data in streams]))
    return pages


def test_captions_images_and_frames(listed_run, listed_store, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PAGE", 16)
    monkeypatch.setattr(pdf, "_AHEAD", 2)
    assert write(listed_run, tmp_path / "c.pdf") == {"pages": 3}
    pages = read(tmp_path / "c.pdf")
    assert [len(images) for _, _, images in pages] == [16, 16, 8]
    assert pages[1][0][0] == "dustlane: 40 candidates of 591 galaxies; page 2 of 3"
    captions = [text for texts, _, _ in pages for text in texts if "p=" in text]
    assert [int(text.split()[0]) for text in captions] == list(range(1, 41))
    stored = listed_store.images(slice(0, 40)).astype(float)
    for k, image in enumerate(image for _, _, images in pages for image in images):
        assert np.abs(stored - image).mean(axis=(1, 2, 3)).argmin() == k
    # Images are placed left to right, then downwards.
    x, y = np.array(re.findall(r"([\d.]+) ([\d.]+) cm /I", pages[0][1]), float).T
    assert (np.diff(x[:8]) > 0).all() and len(set(y[:8])) == 1 and (x[8:] == x[:8]).all() and y[8] < y[0]
    assert pages[0][1].count(pdf._TRAINED_ON) == 10 and pdf._TRAINED_ON not in pages[1][1]


def test_names_of_known_objects_and_special_characters(listed_run, tmp_path):
    def name(piece):
        names = ["NGC (1) \\ é\n", *[""] * 39][: len(piece)]
        return piece.append_column("known_name", pa.array(names, pa.string()))

    write(listed_run, tmp_path / "c.pdf", name, target="a (b")
    texts = read(tmp_path / "c.pdf")[0][0]
    assert "NGC (1) \\ é " in texts and texts[0].startswith("a (b: 40 candidates")


def test_no_candidates(listed_run, tmp_path):
    rows, info = open_candidates(listed_run)
    assert pdf.pdf(rows.head(0), tmp_path / "c.pdf", info) == {"pages": 1}
    texts, _, images = read(tmp_path / "c.pdf")[0]
    assert "no candidates" in texts[0] and images == []


def test_memory_does_not_grow_with_the_pages(listed_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PAGE", 4)
    monkeypatch.setattr(pdf, "_AHEAD", 1)
    peaks = []
    for count in (8, 40):
        rows, opened = open_candidates(listed_run)
        tracemalloc.start()
        pdf.pdf(rows.head(count), tmp_path / "c.pdf", opened)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_equal_input_gives_equal_bytes(listed_run, tmp_path):
    for name in "ab":
        write(listed_run, tmp_path / f"{name}.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_changed_store(listed_run, tmp_path):
    ref = open_candidates(listed_run)[1].info.stores[0]
    with pytest.raises(InputError, match=r"sky\.zarr"):
        write(listed_run, tmp_path / "c.pdf", stores=[replace(ref, content_hash="e" * 64)])
    assert list(tmp_path.iterdir()) == []
