"""Detection of the format, and the error if it is ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.files.formats import find_format, open_local
from tests.helpers import tiny_store
from tests.packed_on_disk import encoded, legacysurvey, pictures, write_cutana, write_multimodal, write_shard
from tests.pictures_on_disk import picture, write


def shard(path: Path) -> Path:
    return write_shard(path, [("1.jpg", encoded(pictures(1)[0], "jpg")), ("1.json", {"ra": 1.5})])


def test_each_is_found_out(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    picture(tmp_path / "images" / "deep" / "1.png")
    write_cutana(tmp_path / "cutana", pictures(3))
    write_multimodal(tmp_path / "mmu" / "healpix=1" / "001-of-001.hdf5", legacysurvey(3))
    shard(tmp_path / "wds" / "train-000.tar")
    batch = next((tmp_path / "cutana").glob("batch_*"))
    expected = {
        "images": "images", "cutana": "cutana", "mmu": "multimodal", "wds": "webdataset",
        "mmu/healpix=1/001-of-001.hdf5": "multimodal", "wds/train-000.tar": "webdataset", batch: "cutana",
        batch / "images.zarr": "cutana",
    }  # fmt: skip
    for name, form in expected.items():
        assert find_format(tmp_path / name) == form
        survey = open_local(tmp_path / name, size=16)
        assert survey.describe().get("format", "images") == form and len(survey) > 0


def test_where_it_is_not_plain_it_is_asked(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    shard(tmp_path / "all.tar")
    with pytest.raises(InputError, match=r"has JPEG.* and tar.*--format images or --format webdataset"):
        open_local(tmp_path)
    assert len(open_local(tmp_path, format="images")) == len(open_local(tmp_path, format="webdataset")) == 1
    with pytest.raises(InputError, match="unknown format; did you mean 'cutana'"):
        open_local(tmp_path, format="cutanna")
    with pytest.raises(InputError, match="no cutana file in"):
        open_local(tmp_path, format="cutana")


def test_what_is_none_of_them(tmp_path: Path) -> None:
    write(tmp_path / "readme.md", "")
    with pytest.raises(InputError, match=r"known format: images .*; cutana .*; multimodal .*; webdataset"):
        open_local(tmp_path)
    with pytest.raises(NotFoundError, match="no folder of images"):
        open_local(tmp_path / "none")
    tiny_store(tmp_path / "s.zarr", 20)
    (tmp_path / "s.zarr" / ".ingest").mkdir()
    with pytest.raises(InputError, match="is a store of galscan already"):
        open_local(tmp_path / "s.zarr")


def test_ingest_passes_the_format_on(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "1.png")
    shard(tmp_path / "in" / "all.tar")
    store = galscan.ingest("local", path=tmp_path / "in", format="webdataset", out=tmp_path / "s.zarr", workers=1)
    assert store.count == 1 and store.column("ra").tolist() == [1.5]
    with pytest.raises(InputError, match="does not take format"):
        galscan.ingest("simulated", format="images", out=tmp_path / "t.zarr")
