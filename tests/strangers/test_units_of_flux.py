"""Pixels that are not proportional to flux, or not all in one unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from galscan.core.errors import InputError
from galscan.surveys.base import Failed
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import mosaic, pixels, results, table, tan
from tests.pictures_on_disk import frame, sky_frame

SOFTENING = 1.3
PS1 = {"BSOFTEN": SOFTENING, "BOFFSET": 0.4, "EXPTIME": 2.0}
LUPTITUDE = 2.5 / np.log(10)


def asinh(flux: np.ndarray) -> np.ndarray:
    """Return flux as in a Pan-STARRS1 stack of the header PS1."""
    return LUPTITUDE * np.arcsinh((2.0 * flux - 0.4) / (2 * SOFTENING))


def test_asinh_pixels_look_like_flux(tmp_path: Path) -> None:
    for name in ("linear", "asinh"):
        (tmp_path / name).mkdir()
        for k, band in enumerate("gri"):
            flux = sky_frame(k)
            frame(
                tmp_path / name / f"o_{band}.fits",
                asinh(flux) if name == "asinh" else flux,
                **PS1 if name == "asinh" else {},
            )
    linear, ps1 = (next(LocalSurvey(tmp_path / name, size=48).cutouts(0, 1)).image for name in ("linear", "asinh"))
    assert np.abs(linear.astype(int) - ps1).max() <= 2


@pytest.mark.parametrize("suffix", [".fits", ".fits.fz"])
def test_asinh_pixels_of_frames(tmp_path: Path, suffix: str) -> None:
    shape, wcs = (90, 100), tan(10.0, 0.0, (90, 100))
    for name in ("linear", "asinh"):
        for k, band in enumerate("gri"):
            flux = pixels(shape, 1) * (k + 1)
            data = asinh(flux.astype(float)).astype(np.float32) if name == "asinh" else flux
            mosaic(tmp_path / name / f"m-{band}{suffix}", data, wcs, **PS1 if name == "asinh" else {})
        table(tmp_path / name / "catalog.csv", {"a": (10.0, 0.0)})
    linear, ps1 = (results(FramesSurvey(tmp_path / n, size=32))["a"].image for n in ("linear", "asinh"))
    assert np.abs(linear.astype(int) - ps1).max() <= 2


@pytest.mark.parametrize("exposure", [0.5, 4.0])
def test_stacks_of_other_exposures_are_as_bright(tmp_path: Path, exposure: float) -> None:
    for name, time in (("a", 2.0), ("b", 2.0 * exposure)):
        flux = sky_frame(0) * time / 2.0
        frame(tmp_path / f"{name}.fits", asinh(flux), **(PS1 | {"EXPTIME": time}))
    one, other = (outcome.image.astype(int) for outcome in LocalSurvey(tmp_path, size=48).cutouts(0, 2))
    assert np.abs(one - other).max() <= 3


@pytest.mark.parametrize("unit", ["mag", "MAG/arcsec2", "mag(AB)", "log10(Jy)", "dex", "ABmag", "asinh(nmgy)"])
def test_magnitudes_and_logarithms_are_refused(tmp_path: Path, unit: str) -> None:
    frame(tmp_path / "a.fits", 25 - sky_frame(0) / 100, BUNIT=unit)
    frame(tmp_path / "b.fits", sky_frame(0), BUNIT="nanomaggy")
    bad, good = LocalSurvey(tmp_path).cutouts(0, 2)
    assert isinstance(bad, Failed) and unit in bad.reason and not isinstance(good, Failed)


def test_frames_in_magnitudes_are_refused(tmp_path: Path) -> None:
    mosaic(tmp_path / "m-g.fits", pixels((90, 100), 1), tan(10.0, 0.0, (90, 100)), BUNIT="mag/arcsec^2")
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    with pytest.raises(InputError, match="'mag/arcsec"):
        FramesSurvey(tmp_path, size=32)


UNITS = {
    "HSC": ({"FLUXMAG0": 63095734448.0194}, {"FLUXMAG0": 3630780547701.0}),
    "Euclid": ({"MAGZERO": 23.9}, {"MAGZERO": 24.6}),
    "LSST": ({"BUNIT": "nJy"}, {"BUNIT": "uJy"}),
}


@pytest.mark.parametrize("survey", UNITS)
def test_images_in_several_units_are_refused(tmp_path: Path, survey: str) -> None:
    (tmp_path / "local").mkdir()
    for name, cards in zip("ab", UNITS[survey], strict=True):
        frame(tmp_path / "local" / f"{name}_g.fits", sky_frame(0), **cards)
        mosaic(
            tmp_path / "frames" / f"{name}-g.fits", pixels((90, 100), 1), tan(10.0, ord(name) / 10, (90, 100)), **cards
        )
    table(tmp_path / "frames" / "catalog.csv", {name: (10.0, ord(name) / 10) for name in "ab"})
    with pytest.raises(InputError, match=r"a_g\.fits and b_g\.fits"):
        LocalSurvey(tmp_path / "local")
    with pytest.raises(InputError, match="a and b"):
        FramesSurvey(tmp_path / "frames", size=32)


@pytest.mark.parametrize("kind", ["local", "frames"])
def test_scaled_integers_are_their_values(tmp_path: Path, kind: str) -> None:
    shape = (48, 48) if kind == "local" else (90, 100)
    values = sky_frame(0) if kind == "local" else pixels(shape, 1).astype(float)
    for name in ("integers", "floats"):
        (tmp_path / name).mkdir()
        header = tan(10.0, 0.0, shape).to_header()
        hdu = fits.PrimaryHDU(values.astype(np.float32), header)
        if name == "integers":
            hdu.scale("int16", bscale=0.01, bzero=100)
        hdu.writeto(tmp_path / name / "a_g.fits")
        table(tmp_path / name / "catalog.csv", {"a": (10.0, 0.0)})
    one, other = (
        next((LocalSurvey if kind == "local" else FramesSurvey)(tmp_path / n, size=32).cutouts(0, 1)).image.astype(int)
        for n in ("integers", "floats")
    )
    assert np.abs(one - other).max() <= 2
