"""All kinds of headers, and astrometry that agrees with astropy to a millionth of a pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.sky import unit_vectors
from galscan.surveys.mosaics.header import Astrometry, NoAstrometry, quarters, read_header, rotation, scale
from tests.mosaics_on_disk import SCALE, bend, cut_short, mosaic, tan

SHAPE = (300, 400)


def galactic() -> WCS:
    wcs = tan(120.0, 30.0, SHAPE)
    wcs.wcs.ctype, wcs.wcs.radesys = ["GLON-CAR", "GLAT-CAR"], ""
    wcs.wcs.crval = [120.0, 0.0]
    return wcs


def old(system: str, equinox: float) -> WCS:
    wcs = tan(150.0, 2.0, SHAPE)
    wcs.wcs.radesys, wcs.wcs.equinox = system, equinox
    return wcs


def swapped() -> WCS:
    wcs = tan(150.0, 2.0, SHAPE)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cd = ["DEC--TAN", "RA---TAN"], [2.0, 150.0], wcs.wcs.cd[::-1]
    return wcs


def polynomial() -> fits.Header:
    header = tan(150.0, 2.0, SHAPE).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    for axis in (1, 2):
        header[f"PV{axis}_0"], header[f"PV{axis}_1"], header[f"PV{axis}_4"] = 1e-4, 1.001, 0.02
    return header


def unsaid() -> fits.Header:
    header = bend(tan(150.0, 2.0, SHAPE)).to_header(relax=True)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    return header


def cdelt() -> fits.Header:
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"], header["CRVAL1"], header["CRVAL2"] = "RA---TAN", "DEC--TAN", 0.001, -30.0
    header["CRPIX1"], header["CRPIX2"], header["CDELT1"], header["CDELT2"] = 200.0, 150.0, -1e-4, 1e-4
    header["CROTA2"] = 31.0
    return header


def pc() -> fits.Header:
    header = tan(150.0, 2.0, SHAPE, turn=20).to_header()
    assert "PC1_1" in header
    return header


KINDS = {
    "cd": lambda: tan(150.0, 2.0, SHAPE, turn=77),
    "pc and cdelt": pc,
    "cdelt and crota": cdelt,
    "at the pole": lambda: tan(80.0, 89.999, SHAPE),
    "on ra 0": lambda: tan(0.0, -3.0, SHAPE),
    "sip": lambda: bend(tan(150.0, 2.0, SHAPE)),
    "sip without saying so": unsaid,
    "tpv": polynomial,
    "galactic": galactic,
    "fk5": lambda: old("FK5", 2000.0),
    "fk5 of another equinox": lambda: old("FK5", 1975.0),
    "fk4": lambda: old("FK4", 1950.0),
    "dec first": swapped,
}


def header_of(path: Path, wcs: WCS | fits.Header) -> Path:
    return mosaic(path / "x.fits", np.zeros(SHAPE, np.float32), wcs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_astrometry_is_that_of_astropy(tmp_path: Path, kind: str) -> None:
    made = KINDS[kind]()
    path = header_of(tmp_path, made)
    ours, theirs = Astrometry(read_header(path)), WCS(fits.getheader(path))
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-20, 420, 200), rng.uniform(-20, 320, 200)
    ra, dec = ours.sky(x, y)
    sky = theirs.pixel_to_world(x, y).icrs
    assert sky.separation(SkyCoord(ra, dec, unit="deg")).arcsec.max() < 1e-6 * SCALE
    assert ((ra >= 0) & (ra < 360)).all()
    want = np.array(theirs.world_to_pixel(SkyCoord(ra, dec, unit="deg")))
    # astropy inverts SIP by iteration, to a millionth of a pixel; wcslib to the last digits
    np.testing.assert_allclose(ours.pixels(ra, dec), want, atol=2e-6)
    np.testing.assert_allclose(ours.pixels(ra, dec), [x, y], atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_distortion_does_something(tmp_path: Path) -> None:
    made = bend(tan(150.0, 2.0, SHAPE))
    bent = Astrometry(read_header(header_of(tmp_path, made)))
    straight = WCS(made.to_header())
    x = bent.pixels(*np.array(straight.all_pix2world([[5.0, 5.0]], 0)).T)[0]
    assert abs(x[0] - 5) > 0.1


@given(turn=st.floats(-180, 180), mirror=st.booleans(), dec=st.floats(-89.99, 89.99))
@settings(max_examples=40)
def test_local_says_scale_and_direction(tmp_path_factory: pytest.TempPathFactory, turn, mirror, dec) -> None:
    path = header_of(tmp_path_factory.mktemp("t"), tan(20.0, dec, SHAPE, turn=turn, mirror=mirror))
    local = Astrometry(read_header(path)).local(np.array([199.5]), np.array([149.5]))
    assert scale(local)[0] == pytest.approx(proj_plane_pixel_scales(WCS(fits.getheader(path))).mean() * 3600)
    mirrored, turns = quarters(local)
    assert mirrored[0] == mirror
    assert -45.001 <= rotation(local)[0] <= 45.001
    assert (turns[0] * 90 + rotation(local)[0] - turn + 180) % 360 - 180 == pytest.approx(0, abs=0.02)


def test_beyond_the_projection_is_nan(tmp_path: Path) -> None:
    astrometry = Astrometry(read_header(header_of(tmp_path, tan(10.0, 20.0, SHAPE))))
    x, y = astrometry.pixels(np.array([190.0, 10.0]), np.array([-20.0, 20.0]))
    assert np.isnan(x[0]) and np.isnan(y[0]) and x[1] == pytest.approx(199.5)


def test_unit_vectors_are_of_length_one() -> None:
    points = unit_vectors(np.array([0.0, 90.0, 12.0]), np.array([0.0, 0.0, 90.0]))
    np.testing.assert_allclose(points, np.eye(3), atol=1e-15)


@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".fits.bz2", ".fits.fz"])
def test_header_packed_or_not(tmp_path: Path, suffix: str) -> None:
    path = mosaic(tmp_path / f"x{suffix}", np.zeros(SHAPE, np.float32), tan(1.0, 2.0, SHAPE))
    header = read_header(path)
    assert header.shape == SHAPE and header.tiles == (suffix == ".fits.fz")
    assert header.hdu == (1 if header.tiles else 0)
    assert Astrometry(header).pixels(np.array([1.0]), np.array([2.0]))[0][0] == pytest.approx(199.5)


def test_first_image_counts_behind_tables_and_empty_ones(tmp_path: Path) -> None:
    image = fits.ImageHDU(np.arange(12, dtype=np.int16).reshape(3, 4), tan(1.0, 2.0, (3, 4)).to_header())
    table = fits.BinTableHDU(Table({"a": np.arange(1000)}))
    fits.HDUList([fits.PrimaryHDU(), table, image, fits.ImageHDU(np.zeros((9, 9)))]).writeto(tmp_path / "x.fits")
    header = read_header(tmp_path / "x.fits")
    assert (header.hdu, header.shape, header.bitpix) == (2, (3, 4), 16)
    raw = (tmp_path / "x.fits").read_bytes()[header.offset : header.offset + 24]
    assert np.frombuffer(raw, ">i2").tolist() == list(range(12))


def test_broken_files_say_how(tmp_path: Path) -> None:
    cases = {
        "garbage.fits": (b"<html>404</html>", "not a FITS file"),
        "empty.fits": (b"", "no two-dimensional image"),
        "endless.fits": (b"SIMPLE  =                    T".ljust(80) + b" " * 2800, "truncated within a header"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_header(tmp_path / name)
    Table({"a": [1]}).write(tmp_path / "table.fits")
    with pytest.raises(ValueError, match="no two-dimensional image"):
        read_header(tmp_path / "table.fits")
    cut_short(mosaic(tmp_path / "x.fits.bz2", np.zeros(SHAPE, np.float32), tan(1.0, 2.0, SHAPE)), 0.1)
    with pytest.raises(EOFError):
        read_header(tmp_path / "x.fits.bz2")


def test_no_astrometry(tmp_path: Path) -> None:
    path = mosaic(tmp_path / "x.fits", np.zeros(SHAPE, np.float32), None)
    with pytest.raises(NoAstrometry, match="no celestial WCS"):
        Astrometry(read_header(path))
    path = mosaic(tmp_path / "y.fits", np.zeros(SHAPE, np.float32), tan(1.0, 2.0, SHAPE), CD1_1=0.0, PC1_1=0.0, PC2_2=0)
    with pytest.raises(NoAstrometry, match="cannot be used"):
        Astrometry(read_header(path))
