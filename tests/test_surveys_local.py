"""A folder of images and a catalog: every way they can be wrong, each with its reason."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from galscan.errors import InputError, NotFoundError
from galscan.store.layout import Flag
from galscan.surveys.base import Cutout, Failed
from galscan.surveys.images import split_band
from galscan.surveys.local import LocalSurvey

OBJID = 588848901532418163  # loses its last digits as a float


def picture(path: Path, size: tuple[int, int] = (32, 32), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode=mode).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def frame(path: Path, pixels: np.ndarray, **header: object) -> Path:
    fits.PrimaryHDU(pixels.astype(np.float32), fits.Header(header)).writeto(path)
    return path


def sky_frame(seed: int, level: float = 0.0, size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    galaxy = 200 * np.exp(-((x - size / 2) ** 2 + (y - size / 2) ** 2) / 40)
    return np.random.default_rng(seed).normal(level, 2, (size, size)) + galaxy


def only(survey: LocalSurvey) -> Cutout | Failed:
    (outcome,) = survey.cutouts(0, 1)
    return outcome


# ------------------------------------------------------------------------------------------ the catalog


@pytest.mark.parametrize("form", ["csv", "csv.gz", "fits", "vot", "parquet"])
def test_objids_keep_every_digit_in_every_format(tmp_path: Path, form: str) -> None:
    ids = [OBJID, OBJID + 1]
    for i in ids:
        picture(tmp_path / f"{i}.png")
    table = pd.DataFrame({"objID": ids, "RA": [10.0, 20.0], "DEC": [-5.0, 5.0], "pixscale": [0.4, np.nan]})
    path = tmp_path / f"catalog.{form}"
    if form.startswith("csv"):
        table.to_csv(path, index=False)
    elif form == "parquet":
        table.to_parquet(path)
    else:
        Table.from_pandas(table).write(path, format="votable" if form == "vot" else "fits")
    survey = LocalSurvey(tmp_path, size=16)
    assert survey.id_dtype == np.int64
    objects = survey.objects(0, 2)
    assert objects["id"].tolist() == ids and objects["ra"].tolist() == [10, 20] and objects["dec"].tolist() == [-5, 5]
    first, second = survey.cutouts(0, 2)
    assert first.pixel_scale == pytest.approx(0.8) and np.isnan(second.pixel_scale)  # 32 -> 16 pixels


def test_nullable_and_unsigned_ids(tmp_path: Path) -> None:
    picture(tmp_path / f"{OBJID}.png")
    pd.DataFrame({"id": pd.array([OBJID], dtype="UInt64")}).to_parquet(tmp_path / "catalog.parquet")
    assert LocalSurvey(tmp_path).ids.tolist() == [OBJID]
    pd.DataFrame({"id": pd.array([OBJID, None], dtype="Int64")}).to_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(InputError, match=r"id column 'id' .* is empty in 1 row\(s\), the first is row 2"):
        LocalSurvey(tmp_path)


def test_float_ids_that_lost_digits_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Table({"id": [float(OBJID)]}).write(tmp_path / "catalog.fits")
    with pytest.raises(InputError, match="floating-point numbers, so digits are lost"):
        LocalSurvey(tmp_path)


def test_ids_a_spreadsheet_rounded_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "catalog.csv", "id\n5.888489E+17\n")
    with pytest.raises(InputError, match="spreadsheet rounded it"):
        LocalSurvey(tmp_path)


@pytest.mark.parametrize("name", ["NA", "null", "007", "J000001.2-01", "99999999999999999999", "NGC 1"])
def test_text_ids_stay_as_they_are(tmp_path: Path, name: str) -> None:
    picture(tmp_path / f"{name}.png")
    write(tmp_path / "catalog.csv", f"iauname\n{name}\n")
    survey = LocalSurvey(tmp_path)
    assert survey.ids.tolist() == [name] and survey.id_dtype.kind == "U"
    assert isinstance(only(survey), Cutout)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\n1\n2\n2\n2\n", r"'2' occurs more than once \(2 duplicate row"),
        ("id\n" + "x" * 65 + "\n", "has 65 characters, at most 64"),
        ("colour,size\n1,2\n", "no id column; it has colour, size; name it"),
        ("dr7objid,dr8objid\n1,2\n", "several columns that may be the id: dr7objid, dr8objid; choose one"),
        ("id,ra\n1,12:30:00\n", "column 'ra' .*'12:30:00' is not a number"),
        ("id,ra,dec\n1,10,95\n", "dec of 1 is 95"),
        ("id,file\n1,../outside.png\n", r"file '../outside.png' lies outside"),
        ("id,file\n1,/etc/passwd.png\n", "file '/etc/passwd.png' lies outside"),
        ("id\n77\n", "no row of .* has an image"),
        ("id\n", "has no rows"),
        ("", "cannot be read"),
        ('id,ra\n"1,2\n', "cannot be read"),
    ],
)
def test_catalogs_that_cannot_work(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "1.png")
    write(tmp_path / "catalog.csv", text)
    with pytest.raises(InputError, match=message):
        LocalSurvey(tmp_path)


@pytest.mark.parametrize("suffix", ["fits", "parquet", "vot", "csv"])
def test_garbage_catalog(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / f"t.{suffix}").write_bytes(b"\xff\xfe\x00garbage\x80")
    with pytest.raises(InputError, match=f"t.{suffix} cannot be read"):
        LocalSurvey(tmp_path, tmp_path / f"t.{suffix}")


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder of images at"):
        LocalSurvey(tmp_path / "none")
    with pytest.raises(InputError, match="no JPEG, PNG or FITS file in"):
        LocalSurvey(tmp_path)
    file = picture(tmp_path / "1.png")
    with pytest.raises(InputError, match="is a file; give the folder"):
        LocalSurvey(file)
    with pytest.raises(NotFoundError, match=r"no catalog at .*t.csv"):
        LocalSurvey(tmp_path, tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"unknown suffix; use \.csv"):
        LocalSurvey(tmp_path, write(tmp_path / "t.xlsx", ""))
    with pytest.raises(InputError, match="labels and columns need a catalog"):
        LocalSurvey(tmp_path, labels=("efigi",))
    write(tmp_path / "catalog.csv", "key\n1\n")
    with pytest.raises(InputError, match="no column 'kei' for id; did you mean 'key'"):
        LocalSurvey(tmp_path, columns={"id": "kei"})
    with pytest.raises(InputError, match="no role 'idd'; did you mean 'id'"):
        LocalSurvey(tmp_path, columns={"idd": "key"})
    with pytest.raises(InputError, match="no 'efigi' label column"):
        LocalSurvey(tmp_path, columns={"id": "key"}, labels=("efigi",))
    with pytest.raises(InputError, match="size is 4 pixels"):
        LocalSurvey(tmp_path, size=4)
    assert LocalSurvey(tmp_path, columns={"id": "key"}).ids.tolist() == [1]


def test_rows_without_image_and_images_without_row(tmp_path: Path) -> None:
    for i in (1, 2, 9):
        picture(tmp_path / "deep" / "er" / f"{i}.jpg")
    write(tmp_path / "catalog.csv", "id\n1\n5\n2\n")
    survey = LocalSurvey(tmp_path)
    outcomes = list(survey.cutouts(0, 3))
    assert [type(o) for o in outcomes] == [Cutout, Failed, Cutout]
    assert outcomes[1] == Failed("no file named 5", Flag.MISSING)
    assert survey.unmatched == ["deep/er/9.jpg"] and survey.describe()["images_without_row"] == 1


def test_file_column_relative_absolute_and_wrong(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    write(tmp_path / "a" / "note.gif", "GIF89a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    rows = ["1,a/x.png", f"2,{tmp_path}/a/x.png", "3,./a/../a/x.png", "4,a/note.gif", "5,a/none.png", "6,"]
    write(tmp_path / "catalog.csv", "\n".join(["id,file", *rows]))
    outcomes = list(LocalSurvey(tmp_path).cutouts(0, 6))
    assert all(isinstance(o, Cutout) for o in outcomes[:3])
    assert [o.flag for o in outcomes[3:]] == [Flag.UNREADABLE, Flag.MISSING, Flag.MISSING]
    assert "a/note.gif is not a JPEG" in outcomes[3].reason and "a/none.png" in outcomes[4].reason


def test_the_files_are_the_catalog(tmp_path: Path) -> None:
    for name in ("b", "a"):
        picture(tmp_path / f"{name}.png")
    assert LocalSurvey(tmp_path).ids.tolist() == ["a", "b"]
    picture(tmp_path / "more" / "a.jpg")
    with pytest.raises(InputError, match=r"two files would have the same id: a.png and more/a.jpg"):
        LocalSurvey(tmp_path)


def test_an_id_that_fits_two_files(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "x" / "1.jpg")
    write(tmp_path / "catalog.csv", "id\n1\n")
    with pytest.raises(InputError, match="id '1' fits two files"):
        LocalSurvey(tmp_path)


def test_labels_only_those_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    write(tmp_path / "catalog.csv", "id,efigi_t,efigi_visible_dust\n1,-2,0.75\n2,,\n")
    assert LocalSurvey(tmp_path).schemas() == {}
    survey = LocalSurvey(tmp_path, labels=("efigi",))
    assert {"t", "visible_dust"} == set(survey.schemas()["efigi"])
    objects = survey.objects(0, 2)
    assert objects["efigi/visible_dust"].dtype == np.float32 and objects["efigi/visible_dust"][0] == 0.75
    assert np.isnan(objects["efigi/t"][1])


def test_a_changed_folder_is_another_survey(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    before = LocalSurvey(tmp_path).describe()
    assert LocalSurvey(tmp_path).describe() == before
    picture(tmp_path / "2.png")
    assert LocalSurvey(tmp_path).describe() != before


def test_survives_pickling(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    survey = pickle.loads(pickle.dumps(LocalSurvey(tmp_path)))
    assert isinstance(only(survey), Cutout)


# ------------------------------------------------------------------------------------------ the pictures


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


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    outcome = only(LocalSurvey(tmp_path, size=32))
    np.testing.assert_array_equal(outcome.image[..., 0], pixels // 257)


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "1.jpg", exif=exif)
    assert only(LocalSurvey(tmp_path, size=32)).image[0].mean() > 150


def bomb(path: Path, side: int) -> None:
    """Write a small PNG that says it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "truncated jpeg": (lambda p: truncate(picture(p / "1.jpg", (64, 64))), Flag.UNREADABLE, "truncated"),
    "truncated png": (lambda p: truncate(picture(p / "1.png", (64, 64))), Flag.UNREADABLE, "truncated"),
    "text": (lambda p: write(p / "1.jpg", "404 not found"), Flag.UNREADABLE, "cannot identify image file"),
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
def test_broken_images_fail_with_a_reason_and_do_not_stop_the_others(tmp_path: Path, case: str) -> None:
    make, flag, words = BROKEN[case]
    make(tmp_path)
    if case.startswith("fits"):
        frame(tmp_path / "2.fits", sky_frame(1))
    else:
        picture(tmp_path / "2.png")
    broken, good = LocalSurvey(tmp_path).cutouts(0, 2)
    assert isinstance(broken, Failed) and broken.flag == flag and words in broken.reason and broken.reason
    assert str(tmp_path) not in broken.reason  # the reason goes into the store: no paths of this machine
    assert isinstance(good, Cutout)


def test_a_file_that_vanishes_meanwhile(tmp_path: Path) -> None:
    path = picture(tmp_path / "1.png")
    survey = LocalSurvey(tmp_path)
    path.unlink()
    assert only(survey).flag == Flag.UNREADABLE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
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


# ------------------------------------------------------------------------------------------------- FITS


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("PGC1_g.fits", ("PGC1", "g")),
        ("D__132_rband.fits", ("D__132", "r")),
        ("a-i.fits.gz", ("a", "i")),
        ("frame-g-0001-2.fits", ("frame-0001-2", "g")),
        ("NGC12.fits", ("NGC12", "")),
        ("dog.fits", ("dog", "")),
    ],
)
def test_band_in_the_name(file: str, parts: tuple[str, str]) -> None:
    assert split_band(file) == parts


def three_bands(path: Path, level: float = 0.0, count: int = 2) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150, 2]
    wcs.wcs.crpix, wcs.wcs.cdelt = [24.5, 24.5], [-1e-4, 1e-4]
    for n in range(count):
        for b, band in enumerate("gri"):
            pixels = sky_frame(10 * n + b, level)
            pixels[40:44, 20:28] += 400 if band == "i" else 0  # a red star in the upper part of the sky (large y)
            frame(path / f"ob{n}_{band}.fits", pixels, **dict(wcs.to_header()))


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


def test_an_object_without_a_band_its_siblings_have(tmp_path: Path) -> None:
    three_bands(tmp_path, count=3)
    (tmp_path / "ob1_r.fits").unlink()
    assert [type(o) for o in LocalSurvey(tmp_path).cutouts(0, 3)] == [Cutout, Failed, Cutout]
    assert list(LocalSurvey(tmp_path).cutouts(1, 2)) == [Failed("no r band", Flag.MISSING)]


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


def test_a_catalog_joins_bands_by_id_and_by_file(tmp_path: Path) -> None:
    three_bands(tmp_path)
    write(tmp_path / "catalog.csv", "id\nob0\nob1\n")
    by_id = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    write(tmp_path / "catalog.csv", "id,file\n1,ob0_r.fits\n2,ob1_g.fits\n")
    by_file = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    np.testing.assert_array_equal(by_id, by_file)


def test_real_frames(real_data: Path) -> None:
    decam = LocalSurvey(real_data / "fits-decam")
    outcomes = dict(zip(decam.ids.tolist(), decam.cutouts(0, len(decam)), strict=True))
    assert outcomes.pop("DECam_cuts__731") == Failed("no r band", Flag.MISSING)
    assert outcomes["DECam_cuts__190"].flags == Flag.EDGE
    assert all(np.median(o.image) < 40 for o in outcomes.values())
    sdss = LocalSurvey(real_data / "fits-sdss-gri")
    assert all(isinstance(o, Cutout) for o in sdss.cutouts(0, len(sdss))) and len(sdss) == 10
    # NGC 7814 lies from south-east to north-west: with north up, from the lower left to the upper right.
    image = dict(zip(sdss.ids.tolist(), sdss.cutouts(0, 10), strict=True))["PGC0000218"].image.astype(float).sum(axis=2)
    y, x = np.mgrid[:64, :64] - 31.5
    assert (image[8:56, 8:56] * (x * -y)[8:56, 8:56]).sum() > 0
