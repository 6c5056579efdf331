"""JPEG, PNG and FITS files to cutouts, complete and damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from astropy.visualization import make_lupton_rgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.images import Rendering
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import frame, only, picture, sky_frame, three_bands, write


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "CMYK"])
def test_colour_modes(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / ("1.jpg" if mode == "CMYK" else "1.png"), mode=mode)
    outcome = only(LocalSurvey(tmp_path, size=32))
    assert isinstance(outcome, Cutout) and outcome.image.shape == (32, 32, 3) and outcome.image.dtype == np.uint8
    with Image.open(path) as original:
        if mode in ("RGB", "RGBA"):
            np.testing.assert_array_equal(outcome.image, np.asarray(original)[..., :3])
        elif mode in ("L", "LA"):
            grey = np.asarray(original.getchannel(0))
            np.testing.assert_array_equal(outcome.image, np.stack([grey] * 3, axis=2))


def test_sixteen_bits_are_scaled_and_exif_orientation_is_ignored(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(only(LocalSurvey(tmp_path, size=32)).image[..., 0], pixels // 257)


def bomb(path: Path, side: int) -> None:
    """Write a small PNG whose header claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "truncated jpeg": (lambda p: truncate(picture(p / "1.jpg", (64, 64))), Flag.UNREADABLE, "truncated"),
    "truncated png": (lambda p: truncate(picture(p / "1.png", (64, 64))), Flag.UNREADABLE, "truncated"),
    "empty": (lambda p: write(p / "1.png", ""), Flag.UNREADABLE, "cannot identify"),
    "gif": (lambda p: Image.new("L", (9, 9)).save(p / "1.png", format="GIF"), Flag.UNREADABLE, "cannot identify"),
    "bomb": (lambda p: bomb(p / "1.png", 20_000), Flag.UNREADABLE, "DecompressionBombError"),
    "half a bomb": (lambda p: bomb(p / "1.png", 9_600), Flag.UNREADABLE, "DecompressionBombWarning"),
    "too large": (lambda p: bomb(p / "1.png", 9_000), Flag.UNREADABLE, "9000 x 9000 pixels, at most"),
    "wide": (lambda p: picture(p / "1.png", (40, 20)), Flag.WRONG_SHAPE, "20 x 40 pixels"),
    "constant": (lambda p: Image.new("RGB", (32, 32), (9, 9, 12)).save(p / "1.jpg"), Flag.BLANK, "equal"),
    "fits garbage": (lambda p: write(p / "1.fits", "SIMPLE = T"), Flag.UNREADABLE, ""),
    "fits truncated": (lambda p: truncate(frame(p / "1.fits", sky_frame(0))), Flag.UNREADABLE, ""),
    "fits table": (lambda p: Table({"a": [1]}).write(p / "1.fits"), Flag.UNREADABLE, "no image"),
    "fits nan": (lambda p: frame(p / "1.fits", np.full((32, 32), np.nan)), Flag.NONFINITE, "no finite pixel"),
    "fits constant": (lambda p: frame(p / "1.fits", np.full((32, 32), 3.0)), Flag.BLANK, "equal"),
    "fits wide": (lambda p: frame(p / "1.fits", sky_frame(0)[:20]), Flag.WRONG_SHAPE, "20 x 48 pixels"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow and astropy may warn before they fail
@pytest.mark.parametrize("case", BROKEN)
def test_broken_images_fail_alone_with_a_reason(tmp_path: Path, case: str) -> None:
    make, flag, value = BROKEN[case]
    make(tmp_path)
    if case.startswith("fits"):
        frame(tmp_path / "2.fits", sky_frame(1))
    else:
        picture(tmp_path / "2.png")
    broken, good = LocalSurvey(tmp_path).cutouts(0, 2)
    assert isinstance(broken, Failed) and broken.flag == flag and value in broken.reason and broken.reason
    assert str(tmp_path) not in broken.reason  # the reason goes into the store: no paths of this machine
    assert isinstance(good, Cutout)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(width=st.integers(8, 200), size=st.sampled_from([16, 64]), form=st.sampled_from(["png", "jpg"]))
def test_any_size_is_resized_and_keeps_its_angular_size(tmp_path: Path, width: int, size: int, form: str) -> None:
    for old in tmp_path.glob("1.*"):
        old.unlink()
    picture(tmp_path / f"1.{form}", (width, width))
    write(tmp_path / "catalog.csv", "id,pixel_scale\n1,0.4\n")
    outcome = only(LocalSurvey(tmp_path, size=size))
    assert outcome.image.shape == (size, size, 3)
    assert outcome.pixel_scale * size == pytest.approx(0.4 * width)
    assert bool(outcome.flags & Flag.UPSCALED) == (width < size)


def test_no_rings_around_stars(tmp_path: Path) -> None:
    pixels = np.full((256, 256, 3), 40, np.uint8)
    pixels[126:130, 126:130] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    assert only(LocalSurvey(tmp_path, size=48)).image.min() >= 40


@pytest.mark.parametrize("level", [0.0, 900.0])
def test_bands_become_colours_right_way_up(tmp_path: Path, level: float) -> None:
    three_bands(tmp_path, level)
    survey = LocalSurvey(tmp_path, size=48)
    assert survey.ids.tolist() == ["ob0", "ob1"]
    outcome = next(survey.cutouts(0, 1))
    star = outcome.image[48 - 44 : 48 - 40, 20:28].reshape(-1, 3).mean(axis=0)
    assert star[0] > 2 * star[2] and star[0] > 100  # red, and at the top
    assert outcome.image[-5:].mean() < 25  # the sky is dark whether or not it was subtracted
    assert outcome.image[22:26, 22:26].mean() > 150
    assert outcome.pixel_scale == pytest.approx(0.36)
    assert outcome.flags == Flag.OK
    assert survey.objects(0, 1)[["ra", "dec"]].to_numpy()[0] == pytest.approx([150, 2], abs=1e-6)
    assert survey.describe()["rendering"]["subtract"]["r"] == (level > 0)


def test_units_do_not_matter(tmp_path: Path) -> None:
    images = []
    for name, factor in (("a", 1.0), ("b", 1e-9)):
        (tmp_path / name).mkdir()
        for band in "gri":
            frame(tmp_path / name / f"o_{band}.fits", sky_frame(ord(band)) * factor)
        images.append(only(LocalSurvey(tmp_path / name)).image.astype(int))
    assert np.abs(images[0] - images[1]).max() <= 2


@given(level=st.floats(-20, 3000), seed=st.integers(0, 99), stretch=st.floats(0.5, 20), count=st.integers(1, 4))
def test_colours_are_those_of_astropy(level: float, seed: int, stretch: float, count: int) -> None:
    flux = np.random.default_rng(seed).normal(level, 20, (3, count, 9, 9)) * [[[[1.0]]], [[[0.5]]], [[[1.5]]]]
    ours = Rendering("i", "r", "g", {}, {}, stretch=stretch).colours(dict(zip("irg", flux, strict=True)))
    with np.errstate(all="ignore"):
        theirs = [make_lupton_rgb(*flux[:, n], stretch=stretch, Q=10) for n in range(count)]
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_absurd_brightness_is_white_not_black() -> None:
    flux = dict.fromkeys("irg", np.array([[1e20, 3e37], [-3e37, 0.0]], np.float32))
    image = Rendering("i", "r", "g", {}, {}).colours(flux)
    assert (image[0] >= 254).all() and not image[1].any()


def test_two_bands_make_green_their_mean(tmp_path: Path) -> None:
    for band in "gr":
        frame(tmp_path / f"o_{band}.fits", sky_frame(3))
    survey = LocalSurvey(tmp_path)
    rendering = survey.describe()["rendering"]
    assert (rendering["red"], rendering["green"], rendering["blue"]) == ("r", "", "g")
    image = only(survey).image.astype(int)
    assert np.abs(image[..., 1] - (image[..., 0] + image[..., 2]) / 2).max() <= 2


def test_one_file_of_three_planes_with_and_without_names(tmp_path: Path) -> None:
    planes = np.stack([sky_frame(b) for b in range(3)])
    planes[2, 10:16, 10:16] += 500  # the reddest plane
    frame(tmp_path / "1.fits", planes, BANDS="grz")
    survey = LocalSurvey(tmp_path, size=48)
    assert survey.describe()["rendering"]["red"] == "z"
    named = only(survey).image
    (tmp_path / "1.fits").unlink()
    frame(tmp_path / "1.fits", planes)
    np.testing.assert_array_equal(only(LocalSurvey(tmp_path, size=48)).image, named)
    spot = named[48 - 15 : 48 - 11, 11:15].reshape(-1, 3).mean(axis=0)
    assert spot[0] > spot[2]


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_blank_edges_are_filled_with_black_and_flagged(tmp_path: Path, value: float) -> None:
    for n in range(2):
        for band in "gri":
            pixels = sky_frame(ord(band), level=900)
            if n == 0 and band == "g":
                pixels[:, :12] = value
            frame(tmp_path / f"o{n}_{band}.fits", pixels)
    edge, whole = LocalSurvey(tmp_path, size=48).cutouts(0, 2)
    assert edge.flags == Flag.EDGE and whole.flags == Flag.OK
    assert not edge.image[:, :11].any()  # black, not the colour of the bands that are there
    assert edge.image[20:28, 20:28].mean() > 100
