"""Pan-STARRS1 stacks: the files that cover a position, and the flux calibration of their pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np

from galscan.surveys.flux_scale import flux_scale
from galscan.surveys.services.cache import Response
from galscan.surveys.services.errors import FetchError


def files(response: Response, bands: str) -> dict[str, str] | None:
    """Return the file of each band from a response of ps1filenames.py; None if a band has none."""
    lines = [line.split() for line in response.body.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines or not {"filter", "filename"} <= set(lines[0]):
        raise FetchError(f"expected a list of files, got {response.excerpt()}")
    rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
    found = {row.get("filter"): row.get("filename", "") for row in rows}
    return {band: found[band] for band in bands} if all(found.get(band) for band in bands) else None


def nanomaggies(body: bytes, zero_point: float, pixels: int) -> bytes:
    """Convert a cutout of a stack from counts per exposure to nanomaggies; return it as FITS.

    Stacks are stored as asinh magnitudes (BSOFTEN, BOFFSET). Cutouts are linear; they are taken as linear unless the
    header has BSOFTEN: https://outerspace.stsci.edu/display/PANSTARRS/PS1+Stack+images. `FetchError` is raised if the
    file cannot be read, has no exposure time, or does not have `pixels` on a side.
    """
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old keywords, fixed by astropy as it reads
        try:
            with fits.open(io.BytesIO(body), memmap=False) as hdus:
                hdu = next(h for h in hdus if h.is_image and h.shape)
                values, header = np.asarray(hdu.data, dtype=np.float64), hdu.header.copy()
                exposure = float(header["EXPTIME"])
                # EXPTIME is checked and divided by below, for linear cutouts as well.
                values = flux_scale(header)._replace(exposure=1.0).linear(values)
        except Exception as error:  # astropy raises many kinds on a broken file
            raise FetchError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
        if values.shape != (pixels, pixels):
            raise FetchError(f"{' x '.join(map(str, values.shape))} pixels, not the {pixels} requested")
        if not exposure > 0:
            raise FetchError(f"the exposure time (EXPTIME) is {exposure:g} s")
        for key in ("BSOFTEN", "BOFFSET", "BSCALE", "BZERO", "BLANK"):
            header.remove(key, ignore_missing=True)
        values *= 10 ** (0.4 * (22.5 - zero_point)) / exposure
        buffer = io.BytesIO()
        fits.PrimaryHDU(values.astype(np.float32), header).writeto(buffer, output_verify="silentfix")
    return buffer.getvalue()
