"""Pan-STARRS1 stacks: which files show a place, and what their pixels count."""

from __future__ import annotations

import io
import warnings

import numpy as np

from galscan.surveys.services.cache import Response
from galscan.surveys.services.errors import FetchError

LUPTITUDE = 2.5 / np.log(10)


def files(answer: Response, bands: str) -> dict[str, str] | None:
    """Return the file of each band out of the answer of ps1filenames.py; None where one has none.

    Raises
    ------
    FetchError
        If it is no such list.
    """
    lines = [line.split() for line in answer.body.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines or not {"filter", "filename"} <= set(lines[0]):
        raise FetchError(f"no list of files but {answer.words()}")
    rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
    found = {row.get("filter"): row.get("filename", "") for row in rows}
    return {band: found[band] for band in bands} if all(found.get(band) for band in bands) else None


def nanomaggies(body: bytes, zero_point: float, pixels: int) -> bytes:
    """Return a cutout of a stack, which counts over its exposure, as FITS in nanomaggies.

    Stacks are kept as asinh magnitudes (BSOFTEN, BOFFSET). Cutouts come linear, and are believed to where their header
    says nothing else: https://outerspace.stsci.edu/display/PANSTARRS/PS1+Stack+images.

    Raises
    ------
    FetchError
        If it cannot be read, says no exposure, or has not `pixels` on a side.
    """
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old keywords, fixed by astropy as it reads
        try:
            with fits.open(io.BytesIO(body), memmap=False) as hdus:
                hdu = next(h for h in hdus if h.is_image and h.shape)
                values, header = np.asarray(hdu.data, dtype=np.float64), hdu.header.copy()
                exposure = float(header["EXPTIME"])
                if "BSOFTEN" in header:
                    values = header["BOFFSET"] + 2 * header["BSOFTEN"] * np.sinh(values / LUPTITUDE)
        except Exception as error:  # astropy raises many kinds on a broken file
            raise FetchError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
        if values.shape != (pixels, pixels):
            raise FetchError(f"{' x '.join(map(str, values.shape))} pixels, not the {pixels} asked for")
        if not exposure > 0:
            raise FetchError(f"an exposure (EXPTIME) of {exposure:g} s")
        for key in ("BSOFTEN", "BOFFSET", "BSCALE", "BZERO", "BLANK"):
            header.remove(key, ignore_missing=True)
        values *= 10 ** (0.4 * (22.5 - zero_point)) / exposure
        buffer = io.BytesIO()
        fits.PrimaryHDU(values.astype(np.float32), header).writeto(buffer, output_verify="silentfix")
    return buffer.getvalue()
