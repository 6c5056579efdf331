"""Pan-STARRS responses, made after its documentation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits

from galscan.surveys.services.cache import Response
from galscan.surveys.services.errors import FetchError
from galscan.surveys.services.panstarrs import files, nanomaggies

LIST = b"""projcell subcell ra dec filter mjd type filename shortname badflag
1784 059 187.70 12.39 g 0 stack /rings.v3.skycell/1784/059/x.stk.g.unconv.fits x.stk.g.unconv.fits 0
1784 059 187.70 12.39 r 0 stack /rings.v3.skycell/1784/059/x.stk.r.unconv.fits x.stk.r.unconv.fits 0
"""


def response(body: bytes) -> Response:
    return Response("http://x", 200, "text/plain", body)


def image(values: np.ndarray, **header: float) -> bytes:
    buffer = io.BytesIO()
    fits.PrimaryHDU(values.astype(np.float32), fits.Header(header)).writeto(buffer)
    return buffer.getvalue()


def read(body: bytes) -> np.ndarray:
    with fits.open(io.BytesIO(body)) as hdus:
        return np.array(hdus[0].data)


def test_files_of_a_position():
    assert files(response(LIST), "gr") == {b: f"/rings.v3.skycell/1784/059/x.stk.{b}.unconv.fits" for b in "gr"}
    assert files(response(LIST), "gri") is None and files(response(LIST.splitlines()[0]), "g") is None
    for body in (b"", b"<html>sorry</html>", b"\xff\xfe"):
        with pytest.raises(FetchError, match="list of files"):
            files(response(body), "g")


def test_a_star_of_magnitude_20():
    """25 mag are one count a second; 22.5 mag one nanomaggy."""
    counts = 1000 * 10 ** (-0.4 * (20 - 25))
    plane = read(nanomaggies(image(np.full((4, 4), counts), EXPTIME=1000.0), 25.0, 4))
    np.testing.assert_allclose(plane, 10 ** (-0.4 * (20 - 22.5)), rtol=1e-6)


def test_asinh_magnitudes():
    counts = np.array([[-30.0, 0.0], [5.0, 4e5]])
    packed = 1.0857362 * np.arcsinh((counts - 2.25) / (2 * 95.4))
    body = image(packed, EXPTIME=10.0, BSOFTEN=95.4, BOFFSET=2.25)
    np.testing.assert_allclose(read(nanomaggies(body, 25.0, 2)), counts / 100, rtol=1e-4, atol=1e-4)
    assert "BSOFTEN" not in fits.getheader(io.BytesIO(nanomaggies(body, 25.0, 2)))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (image(np.zeros((4, 4))), "EXPTIME"),
        (image(np.zeros((4, 4)), EXPTIME=0.0), "EXPTIME"),
        (image(np.zeros((4, 3)), EXPTIME=1.0), "4 x 3"),
        (image(np.zeros((4, 4)), EXPTIME=1.0)[:2000], "Error"),
        (b"SIMPLE  = nonsense", "Error|No SIMPLE"),
    ],
)
def test_invalid_cutouts(body, reason):
    with pytest.raises(FetchError, match=reason):
        nanomaggies(body, 25.0, 4)
