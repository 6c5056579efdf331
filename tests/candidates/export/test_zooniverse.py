"""Folders of Zooniverse subjects, which do not show volunteers the ranking."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from galscan.candidates.export import zooniverse
from galscan.candidates.run import open_candidates
from galscan.core.errors import ConflictError, InputError, StorageError
from galscan.scanning.run import Run


def write(run, out, change=None):
    rows, opened = open_candidates(run)
    return zooniverse.zooniverse(rows.map(change) if change else rows, out, opened)


def manifest(folder):
    with open(folder / "manifest.csv", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def exported(listed_run, tmp_path_factory):
    """Return the folder of an export in one batch."""
    folder = tmp_path_factory.mktemp("zooniverse") / "zoo"
    assert write(listed_run, folder) == {"batches": 1, "pixels": 384}
    return folder


def test_batches_of_images(listed_run, listed_store, tmp_path, monkeypatch):
    monkeypatch.setattr(zooniverse, "BATCH", 15)
    assert write(listed_run, tmp_path / "zoo") == {"batches": 3, "pixels": 384}
    folders = sorted((tmp_path / "zoo").iterdir())
    assert [f.name for f in folders] == ["batch-001", "batch-002", "batch-003"]
    assert [*tmp_path.iterdir()] == [tmp_path / "zoo"]
    rows = [(folder, row) for folder in folders for row in manifest(folder)]
    assert [len(manifest(folder)) for folder in folders] == [15, 15, 10]
    stored = listed_store.images(slice(0, 40)).astype(float)
    for folder, row in rows:
        with Image.open(folder / row["#image"]) as image:
            assert image.format == "JPEG" and image.size == (384, 384)
            small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), float)
        assert np.abs(small - stored[int(row["#index"])]).mean() < 8  # any other galaxy differs by far more
    assert sorted(int(row["#index"]) for _, row in rows) == list(range(40))
    assert len({row["#image"] for _, row in rows}) == 40


def test_volunteers_are_blind_to_the_rank(exported):
    rows = manifest(exported / "batch-001")
    assert all(name.startswith("#") for name in rows[0])
    assert not re.search("rank|score|p_target|purity|train", " ".join(rows[0]))
    order = [int(row["#index"]) for row in rows]  # of this run the index is the rank
    assert abs(np.corrcoef(order, np.arange(40))[0, 1]) < 0.5 and order != sorted(order)


def test_no_cell_is_empty_or_a_formula(listed_run, tmp_path):
    def spoil(piece):
        frame = piece.to_pandas().assign(designation="", ra=np.nan, objid="=HYPERLINK(1)")
        return pa.Table.from_pandas(frame, preserve_index=False)

    write(listed_run, tmp_path / "zoo", spoil)
    rows = manifest(tmp_path / "zoo" / "batch-001")
    assert {row["#objid"] for row in rows} == {"'=HYPERLINK(1)"} and {row["#ra"] for row in rows} == {"none"}
    assert all(cell for row in rows for cell in row.values())
    # panoptes-cli uploads every cell that is the name of something beside the manifest: only the picture is.
    folder = tmp_path / "zoo" / "batch-001"
    assert all([cell for cell in row.values() if (folder / cell).exists()] == [row["#image"]] for row in rows)


@given(st.text(st.sampled_from("ab/.jpgJPGtxcsv1 "), max_size=12))
def test_no_text_looks_like_a_file(text):
    cell = zooniverse._harmless(text)
    assert not re.search(r"[^/]+\.(jpe?g|png|gif|svg|mp4|txt|json|csv)", cell, re.IGNORECASE)
    assert not Path("/nowhere/batch-001", cell).exists() and (cell == text) == (not zooniverse._is_like_file(text))


def test_ids_that_look_like_files(listed_run, tmp_path):
    names = ["000001.jpg", "NGC1.PNG", "manifest.csv", "/etc/hosts", "..", "SDSS J0001.5+02.1", "a.b"]

    def rename(piece):
        frame = piece.to_pandas()
        texts = [names[k] if k < len(names) else f"id {k}" for k in range(len(frame))]
        return pa.Table.from_pandas(frame.assign(objid=texts), preserve_index=False)

    assert write(listed_run, tmp_path / "zoo", rename)["like_files"] == 5
    folder = tmp_path / "zoo" / "batch-001"
    rows = manifest(folder)
    assert {"000001_jpg", "SDSS J0001.5+02.1", "a.b"} < {row["#objid"] for row in rows}
    for row in rows:
        assert [cell for cell in row.values() if re.search(r"\.(jpg|png|csv)", cell, re.IGNORECASE)] == [row["#image"]]
        assert [cell for cell in row.values() if (folder / cell).exists()] == [row["#image"]]


def test_ids_and_positions_are_exact(listed_run, exported):
    rows = pd.DataFrame(manifest(exported / "batch-001")).astype({"#index": int}).set_index("#index").sort_index()
    table = pd.read_parquet(listed_run / "candidates.parquet").set_index("index")
    assert rows["#objid"].map(int).tolist() == table["objid"].tolist()
    assert rows["#ra"].map(float).tolist() == table["ra"].tolist()


def test_only_an_earlier_export_is_replaced(listed_run, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "zoo")
    (tmp_path / "zoo" / "batch-001" / "999999.jpg").touch()
    write(listed_run, tmp_path / "zoo")
    files = [sorted(folder.glob("batch-001/*")) for folder in (tmp_path / "zoo", exported)]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ConflictError, match="thesis"):
        write(listed_run, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


def test_no_candidates(listed_run, tmp_path):
    rows, opened = open_candidates(listed_run)
    assert zooniverse.zooniverse(rows.head(0), tmp_path / "zoo", opened)["batches"] == 1
    assert manifest(tmp_path / "zoo" / "batch-001") == []


def test_changed_store_and_folder_that_cannot_be_written(listed_run, tmp_path):
    rows, opened = open_candidates(listed_run)
    with pytest.raises(StorageError, match="/proc/zoo"):
        zooniverse.zooniverse(rows, Path("/proc/zoo"), opened)
    other = [replace(ref, content_hash="e" * 64) for ref in opened.info.stores]
    with pytest.raises(InputError, match=r"sky\.zarr"):
        zooniverse.zooniverse(rows, tmp_path / "zoo", Run(opened.path, opened.info.updated(stores=other)))
    assert not (tmp_path / "zoo").exists()
