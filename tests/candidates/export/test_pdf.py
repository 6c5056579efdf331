"""Pages that other programs open, with the right picture over each caption."""

from __future__ import annotations

import re
import shutil
import subprocess
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from galscan.candidates.export import pdf
from galscan.candidates.run import open_candidates
from galscan.core.errors import InputError
from galscan.scanning.run import Run
from galscan.store.layout import open_store
from tests.candidate_tables import scanned_run

poppler = pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="poppler is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scanned_run(tmp_path_factory.mktemp("run"))


def write(run, out, change=None, **more):
    rows, opened = open_candidates(run)
    opened = Run(opened.path, opened.info.updated(**more))
    return pdf.pdf(rows.map(change) if change else rows, out, opened)


def text(path):
    return subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, text=True, check=True).stdout


@poppler
def test_each_candidate_has_its_caption_on_its_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PAGE", 16)
    assert write(run, tmp_path / "c.pdf") == {"pages": 3}
    pages = text(tmp_path / "c.pdf").split("\f")
    assert [len(re.findall(r"p=\d\.\d\d", page)) for page in pages] == [16, 16, 8, 0]
    assert "dustlane: 40 candidates of 591 galaxies; page 2 of 3" in pages[1] and re.search(r"^17 +p=", pages[1], re.M)
    said = subprocess.run(["pdfinfo", tmp_path / "c.pdf"], capture_output=True, text=True, check=True)
    assert said.stderr == "" and re.search(r"Pages: +3", said.stdout) and "A4" in said.stdout


@poppler
def test_pictures_stand_where_their_captions_are(run, tmp_path):
    write(run, tmp_path / "c.pdf")
    subprocess.run(["pdftoppm", "-r", "144", "-png", tmp_path / "c.pdf", tmp_path / "page"], check=True)
    page = np.asarray(Image.open(next(tmp_path.glob("page*.png"))), float)
    images = open_store(run.parent / "sky.zarr").images(slice(0, 40)).astype(float)
    scale = 2  # pixels a point
    for k in (0, 7, 8, 39):
        x = pdf._MARGIN + k % 8 * pdf._STEP[0]
        top = pdf._MARGIN + pdf._HEAD + k // 8 * pdf._STEP[1] - 12
        tile = page[round(top * scale) : round((top + pdf._STAMP) * scale), round(x * scale) :][
            :, : round(pdf._STAMP * scale)
        ]
        small = np.asarray(Image.fromarray(tile.astype(np.uint8)).resize((32, 32), Image.Resampling.BOX), float)
        nearest = np.abs(images - small).mean(axis=(1, 2, 3)).argmin()
        assert nearest == k


@poppler
def test_names_of_known_objects_and_what_would_end_a_text(run, tmp_path):
    def name(piece):
        return (
            piece.append_column("known_name", pa.array(["NGC (1) \\ é\n"] + [""] * (len(piece) - 1)))
            if len(piece)
            else piece.append_column("known_name", pa.array([], pa.string()))
        )

    write(run, tmp_path / "c.pdf", name, target="a (b")
    assert "NGC (1) \\ é" in text(tmp_path / "c.pdf") and "a (b: 40 candidates" in text(tmp_path / "c.pdf")


@poppler
def test_what_the_model_was_trained_on_has_a_frame(run, tmp_path):
    write(run, tmp_path / "c.pdf")
    subprocess.run(["pdftoppm", "-r", "72", "-png", tmp_path / "c.pdf", tmp_path / "page"], check=True)
    page = np.asarray(Image.open(next(tmp_path.glob("page*.png"))), int)
    orange = (page[..., 0] > 180) & (page[..., 2] < 120) & (page[..., 1] > 80)
    assert orange.sum() > 500  # the first ten are


@poppler
def test_no_candidates_are_one_page_that_says_so(run, tmp_path):
    rows, opened = open_candidates(run)
    assert pdf.pdf(rows.head(0), tmp_path / "c.pdf", opened) == {"pages": 1}
    assert "no candidates" in text(tmp_path / "c.pdf")


def test_memory_does_not_grow_with_the_pages(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "PAGE", 4)
    peaks = []
    monkeypatch.setattr(pdf, "_AHEAD", 1)
    for count in (8, 40):
        rows, opened = open_candidates(run)
        tracemalloc.start()
        pdf.pdf(rows.head(count), tmp_path / "c.pdf", opened)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_equal_input_gives_equal_bytes_and_a_changed_store_none(run, tmp_path):
    for name in "ab":
        write(run, tmp_path / f"{name}.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    ref = open_candidates(run)[1].info.stores[0]
    with pytest.raises(InputError, match="changed since the scan"):
        write(run, tmp_path / "c.pdf", stores=[replace(ref, content_hash="e" * 64)])
    assert not (tmp_path / "c.pdf").exists()
