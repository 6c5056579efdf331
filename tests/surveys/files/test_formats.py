"""Detection of the format, and the error if it is ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.files.formats import find_format, open_local
from tests.packed_on_disk import encoded, legacysurvey, pictures, write_cutana, write_multimodal, write_shard
from tests.pictures_on_disk import picture, write


def shard(path: Path) -> Path:
    return write_shard(path, [("1.jpg", encoded(pictures(1)[0], "jpg")), ("1.json", {"ra": 1.5, "dec": 2.5})])


def test_formats_are_detected(tmp_path: Path) -> None:
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


def test_several_formats_need_a_choice(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    shard(tmp_path / "all.tar")
    with pytest.raises(InputError, match="--format images or --format webdataset"):
        open_local(tmp_path)
    assert len(open_local(tmp_path, format="images")) == len(open_local(tmp_path, format="webdataset")) == 1
    for form in ("cutanna", "cutana"):
        with pytest.raises(InputError, match=form):
            open_local(tmp_path, format=form)
    options = {"path": tmp_path, "format": "webdataset", "workers": 1}
    assert galscan.ingest("local", out=tmp_path / "s.zarr", **options).column("ra").tolist() == [1.5]
    with pytest.raises(InputError, match="format"):
        galscan.ingest("simulated", format="images", out=tmp_path / "t.zarr")


def test_no_known_format(tmp_path: Path) -> None:
    write(tmp_path / "readme.md", "")
    picture(tmp_path / ".hidden" / "1.png")
    with pytest.raises(InputError, match=r"images .* cutana .* multimodal .* webdataset"):
        open_local(tmp_path)
    with pytest.raises(NotFoundError):
        open_local(tmp_path / "none")
    (tmp_path / "s.zarr" / ".ingest").mkdir(parents=True)
    with pytest.raises(InputError, match="store"):
        open_local(tmp_path / "s.zarr")
