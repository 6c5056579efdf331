"""Stamps: the pixels of astropy's Cutout2D, oriented, checked, and rendered as single images are."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.nddata.utils import NoOverlapError
from astropy.wcs import WCS

from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage
from galscan.surveys.files.images import Rendering, read_fits
from galscan.surveys.mosaics.stamps import OpenFrame, Plane
from tests.mosaics_on_disk import SCALE, bend, cut_short, mosaic, pixels, tan, three_bands

SHAPE = (150, 201)
DATA = pixels(SHAPE, 1)
PLAIN = Rendering("i", "r", "g", dict.fromkeys("gri", 1.0), dict.fromkeys("gri", False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three bands of a frame, not to be changed."""
    folder = tmp_path_factory.mktemp("frame")
    three_bands(folder, "f", tan(10.0, 5.0, SHAPE), SHAPE)
    return folder


@pytest.fixture
def folder_copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "frame")


@lru_cache
def image(path: Path) -> tuple[np.ndarray, WCS]:
    """Return what astropy reads of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path) as hdus:
            hdu = next(h for h in hdus if h.data is not None)
            return np.array(hdu.data, dtype=np.float32), WCS(hdu.header)


def theirs(path: Path, ra: float, dec: float, size: int) -> np.ndarray:
    data, wcs = image(path)
    try:
        return Cutout2D(data, SkyCoord(ra, dec, unit="deg"), size, wcs, mode="partial", fill_value=np.nan).data
    except NoOverlapError:
        return np.full((size, size), np.nan, np.float32)


def around(path: Path, count: int, beyond: float) -> np.ndarray:
    """Return positions on a frame and up to `beyond` pixels outside."""
    data, wcs = image(path)
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-beyond, n + beyond, count) for n in data.shape[::-1])
    sky = wcs.pixel_to_world(x, y).icrs
    return np.array([sky.ra.deg, sky.dec.deg])


def agrees(path: Path, sizes: tuple[int, ...] = (8, 16, 33), count: int = 8) -> None:
    frame = OpenFrame("f", {"g": path})
    ra, dec = around(path, count, 40)
    for size in sizes:
        for ours, a, d in zip(frame.raw(ra, dec, size)[0], ra, dec, strict=True):
            np.testing.assert_array_equal(ours, theirs(path, a, d, size))
    frame.expect(10**6)  # and once more, with everything decompressed
    np.testing.assert_array_equal(frame.raw(ra[:1], dec[:1], 16)[0, 0], theirs(path, ra[0], dec[0], 16))
    frame.close()


@pytest.mark.parametrize("file", ["fits-sdss-gri/PGC0000218_r.fits", "fits-decam/DECam_cuts__190_gband.fits"])
def test_pixels_of_real_frames(real_data: Path, file: str) -> None:
    agrees(real_data / file, (64,), count=10)


@pytest.mark.parametrize(
    ("suffix", "ra", "dec"),
    [
        (".fits", 10, 5),
        (".fits.gz", 0, 0),
        (".fits.bz2", 359.9999, -45),
        (".fits.fz", 12, 89.9995),
        (".fits", 200, -90),
    ],
)
def test_pixels_of_compressed_files_everywhere(tmp_path: Path, suffix: str, ra: float, dec: float) -> None:
    agrees(mosaic(tmp_path / f"x{suffix}", DATA, tan(ra, dec, SHAPE, turn=30)))


@pytest.mark.parametrize("kind", ["rice", "dithered", "integers"])
def test_pixels_of_tiles(tmp_path: Path, kind: str) -> None:
    data = DATA.copy()
    data[20:30, 40:50] = np.nan if kind == "dithered" else 0
    how = {"compression_type": "RICE_1"} | ({"quantize_method": 2} if kind == "dithered" else {})
    data = (100 * data).astype(np.int32) if kind == "integers" else data
    image = fits.CompImageHDU(data, tan(10.0, 5.0, SHAPE).to_header(), **how)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "x.fits.fz")
    agrees(tmp_path / "x.fits.fz")


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [(k, False) for k in ("u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8")]
    + [(k, True) for k in ("u1", "i2", "i4", "f4", "f8")],
)
def test_pixels_of_number_types(tmp_path: Path, kind: str, scaled: bool) -> None:
    data = (DATA * 40 + 100).clip(0, 250).astype(kind)
    fits.PrimaryHDU(data, tan(10.0, 5.0, SHAPE).to_header()).writeto(tmp_path / "x.fits")
    if scaled:
        cards = {"BSCALE": 0.0123, "BZERO": -7.7} | ({"BLANK": int(data[5, 5])} if data.dtype.kind in "iu" else {})
        with fits.open(tmp_path / "x.fits", mode="update", do_not_scale_image_data=True) as hdus:
            hdus[0].header.update(cards)
        assert fits.getheader(tmp_path / "x.fits")["BSCALE"] == 0.0123
    agrees(tmp_path / "x.fits", count=4)


def test_pixels_of_a_distorted_frame(tmp_path: Path) -> None:
    agrees(mosaic(tmp_path / "x.fits", DATA, bend(tan(10.0, 5.0, SHAPE))), count=5)


# ------------------------------------------------------------------------------------------- from pixels to pictures


def opened(root: Path, name: str = "f", suffix: str = ".fits") -> OpenFrame:
    return OpenFrame(name, {b: root / f"{name}-{b}{suffix}" for b in "gri"})


def cut(
    frame: OpenFrame, x: float, y: float, size: int = 32, rendering: Rendering = PLAIN, extent: float | None = None
):
    """Cut one stamp at a pixel."""
    ra, dec = frame.planes["g"].astrometry.sky(np.array([x]), np.array([y]))
    return frame.cut(ra, dec, None if extent is None else np.array([extent]), size, rendering)[0]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0, 30, 90, 200])
def test_north_is_up_and_east_is_left(tmp_path: Path, turn: float, mirror: bool) -> None:
    """A star to the north and a weaker one to the east of the middle, however the frame lies."""
    wcs = tan(150.0, 2.0, SHAPE, turn=turn, mirror=mirror)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    data = np.random.default_rng(0).normal(0, 0.1, SHAPE)
    for east, north, flux in ((0, 4, 900), (4, 0, 300)):
        at_x, at_y = wcs.all_world2pix(150 + east / 3600, 2 + north / 3600, 0)
        data += flux * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 4)
    for band in "gri":
        mosaic(tmp_path / f"f-{band}.fits", data.astype(np.float32), wcs)
    image = cut(opened(tmp_path), 100, 74.5, 33).image.astype(int).sum(axis=2)
    centre = np.argwhere(image > 0.9 * image.max()).mean(axis=0) - 16
    image[image > 0.9 * image.max()] = 0
    left = turn - 90 * round(turn / 90)  # what is left of the rotation, from up to the left
    c, s = np.cos(np.radians(left)), np.sin(np.radians(left))
    np.testing.assert_allclose(centre, [-10 * c, -10 * s], atol=2.1)
    weaker = image[np.ix_(*(np.clip(np.rint(16 + v + np.arange(-2, 3)).astype(int), 0, 32) for v in (10 * s, -10 * c)))]
    assert weaker.mean() > 5 * np.median(image)


def test_a_whole_frame_is_what_reading_it_alone_gives(real_data: Path) -> None:
    """One way to make a picture: of a frame by itself, and of a stamp as large as the frame."""
    paths = {b: real_data / "fits-sdss-gri" / f"PGC0000218_{b}.fits" for b in "gri"}
    for subtract in (False, True):
        rendering = Rendering("i", "r", "g", {"g": 7.0, "r": 9.0, "i": 8.0}, dict.fromkeys("gri", subtract))
        ours = cut(OpenFrame("f", paths), 127, 127, 255, rendering)
        alone = read_fits(list(paths.values()), 255, float("nan"), rendering)
        assert np.abs(ours.image.astype(int) - alone.image).max() <= (20 if subtract else 0)  # sky of rows, or of all
        assert np.median(ours.image) == pytest.approx(np.median(alone.image), abs=1)
        assert ours.pixel_scale == pytest.approx(alone.pixel_scale, rel=1e-6) and ours.flags == alone.flags


def test_stamps_do_not_depend_on_the_batch(folder: Path) -> None:
    frame = opened(folder)
    ra, dec = around(folder / "f-g.fits", 60, -5)
    together = frame.cut(ra, dec, None, 24, PLAIN)
    for n in range(0, 60, 4):
        (alone,) = frame.cut(ra[n : n + 1], dec[n : n + 1], None, 24, PLAIN)
        assert type(alone) is type(together[n])
        if isinstance(alone, Cutout):
            np.testing.assert_array_equal(alone.image, together[n].image)


def test_scales_and_sizes(folder: Path) -> None:
    frame = opened(folder)
    native = cut(frame, 100, 75, 32)
    assert native.pixel_scale == pytest.approx(SCALE, rel=1e-5) and native.flags == Flag.OK
    same = cut(frame, 100, 75, 32, extent=32 * SCALE * 1.01)  # comes to the same pixels: not resized
    np.testing.assert_array_equal(same.image, native.image)
    wide = cut(frame, 100, 75, 32, extent=64 * SCALE)
    assert wide.pixel_scale == pytest.approx(2 * SCALE, rel=1e-5) and wide.flags == Flag.OK
    # Twice as wide, half as large: the middle of one is the other, shrunk.
    shrunk = native.image.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(shrunk.ravel(), wide.image[8:24, 8:24].ravel().astype(float))[0, 1] > 0.9
    close = cut(frame, 100, 75, 32, extent=16 * SCALE)
    assert close.pixel_scale == pytest.approx(SCALE / 2, rel=1e-5) and close.flags == Flag.UPSCALED
    for extent, words in ((2 * SCALE, "2 pixels"), (5000 * SCALE, "5,000 pixels")):
        failed = cut(frame, 100, 75, 32, extent=extent)
        assert isinstance(failed, Failed) and failed.flag == Flag.WRONG_SHAPE and words in failed.reason


def test_no_radius(folder: Path) -> None:
    assert cut(opened(folder), 100, 75, extent=np.nan) == Failed("no radius in the catalog", Flag.MISSING)


def test_bands_are_aligned_by_their_own_astrometry(tmp_path: Path) -> None:
    data = pixels((180, 240), 3)
    for k, band in enumerate("gri"):
        wcs = tan(10.0, 5.0, (180, 240))
        wcs.wcs.crpix -= [7 * k, 3 * k]
        mosaic(tmp_path / f"f-{band}.fits", data[3 * k : 3 * k + 150, 7 * k : 7 * k + 200], wcs)
    image = cut(opened(tmp_path), 100, 70, 48).image.astype(int)
    assert np.ptp(image, axis=2).max() <= 1  # the bands are alike, so the picture is grey


def test_edges_are_filled_and_flagged(folder: Path) -> None:
    frame = opened(folder)
    outcome = cut(frame, 8, 75, 32)  # a quarter is beyond the left side, which is east
    assert outcome.flags == Flag.EDGE and not outcome.image[:, :7].any() and outcome.image[:, 9:].any()
    assert cut(frame, 16, 75, 32).flags == Flag.OK and cut(frame, 15, 75, 32).flags == Flag.EDGE
    assert cut(frame, 0, 0, 32) == NoCoverage("only 27% of the stamp is on frame f")


def spoil(path: Path, change: Callable[[np.ndarray], None]) -> None:
    with fits.open(path, mode="update") as hdus:
        change(hdus[0].data)


def test_saturated_columns_are_filled_in_all_bands(folder_copy: Path) -> None:
    spoil(folder_copy / "f-r.fits", lambda d: d[:, 100:103].fill(np.nan))
    outcome = cut(opened(folder_copy), 100, 75, 32)
    assert outcome.flags == Flag.EDGE and not outcome.image[:, 16:19].any()


@pytest.mark.parametrize(
    ("band", "first", "value", "expected"),
    [
        ("r", 40, np.nan, Failed("no finite pixel in band r of frame f", Flag.NONFINITE)),
        ("g", 40, 0.0, Failed("all pixels in band g of frame f are equal", Flag.BLANK)),
        ("i", 40, 7.0, Failed("all pixels in band i of frame f are equal", Flag.BLANK)),
        ("r", 95, np.nan, Failed("66% of the stamp's pixels are blank in frame f", Flag.BLANK)),
    ],
)
def test_empty_stamps_fail_with_a_reason(
    folder_copy: Path, band: str, first: int, value: float, expected: Failed
) -> None:
    spoil(folder_copy / f"f-{band}.fits", lambda d: d[:, first:].fill(value))
    assert cut(opened(folder_copy), 100, 75, 32) == expected
    assert isinstance(cut(opened(folder_copy), 18, 75, 32), Cutout)


def test_sky_is_subtracted_from_the_whole_frame(tmp_path: Path) -> None:
    for k, band in enumerate("gri"):
        mosaic(tmp_path / f"f-{band}.fits", DATA + 1000 * (k + 1), tan(10.0, 5.0, SHAPE))
        mosaic(tmp_path / f"flat-{band}.fits.fz", DATA + 1000 * (k + 1), tan(10.0, 5.0, SHAPE))
    rendering = Rendering("i", "r", "g", dict.fromkeys("gri", 1.0), dict.fromkeys("gri", True))
    image = cut(opened(tmp_path), 100, 75, 64, rendering).image
    assert np.median(image) < 25 and np.ptp(image.astype(int), axis=2).max() < 12
    np.testing.assert_array_equal(image, cut(opened(tmp_path, "flat", ".fits.fz"), 100, 75, 64, rendering).image)


@pytest.mark.parametrize(("factor", "turn", "value"), [(2, 0, r"0\.4 and 0\.8"), (1, 90, "orientation")])
def test_bands_with_other_pixels_are_refused(folder_copy: Path, factor: float, turn: float, value: str) -> None:
    (folder_copy / "f-i.fits").unlink()
    wcs = tan(10.0, 5.0, SHAPE, turn=turn)
    wcs.wcs.cd *= factor
    mosaic(folder_copy / "f-i.fits", DATA, wcs)
    with pytest.raises(ValueError, match=value):
        opened(folder_copy)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".fits.bz2"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = mosaic(tmp_path / f"x{suffix}", DATA, tan(10.0, 5.0, SHAPE))
    cut_short(path)
    with pytest.raises((ValueError, EOFError), match=r"truncated|ended before"):
        Plane(path)
