"""Folders that can be uploaded as they are, and that tell volunteers nothing."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galscan.candidates.export import zooniverse
from galscan.candidates.run import open_candidates
from galscan.core.errors import ConflictError, InputError, StorageError
from galscan.scanning.run import Run
from galscan.store.layout import open_store
from tests.candidate_tables import scanned_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scanned_run(tmp_path_factory.mktemp("run"))


def write(run, out, change=None):
    rows, opened = open_candidates(run)
    return zooniverse.zooniverse(rows.map(change) if change else rows, out, opened)


def manifest(folder):
    with open(folder / "manifest.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_each_batch_has_its_manifest_and_the_right_pictures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(zooniverse, "BATCH", 15)
    told = write(run, tmp_path / "zoo")
    assert told == {"batches": 3, "pixels": 384}
    folders = sorted((tmp_path / "zoo").iterdir())
    assert [f.name for f in folders] == ["batch-001", "batch-002", "batch-003"] and [*tmp_path.iterdir()] == [
        tmp_path / "zoo"
    ]
    rows = [(folder, row) for folder in folders for row in manifest(folder)]
    assert [len(manifest(folder)) for folder in folders] == [15, 15, 10]
    store = open_store(run.parent / "sky.zarr")
    for folder, row in rows:
        with Image.open(folder / row["#image"]) as picture:
            assert picture.format == "JPEG" and picture.size == (384, 384)
            small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), float)
        original = store.images(slice(int(row["#index"]), int(row["#index"]) + 1))[0].astype(float)
        assert np.abs(small - original).mean() < 8  # a JPEG of just this galaxy: any other differs by far more
    assert sorted(int(row["#index"]) for _, row in rows) == list(range(40))
    assert len({row["#image"] for _, row in rows}) == 40


def test_nothing_is_shown_and_nothing_tells_the_rank(run, tmp_path):
    write(run, tmp_path / "zoo")
    rows = manifest(tmp_path / "zoo" / "batch-001")
    assert all(name.startswith("#") for name in rows[0])
    assert not [
        name for name in rows[0] if any(word in name for word in ("rank", "score", "p_target", "purity", "train"))
    ]
    order = [int(row["#index"]) for row in rows]  # of this run the index is the rank
    assert abs(np.corrcoef(order, np.arange(40))[0, 1]) < 0.5 and order != sorted(order)


def test_the_order_is_that_of_the_seed(run, tmp_path):
    write(run, tmp_path / "a")
    write(run, tmp_path / "b")
    a, b = ((tmp_path / name / "batch-001" / "manifest.csv").read_bytes() for name in "ab")
    assert a == b


def test_no_cell_is_empty_and_none_is_a_formula(run, tmp_path):
    def spoil(piece):
        frame = piece.to_pandas()
        frame["designation"], frame["ra"] = "", np.nan
        frame["objid"] = "=HYPERLINK(1)"
        import pyarrow as pa

        return pa.Table.from_pandas(frame, preserve_index=False)

    write(run, tmp_path / "zoo", spoil)
    rows = manifest(tmp_path / "zoo" / "batch-001")
    assert {row["#objid"] for row in rows} == {"'=HYPERLINK(1)"} and {row["#ra"] for row in rows} == {"none"}
    assert all(cell for row in rows for cell in row.values())
    # panoptes-cli uploads every cell that is the name of something beside the manifest: only the picture is.
    folder = tmp_path / "zoo" / "batch-001"
    assert all([cell for cell in row.values() if (folder / cell).exists()] == [row["#image"]] for row in rows)


def test_ids_and_places_come_back_exactly(run, tmp_path):
    write(run, tmp_path / "zoo")
    back = pd.DataFrame(manifest(tmp_path / "zoo" / "batch-001"))
    table = pd.read_parquet(run / "candidates.parquet").set_index("index")
    for _, row in back.iterrows():
        one = table.loc[int(row["#index"])]
        assert int(row["#objid"]) == one["objid"] and float(row["#ra"]) == one["ra"]


def test_an_export_is_replaced_and_anything_else_is_not(run, tmp_path):
    write(run, tmp_path / "zoo")
    stray = tmp_path / "zoo" / "batch-001" / "999999.jpg"
    stray.write_bytes(b"")
    write(run, tmp_path / "zoo")
    assert not stray.exists() and len(list((tmp_path / "zoo" / "batch-001").iterdir())) == 41
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ConflictError, match="not of this kind"):
        write(run, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


def test_no_candidates_are_an_empty_manifest(run, tmp_path):
    rows, opened = open_candidates(run)
    assert zooniverse.zooniverse(rows.head(0), tmp_path / "zoo", opened)["batches"] == 1
    assert manifest(tmp_path / "zoo" / "batch-001") == []


def test_a_store_that_changed_and_a_place_that_cannot_be_written(tmp_path):
    run = scanned_run(tmp_path)
    rows, opened = open_candidates(run)
    with pytest.raises(StorageError, match="cannot write /proc/zoo"):
        zooniverse.zooniverse(rows, type(run)("/proc/zoo"), opened)
    other = [replace(ref, content_hash="e" * 64) for ref in opened.info.stores]
    with pytest.raises(InputError, match="changed since the scan"):
        zooniverse.zooniverse(rows, tmp_path / "zoo", Run(opened.path, opened.info.updated(stores=other)))
    assert not (tmp_path / "zoo").exists()
