"""Pictures in shards and folders: keys with dots, masks beside galaxies, 16-bit images of 12 bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.webdataset import WebDatasetSurvey
from tests.packed_on_disk import encoded, pictures, write_shard
from tests.pictures_on_disk import only, picture, sky_frame, write

PIXELS = pictures(3, 16)
PNG = [encoded(image, "png") for image in PIXELS]


def images_of(survey: WebDatasetSurvey) -> list[np.ndarray]:
    return [outcome.image for outcome in survey.cutouts(0, len(survey))]


@pytest.mark.parametrize(
    "keys", [("J000001.85-004937.9", "J000001.99-012000.1"), ("1.5", "1.25"), ("NGC.1", "a/NGC.2"), ("2024.x1.3", "b")]
)
def test_keys_with_dots_are_two_objects(tmp_path: Path, keys: tuple[str, str]) -> None:
    members = [(f"{key}.png", png) for key, png in zip(keys, PNG, strict=False)]
    members.insert(1, (f"{keys[0]}.json", b'{"ra": 7, "dec": 1}'))
    survey = WebDatasetSurvey(write_shard(tmp_path / "a.tar", members), size=16)
    assert survey.ids.tolist() == list(keys) and survey.ra[0] == 7 and np.isnan(survey.ra[1])
    np.testing.assert_array_equal(images_of(survey), PIXELS[:2])


@pytest.mark.parametrize("word", ["mask", "segmentation", "weight-map"])
def test_a_mask_beside_a_picture_is_not_the_galaxy(tmp_path: Path, word: str) -> None:
    members = [(f"o{k}.{kind}.png", PNG[n]) for k in (0, 1) for n, kind in ((0, word), (1, "rgb"))]
    survey = WebDatasetSurvey(write_shard(tmp_path / "a.tar", members), size=16)
    assert survey.ids.tolist() == ["o0", "o1"]
    np.testing.assert_array_equal(images_of(survey), [PIXELS[1], PIXELS[1]])


@pytest.mark.parametrize("words", [("g", "r", "i"), ("HSC-G", "HSC-R", "HSC-I"), ("F435W", "F606W", "F814W")])
def test_fits_of_one_key_are_bands(tmp_path: Path, words: tuple[str, ...]) -> None:
    members = [(f"o0.{w}.fits", encoded(sky_frame(k).astype(np.float32), "fits")) for k, w in enumerate(words)]
    survey = WebDatasetSurvey(write_shard(tmp_path / "a.tar", members), size=48)
    image = only(survey).image
    assert len(survey.rendering.bands) == 3 and len(survey) == 1
    assert (image[..., 0] != image[..., 2]).any()  # not grey


@pytest.mark.parametrize(
    "names", [("o.a.png", "o.b.png"), ("o.png", "o.jpg"), ("o.r.png", "o.g.png"), ("o.a.fits", "o.b.fits")]
)
def test_two_pictures_of_one_key_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    members = [(n, encoded(sky_frame(0).astype(np.float32), "fits") if n.endswith("fits") else PNG[0]) for n in names]
    with pytest.raises(InputError, match=r"'o' of a\.tar"):
        WebDatasetSurvey(write_shard(tmp_path / "a.tar", members))


def test_a_picture_and_metadata_of_different_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'1' and '1\.512'"):
        WebDatasetSurvey(write_shard(tmp_path / "a.tar", [("1.512.png", PNG[0]), ("1.json", b'{"ra": 1}')]))


@pytest.mark.parametrize("names", [("o_g.png", "o_r.png", "o_i.png"), ("g/o.jpg", "r/o.jpg"), ("o-G.png", "o-R.png")])
def test_pictures_that_are_bands_are_no_grey_objects(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        picture(tmp_path / name, mode="L")
    if "/" not in names[0]:
        with pytest.raises(InputError, match="bands of one object"):
            LocalSurvey(tmp_path)
        rows = "\n".join(Path(n).stem for n in names)
        write(tmp_path / "catalog.csv", f"id\n{rows}\n")
        assert len(LocalSurvey(tmp_path)) == len(names)  # the user says so
    else:
        with pytest.raises(InputError, match="matches two files"):
            LocalSurvey(tmp_path)


def test_a_mask_in_a_folder_is_left_out_unless_listed(tmp_path: Path) -> None:
    for name in ("o0.png", "o0_mask.png", "mask_7.png"):
        picture(tmp_path / name)
    survey = LocalSurvey(tmp_path)
    assert survey.ids.tolist() == ["mask_7", "o0"] and any("o0_mask.png" in note for note in survey.notes)
    write(tmp_path / "catalog.csv", "id\no0_mask\n")
    assert LocalSurvey(tmp_path).sources == [("o0_mask.png",)]


def grey(path: Path, bits: int, top: float = 1.0) -> np.ndarray:
    pixels = np.linspace(0, top * (2**bits - 1), 32 * 32).reshape(32, 32).round().astype(np.uint16)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_pictures_of_fewer_bits_are_not_black(tmp_path: Path, bits: int) -> None:
    grey(tmp_path / "1.png", bits)
    dark = grey(tmp_path / "2.png", bits, top=0.5)
    survey = LocalSurvey(tmp_path, size=32)
    bright, other = (outcome.image for outcome in survey.cutouts(0, 2))
    assert bright.max() == 255 and other.max() in (127, 128)  # one scale for the survey
    np.testing.assert_allclose(other[..., 0], dark * 255.0 / (2**bits - 1), atol=1)
    assert ("white" in survey.describe()) == (bits < 16)


def test_a_pixel_beyond_the_depth_that_was_measured_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galscan.surveys.files.images.SAMPLE", 1)
    grey(tmp_path / "1.png", 12)
    grey(tmp_path / "2.png", 16)
    good, bad = LocalSurvey(tmp_path, size=32).cutouts(0, 2)
    assert isinstance(good, Cutout) and isinstance(bad, Failed) and "65535" in bad.reason and "4095" in bad.reason


def test_twelve_bits_in_a_shard(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 4095, 1024).reshape(32, 32).astype(np.uint16)).save(buffer, "PNG")
    survey = WebDatasetSurvey(write_shard(tmp_path / "a.tar", [("1.png", buffer.getvalue())]), size=32)
    assert only(survey).image.max() == 255
