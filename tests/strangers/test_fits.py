"""FITS files: several images in one, coordinates that are not ICRS, left-over SIP terms, axes of length 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

import galscan
from galscan.cli.main import run
from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.header import Astrometry, read_header
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import SCALE, bend, mosaic, pixels, results, table, tan
from tests.pictures_on_disk import frame, only, sky_frame, write

SYSTEMS = {
    "galactic": {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
    "fk4": {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "RADESYS": "FK4", "EQUINOX": 1950.0},
    "equinox alone": {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "EQUINOX": 1950.0},
    "fk5 of 1975": {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "RADESYS": "FK5", "EQUINOX": 1975.0},
    "ecliptic": {"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN"},
    "dec first": {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 40.0, "CRVAL2": 100.0, "CDELT1": 1e-4},
}
PLACE = {"CRVAL1": 100.0, "CRVAL2": 40.0, "CRPIX1": 24.5, "CRPIX2": 24.5, "CDELT1": -1e-4, "CDELT2": 1e-4}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", SYSTEMS)
def test_positions_are_icrs(tmp_path: Path, system: str) -> None:
    path = frame(tmp_path / "a.fits", sky_frame(0), **(PLACE | SYSTEMS[system]))
    ra, dec = LocalSurvey(tmp_path).objects(0, 1)[["ra", "dec"]].to_numpy()[0]
    want = WCS(fits.getheader(path)).pixel_to_world(23.5, 23.5).icrs
    assert want.separation(SkyCoord(ra, dec, unit="deg")).arcsec < 1e-4


# ------------------------------------------------------------------------------------ several images in one file


def hdus(path: Path, *images: tuple[str, np.ndarray, dict[str, object]], wcs: WCS | None = None) -> Path:
    cards = wcs.to_header() if wcs is not None else fits.Header()
    made = []
    for name, data, more in images:
        made.append(fits.ImageHDU(data.astype(np.float32), cards, name))
        made[-1].header.update(more)
    fits.HDUList([fits.PrimaryHDU(), *made]).writeto(path)
    return path


@pytest.mark.parametrize("key", ["EXTNAME", "FILTER", "BAND"])
@pytest.mark.parametrize("names", [("g", "r", "i"), ("HSC-G", "HSC-R2", "HSC-I"), ("F435W", "F606W", "F814W")])
def test_extensions_that_name_bands(tmp_path: Path, key: str, names: tuple[str, ...]) -> None:
    planes = [sky_frame(k) for k in range(3)]
    planes[2][10:16, 10:16] += 900  # reddest
    extensions = [(n if key == "EXTNAME" else "", p, {key: n}) for n, p in zip(names, planes, strict=True)]
    hdus(tmp_path / "a.fits", *extensions[::-1])
    image = only(LocalSurvey(tmp_path, size=48)).image
    spot = image[48 - 15 : 48 - 11, 11:15].reshape(-1, 3).mean(axis=0)
    assert spot[0] > 1.5 * spot[2]


@pytest.mark.parametrize(
    "beside", [("ERR", "DQ"), ("MASK", "VARIANCE"), ("WHT", "CON"), ("VAR_POISSON", "AREA"), ("INVVAR", "PSF")]
)
@pytest.mark.parametrize("first", [True, False])
def test_errors_and_masks_are_not_the_picture(tmp_path: Path, beside: tuple[str, str], first: bool) -> None:
    science = [("SCI", sky_frame(0), {})]
    others = [(name, np.full((48, 48), 7.0) + np.eye(48), {}) for name in beside]
    hdus(tmp_path / "a.fits", *(science + others if first else others + science))
    frame(tmp_path / "b.fits", sky_frame(0))
    one, plain = LocalSurvey(tmp_path, size=48).cutouts(0, 2)
    np.testing.assert_array_equal(one.image, plain.image)


@pytest.mark.parametrize("names", [("CCD1", "CCD2"), ("", ""), ("g", "g"), ("g", "CHIP")])
def test_images_of_which_none_is_named_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    hdus(tmp_path / "a.fits", *((name, sky_frame(k), {}) for k, name in enumerate(names)))
    outcome = only(LocalSurvey(tmp_path))
    assert isinstance(outcome, Failed) and "2 images" in outcome.reason
    with pytest.raises(InputError, match="2 images"):  # an ingest that stores nothing says why
        galscan.ingest("local", path=tmp_path, out=tmp_path / "a.zarr", workers=1)


def test_chips_of_a_camera_are_frames(tmp_path: Path) -> None:
    shape = (90, 100)
    step = 120 * SCALE / 3600
    for band in "gr":
        chips = []
        for k in range(3):
            data = pixels(shape, seed=k)
            chips.append(fits.ImageHDU(data, tan(10 + k * step, 0.0, shape).to_header(), f"CCD{k}"))
        mask = fits.ImageHDU(np.ones(shape, np.int16), tan(10 + 3 * step, 0.0, shape).to_header(), "MASK")
        fits.HDUList([fits.PrimaryHDU(), *chips, mask]).writeto(tmp_path / f"exp1_{band}.fits")
    table(tmp_path / "catalog.csv", {f"o{k}": (10 + k * step, 0.0) for k in range(4)})
    survey = FramesSurvey(tmp_path, size=32)
    found = results(survey)
    assert survey.bands == ["g", "r"] and [f.name for f in survey.frames] == [f"exp1[CCD{k}]" for k in range(3)]
    assert [isinstance(found[f"o{k}"], Cutout) for k in range(4)] == [True, True, True, False]
    for k in range(3):  # as if each chip were a file of its own
        alone = tmp_path / f"alone{k}"
        for band in "gr":
            mosaic(alone / f"m-{band}.fits", pixels(shape, seed=k), tan(10 + k * step, 0.0, shape))
        table(alone / "catalog.csv", {f"o{k}": (10 + k * step, 0.0)})
        (single,) = FramesSurvey(alone, size=32).cutouts(0, 1)
        assert np.abs(single.image.astype(int) - found[f"o{k}"].image).mean() < 12  # one stretch for all chips


def test_a_preview_without_a_wcs_is_not_the_frame(tmp_path: Path) -> None:
    preview = fits.PrimaryHDU(np.zeros((30, 30), np.float32))
    image = fits.ImageHDU(pixels((90, 100), 1), tan(10.0, 0.0, (90, 100)).to_header(), "SCI")
    fits.HDUList([preview, image]).writeto(tmp_path / "m-g.fits")
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    assert isinstance(results(FramesSurvey(tmp_path, size=32))["a"], Cutout)


def test_extensions_of_a_frame_are_bands(tmp_path: Path) -> None:
    shape, wcs = (90, 100), tan(10.0, 0.0, (90, 100))
    hdus(tmp_path / "m.fits", *((b, pixels(shape, 1) * (k + 1), {}) for k, b in enumerate("gri")), wcs=wcs)
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    survey = FramesSurvey(tmp_path, size=32)
    assert survey.bands == ["g", "r", "i"] and isinstance(results(survey)["a"], Cutout)


# ------------------------------------------------------------------------------------------------- left-over SIP


@pytest.mark.parametrize("system", ["ICRS", "FK5"])
def test_sip_counts_only_where_ctype_says_so(tmp_path: Path, system: str) -> None:
    shape = (300, 400)
    bent = bend(tan(150.0, 2.0, shape)).to_header(relax=True)
    path = mosaic(tmp_path / "m-g.fits", pixels(shape, 1), bent, CTYPE1="RA---TAN", CTYPE2="DEC--TAN", RADESYS=system)
    ours = Astrometry(read_header(path))
    straight = WCS(tan(150.0, 2.0, shape).to_header())
    x, y = ours.pixels(*np.array([[150.01], [2.01]]))
    want = np.ravel(straight.all_world2pix([[150.01, 2.01]], 0))
    np.testing.assert_allclose([x[0], y[0]], want, atol=0.1)  # FK5 and ICRS differ by 0.02 arcsec; SIP is 0.3 pixels
    assert ours.ignored_sip
    table(tmp_path / "catalog.csv", {"a": (150.0, 2.0)})
    survey = FramesSurvey(tmp_path, size=32)
    assert survey.describe()["ignored_sip"] == 1 and any("SIP" in note for note in survey.notes)


def test_nothing_but_json_on_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = (120, 160)
    bent = bend(tan(150.0, 2.0, shape)).to_header(relax=True)
    galactic = {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}
    mosaic(tmp_path / "m-g.fits", pixels(shape, 1), bent, **galactic)
    sky = SkyCoord(150.0, 2.0, unit="deg", frame="galactic").icrs
    table(tmp_path / "catalog.csv", {"a": (float(sky.ra.deg), float(sky.dec.deg))})
    arguments = ["ingest", "--survey", "frames", "--path", tmp_path, "--out", tmp_path / "a.zarr", "--json"]
    assert run([str(a) for a in arguments]) == 0
    out = capfd.readouterr().out.strip()
    assert out.count("\n") == 0 and json.loads(out)["objects"] == 1


# ---------------------------------------------------------------------------------------------- axes of length 1


@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 1, 48, 48), (48, 48, 1), (1, 48, 1, 48)])
def test_axes_of_length_1(tmp_path: Path, shape: tuple[int, ...]) -> None:
    sky = PLACE | {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    if shape[-1] != 48 or shape[-2] != 48:
        sky = {}
    frame(tmp_path / "a.fits", sky_frame(0).reshape(shape), **sky)
    frame(tmp_path / "b.fits", sky_frame(0))
    survey = LocalSurvey(tmp_path, size=48)
    one, plain = survey.cutouts(0, 2)
    np.testing.assert_array_equal(one.image, plain.image)
    if sky:
        assert survey.objects(0, 1)[["ra", "dec"]].to_numpy()[0] == pytest.approx([100, 40])


def test_a_cube_with_an_axis_of_length_1_keeps_its_planes(tmp_path: Path) -> None:
    planes = np.stack([sky_frame(k) for k in range(3)])
    frame(tmp_path / "a.fits", planes[None], BANDS="grz")
    assert LocalSurvey(tmp_path).rendering.red == "z"
    frame(tmp_path / "b.fits", np.zeros((48, 48, 48)))  # a spectrum a pixel
    assert "48 planes" in list(LocalSurvey(tmp_path).cutouts(0, 2))[1].reason


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_frames_with_axes_of_length_1(tmp_path: Path, suffix: str) -> None:
    shape = (90, 100)
    for name, data in (("m", pixels(shape, 1)[None, None]), ("n", pixels(shape, 1))):
        header = tan(10.0, 0.0, shape).to_header()
        if name == "m":
            header.update({"WCSAXES": 4, "CTYPE3": "FREQ", "CRVAL3": 1e9, "CTYPE4": "STOKES", "CRVAL4": 1.0})
        mosaic(tmp_path / name / f"m-g{suffix}", data, header)
        table(tmp_path / name / "catalog.csv", {"a": (10.0, 0.0)})
    one, plain = (results(FramesSurvey(tmp_path / name, size=32))["a"] for name in "mn")
    np.testing.assert_array_equal(one.image, plain.image)


def test_nothing_stored_by_pictures(tmp_path: Path) -> None:
    write(tmp_path / "1.png", "no picture")
    with pytest.raises(InputError, match="1 objects"):
        galscan.ingest("local", path=tmp_path, out=tmp_path / "a.zarr", workers=1)
