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

from galscan.surveys.header import (
    Astrometry,
    Header,
    NoAstrometry,
    quarters,
    read_header,
    read_headers,
    rotation,
    scale,
)
from tests.mosaics_on_disk import SCALE, bend, cut_short, mosaic, tan

SHAPE = (300, 400)


def changed(**attributes: object) -> WCS:
    wcs = tan(150.0, 2.0, SHAPE)
    for name, value in attributes.items():
        setattr(wcs.wcs, name, value)
    return wcs


def cards(wcs: WCS, **more: object) -> fits.Header:
    header = wcs.to_header(relax=True)
    header.update(more)
    return header


TPV = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"} | {
    f"PV{axis}_{k}": value for axis in (1, 2) for k, value in ((0, 1e-4), (1, 1.001), (4, 0.02))
}
CROTA = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 0.001, "CRVAL2": -30.0, "CRPIX1": 200.0, "CRPIX2": 150.0,
    "CDELT1": -1e-4, "CDELT2": 1e-4, "CROTA2": 31.0,
}  # fmt: skip
TAN = tan(150.0, 2.0, SHAPE)
KINDS: dict[str, WCS | fits.Header] = {
    "cd": tan(150.0, 2.0, SHAPE, turn=77),
    "pc and cdelt": cards(tan(150.0, 2.0, SHAPE, turn=20)),
    "cdelt and crota": fits.Header(CROTA),
    "at the pole": tan(80.0, 89.999, SHAPE),
    "on ra 0": tan(0.0, -3.0, SHAPE),
    "sip": bend(tan(150.0, 2.0, SHAPE)),
    "tpv": cards(TAN, **TPV),
    "galactic": changed(ctype=["GLON-CAR", "GLAT-CAR"], radesys="", crval=[120.0, 0.0]),
    "fk5": changed(radesys="FK5", equinox=2000.0),
    "fk5 of another equinox": changed(radesys="FK5", equinox=1975.0),
    "fk4": changed(radesys="FK4", equinox=1950.0),
    "dec first": changed(ctype=["DEC--TAN", "RA---TAN"], crval=[2.0, 150.0], cd=TAN.wcs.cd[::-1]),
}


def header_of(path: Path, wcs: WCS | fits.Header) -> Path:
    return mosaic(path / "x.fits", np.zeros(SHAPE, np.float32), wcs)


def in_memory(wcs: WCS) -> Header:
    return Header(wcs.to_header().tostring(sep="").encode("ascii"), SHAPE, False, 0, 0, -32, 1.0, 0.0, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_astrometry_is_that_of_astropy(tmp_path: Path, kind: str) -> None:
    made = KINDS[kind]
    path = header_of(tmp_path, made)
    ours, theirs = Astrometry(read_header(path)), WCS(fits.getheader(path))
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-20, 420, 50), rng.uniform(-20, 320, 50)
    ra, dec = ours.sky(x, y)
    sky = theirs.pixel_to_world(x, y).icrs
    assert sky.separation(SkyCoord(ra, dec, unit="deg")).arcsec.max() < 1e-6 * SCALE
    assert ((ra >= 0) & (ra < 360)).all()
    want = np.array(theirs.world_to_pixel(SkyCoord(ra, dec, unit="deg")))
    # astropy inverts SIP by iteration, to a millionth of a pixel; wcslib to the last digits
    np.testing.assert_allclose(ours.pixels(ra, dec), want, atol=2e-6)
    np.testing.assert_allclose(ours.pixels(ra, dec), [x, y], atol=2e-6)
    if kind == "sip":  # the distortion has an effect
        assert abs(ours.pixels(*np.array(WCS(made.to_header()).all_pix2world([[5.0, 5.0]], 0)).T)[0] - 5) > 0.1


@given(turn=st.floats(-180, 180), mirror=st.booleans(), dec=st.floats(-89.99, 89.99))
@settings(max_examples=20)
def test_scale_and_orientation(turn: float, mirror: bool, dec: float) -> None:
    wcs = tan(20.0, dec, SHAPE, turn=turn, mirror=mirror)
    local = Astrometry(in_memory(wcs)).local(np.array([199.5]), np.array([149.5]))
    assert scale(local)[0] == pytest.approx(proj_plane_pixel_scales(wcs).mean() * 3600)
    mirrored, turns = quarters(local)
    assert mirrored[0] == mirror
    assert -45.001 <= rotation(local)[0] <= 45.001
    assert (turns[0] * 90 + rotation(local)[0] - turn + 180) % 360 - 180 == pytest.approx(0, abs=0.02)


def test_beyond_the_projection_is_nan(tmp_path: Path) -> None:
    astrometry = Astrometry(read_header(header_of(tmp_path, tan(10.0, 20.0, SHAPE))))
    x, y = astrometry.pixels(np.array([190.0, 10.0]), np.array([-20.0, 20.0]))
    assert np.isnan(x[0]) and np.isnan(y[0]) and x[1] == pytest.approx(199.5)


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
    with pytest.raises(NoAstrometry):
        Astrometry(read_header(path))
    path = mosaic(tmp_path / "y.fits", np.zeros(SHAPE, np.float32), tan(1.0, 2.0, SHAPE), CD1_1=0.0, PC1_1=0.0, PC2_2=0)
    with pytest.raises(NoAstrometry):
        Astrometry(read_header(path))


def test_one_of_several_images_is_named_by_its_hdu(tmp_path: Path) -> None:
    chips = [fits.ImageHDU(np.full((3, 4), k, ">i2"), tan(k, 2.0, (3, 4)).to_header(), f"CCD{k}") for k in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(tmp_path / "x.fits")
    assert [h.name for h in read_headers(tmp_path / "x.fits")] == ["CCD1", "CCD2"]
    assert read_header(tmp_path / "x.fits[2]").name == "CCD2" and read_header(tmp_path / "x.fits").name == "CCD1"
    with pytest.raises(ValueError, match="no two-dimensional image"):
        read_header(tmp_path / "x.fits[3]")
