"""Shards of WebDataset: complete, truncated and malicious."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files import webdataset
from galscan.surveys.files.webdataset import WebDatasetSurvey, split_key
from tests.packed_on_disk import encoded, pictures, planes, write_shard
from tests.pictures_on_disk import OBJID


def members(count: int, first: int = 0, kind: str = "png") -> list[tuple[str, Any]]:
    images = pictures(count, 16, seed=first)
    found: list[tuple[str, Any]] = []
    for k, image in enumerate(images):
        found += [(f"{first + k:05d}.{kind}", encoded(image, kind)), (f"{first + k:05d}.json", {"ra": k, "dec": -5})]
    return found


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tgz", "w:gz")])
def test_shards_in_order(tmp_path: Path, suffix: str, mode: str) -> None:
    for shard in (1, 0):
        write_shard(tmp_path / f"train-{shard:03d}.{suffix}", members(20, 20 * shard), mode)
    survey = pickle.loads(pickle.dumps(WebDatasetSurvey(tmp_path, size=16)))
    assert survey.ids.tolist() == [f"{k:05d}" for k in range(40)] and survey.notes == []
    expected = [*pictures(20, 16), *pictures(20, 16, seed=20)]
    for outcome, picture in zip(survey.cutouts(0, 40), expected, strict=True):
        np.testing.assert_array_equal(outcome.image, picture)
    later, sooner = next(survey.cutouts(30, 31)), next(survey.cutouts(3, 4))  # back again
    np.testing.assert_array_equal(later.image, expected[30])
    np.testing.assert_array_equal(sooner.image, expected[3])


def test_names_as_galaxy_datasets_writes_them(tmp_path: Path) -> None:
    """``KEY.image.jpg`` and ``KEY.labels.json``, votes as counts, an id as exact as it was."""
    votes = {"smooth-or-featured-dr5_smooth": 12, "smooth-or-featured-dr5_featured-or-disk": 36,
             "smooth-or-featured-dr5_artifact": 0}  # fmt: skip
    files: list[tuple[str, Any]] = []
    for k in range(3):
        files += [(f"J{k}.image.jpg", encoded(pictures(1)[0], "jpg")), (f"J{k}.labels.json", votes)]
        files += [(f"J{k}.metadata.json", {"objid": OBJID + k} if k != 1 else {"objid": OBJID + k, "note": None})]
    write_shard(tmp_path / "a.tar", files)
    survey = WebDatasetSurvey(tmp_path, labels=("gz_decals",))
    assert survey.ids.tolist() == ["J0", "J1", "J2"]
    assert survey.objects(0, 1)["gz_decals/smooth_or_featured_featured_or_disk"].item() == 0.75
    exact = WebDatasetSurvey(tmp_path, columns={"id": "objid"})
    assert exact.ids.dtype == np.int64 and exact.ids.tolist() == [OBJID, OBJID + 1, OBJID + 2]


def test_fits_classes_and_what_is_missing(tmp_path: Path) -> None:
    cls = tmp_path / "kinds.toml"
    cls.write_text('name="kinds"\ntitle="k"\nkind="classes"\nreference="r"\ncolumn=["cls"]\n'
                   '[[answer]]\nname="ring"\nvalue="0"\n[[answer]]\nname="none"\nvalue="1"\n')  # fmt: skip
    files: list[tuple[str, Any]] = []
    for k, plane in enumerate(planes(4, 1)):
        files += [(f"{k}.fits", encoded(plane[0], "fits")), (f"{k}.cls", str(k % 2))]
    files += [("8.cls", "0"), ("9.jpg", b"no picture"), ("9.cls", "1"), ("10.png", encoded(pictures(1)[0][:9], "png"))]
    write_shard(tmp_path / "a.tar", files)
    survey = WebDatasetSurvey(tmp_path, labels=(str(cls),), size=20)
    assert survey.objects(0, 7)["kinds/ring"].tolist()[:6] == [1, 0, 1, 0, 1, 0]
    outcomes = list(survey.cutouts(0, 7))
    assert [type(o) for o in outcomes] == [Cutout] * 4 + [Failed] * 3 and survey.rendering.red == "0"
    assert [o.flag for o in outcomes[4:]] == [Flag.MISSING, Flag.UNREADABLE, Flag.WRONG_SHAPE]
    assert outcomes[0].image[2:4].mean() > 2 * outcomes[0].image[-4:-2].mean()


def test_an_rgb_image_is_preferred_to_planes(tmp_path: Path) -> None:
    both = [("1.fits", encoded(planes(1)[0, 0], "fits")), ("1.png", encoded(pictures(1, 16)[0], "png"))]
    for name, order in (("a", both), ("b", both[::-1])):
        (outcome,) = WebDatasetSurvey(write_shard(tmp_path / f"{name}.tar", order), size=16).cutouts(0, 1)
        np.testing.assert_array_equal(outcome.image, pictures(1, 16)[0])


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    jpg = encoded(pictures(1)[0], "jpg")
    write_shard(tmp_path / "a.tar", [("1.jpg", jpg), ("2.jpg", jpg), ("1.json", {"ra": 1})])
    with pytest.raises(InputError, match=r"'1' .*a\.tar"):
        WebDatasetSurvey(tmp_path)
    write_shard(tmp_path / "a.tar", [("1.jpg", jpg)])
    write_shard(tmp_path / "b.tar", [("1.jpg", jpg)])
    with pytest.raises(InputError, match="'1'"):
        WebDatasetSurvey(tmp_path)


def test_a_truncated_shard_is_read_as_far_as_possible(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", members(10))
    with tarfile.open(path) as tar:
        offsets = [m.offset_data for m in tar if m.name.endswith("png")]
    whole = path.read_bytes()
    path.write_bytes(whole[: offsets[6] + 100])
    survey = WebDatasetSurvey(path, size=16)
    assert len(survey) == 7 and survey.notes == [
        "a.tar is truncated or damaged after 7 objects (unexpected end of data)"
    ]
    *good, last = survey.cutouts(0, 7)
    assert all(isinstance(o, Cutout) for o in good) and "truncated: 100 bytes of" in last.reason
    path.write_bytes(whole[: offsets[6] - 512] + b"\7" * 512 + whole[offsets[6] :])
    assert "damaged after 6 objects" in WebDatasetSurvey(path).notes[0]
    path.write_bytes(b"\7" * 4096)
    with pytest.raises(InputError, match=r"a\.tar"):
        WebDatasetSurvey(path)


def test_a_truncated_compressed_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar.gz", members(10), "w:gz")
    path.write_bytes(path.read_bytes()[:-3000])
    survey = WebDatasetSurvey(path, size=16)
    assert 5 < len(survey) < 10 and "Compressed file ended" in survey.notes[0]
    assert sum(isinstance(o, Cutout) for o in survey.cutouts(0, 10)) >= len(survey) - 1


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_shard(root / "a.tar", [("../../evil.png", encoded(pictures(1)[0], "png"))])
    with tarfile.open(root / "a.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        absolute = tarfile.TarInfo("/etc/shadow.json")
        absolute.size = 2
        tar.addfile(absolute, io.BytesIO(b"{}"))
    before = sorted(tmp_path.rglob("*"))
    survey = WebDatasetSurvey(root)
    assert survey.ids.tolist() == ["../../evil", "/etc/shadow"]
    assert [type(o) for o in survey.cutouts(0, 2)] == [Cutout, Failed]
    assert sorted(tmp_path.rglob("*")) == before


def test_invalid_metadata_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpg = encoded(pictures(1)[0], "jpg")
    texts = ["{", "[1]", "[" * 100_000, '{"ra": 1, "dec": 2, "votes": [1]}', "{}" + " " * 600]
    write_shard(
        tmp_path / "a.tar", [m for k, text in enumerate(texts) for m in ((f"{k}.jpg", jpg), (f"{k}.json", text))]
    )
    monkeypatch.setattr(webdataset, "MAX_METADATA", 500)
    survey = WebDatasetSurvey(tmp_path)
    assert survey.notes == ["a.tar has 4 metadata files that cannot be read"]
    np.testing.assert_array_equal(survey.ra, [np.nan, np.nan, np.nan, 1, np.nan])


def test_an_image_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "LARGEST", 100)
    (outcome,) = WebDatasetSurvey(write_shard(tmp_path / "a.tar", members(1)), size=16).cutouts(0, 1)
    assert outcome.flag == Flag.UNREADABLE and "at most 100" in outcome.reason


def test_a_tar_of_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.tar"):
        WebDatasetSurvey(write_shard(tmp_path / "a.tar", [("readme.md", "hello")]))


@given(
    st.text("ab/", max_size=4), st.text("ab_", min_size=1, max_size=4), st.lists(st.text("cd", min_size=1), min_size=1)
)
def test_the_key_ends_at_the_first_dot_before_words(folder: str, name: str, ends: list[str]) -> None:
    folder = folder.strip("/")
    path = f"{folder}/{name}" if folder else name
    assert split_key(f"{path}.{'.'.join(ends)}") == (path, ".".join(ends[:-1]), ends[-1].lower())
