"""Images in zip files, complete and damaged."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files import archives
from galscan.surveys.files.archives import Zip
from galscan.surveys.files.local import LocalSurvey
from tests.packed_on_disk import encoded, pictures, planes
from tests.pictures_on_disk import picture


def packed(path: Path, count: int = 3, kind: str = "png", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for k, image in enumerate(pictures(count) if kind != "fits" else planes(count, 1)[:, 0]):
            archive.writestr(f"train/{k}.{kind}", encoded(image, kind))
    return path


@pytest.mark.parametrize("kind", ["png", "fits"])
def test_images_are_those_of_a_folder(tmp_path: Path, kind: str) -> None:
    packed(tmp_path / "i.zip", kind=kind, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "i.zip") as archive:
        archive.extractall(tmp_path / "folder")
    inside, outside = LocalSurvey(tmp_path / "i.zip", size=16), LocalSurvey(tmp_path / "folder", size=16)
    assert inside.ids.tolist() == outside.ids.tolist() == [0, 1, 2] and inside.name == "i"
    assert inside.rendering == outside.rendering and (inside.rendering is None) == (kind == "png")
    for one, other in zip(pickle.loads(pickle.dumps(inside)).cutouts(0, 3), outside.cutouts(0, 3), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_only_visible_images_are_listed(tmp_path: Path) -> None:
    packed(tmp_path / "i.zip")
    with zipfile.ZipFile(tmp_path / "i.zip", "a") as archive:
        for name in ("__MACOSX/train/._0.png", ".hidden/9.png", "readme.txt", "folder.png/"):
            archive.writestr(name, b"")
    assert list(Zip(tmp_path / "i.zip").files()) == ["train/0.png", "train/1.png", "train/2.png"]


def test_paths_out_of_the_archive_are_only_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("../../evil.png", encoded(pictures(1)[0], "png"))
        archive.writestr("/etc/good.png", encoded(pictures(1)[0], "png"))
    before = sorted(tmp_path.parent.rglob("*"))
    assert all(isinstance(o, Cutout) for o in LocalSurvey(tmp_path / "i.zip", size=16).cutouts(0, 2))
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_damaged_member_fails_alone(tmp_path: Path) -> None:
    path = packed(tmp_path / "i.zip")
    content = bytearray(path.read_bytes())
    middle = content.index(b"train/1.png") + 400
    content[middle : middle + 4] = b"\0\1\2\3"
    path.write_bytes(content)
    outcomes = list(LocalSurvey(path, size=16).cutouts(0, 3))
    assert [type(o) for o in outcomes] == [Cutout, Failed, Cutout] and "Bad CRC-32" in outcomes[1].reason


def test_a_bomb_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 900)
    (outcome,) = LocalSurvey(packed(tmp_path / "i.zip", 1), size=16).cutouts(0, 1)
    assert outcome.flag == Flag.UNREADABLE and "at most 900" in outcome.reason


def test_truncated_archives_and_other_files_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "i.zip")
    path.write_bytes(path.read_bytes()[:-200])
    for file in (path, picture(tmp_path / "1.png")):
        with pytest.raises(InputError, match=file.name):
            LocalSurvey(file)
