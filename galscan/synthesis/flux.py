"""Between the pixels of a picture and flux: physics happens in flux, so the stretch is undone first, and done again.

A store records how its pixels were made (``provenance["stretch"]``, or ``provenance["rendering"]`` of FITS images).
Pictures that came stretched, such as the JPEGs of SkyServer, are taken for the stretch of Lupton et al. (2004) with the
softening `JPEG_SOFTENING`. Both were measured on SDSS JPEGs of NGC galaxies (``tests/benchmarks/stretch.py``): the
colour of 151 ellipticals is the same within 1.3 % from the nucleus to 2.2 half-light radii, as only a stretch that
keeps colours leaves it; and 24 lanes dim blue light 1.89 times as much as red, where the extinction law has 1.80 for
R_V = 3.1 (softening 0.012: 2.52, 0.00025: 1.70).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from galscan.core.errors import InputError

JPEG_SOFTENING = 0.001  # of white: below it an SDSS JPEG is linear in flux, above it logarithmic


@dataclass(frozen=True)
class Stretch:
    """How flux became pixels: asinh of the bands' mean, with their ratios kept (Lupton et al. 2004, PASP 116, 133).

    Parameters
    ----------
    softening : float
        Flux, as a fraction of that of a white pixel, above which the stretch turns from linear to logarithmic.
    """

    softening: float = JPEG_SOFTENING

    def to_flux(self, images: np.ndarray) -> np.ndarray:
        """Undo the stretch.

        Parameters
        ----------
        images : ndarray of uint8 or float (0..255), shape (..., S, S, 3)

        Returns
        -------
        ndarray of float32
            Flux, 1 for a white pixel.
        """
        pixels = np.asarray(images, np.float32) / 255
        top = np.float32(np.arcsinh(1 / self.softening))
        mean = pixels.mean(-1, keepdims=True)
        return pixels * (np.sinh(mean * top) * np.float32(self.softening) / np.maximum(mean, 1e-6))

    def to_pixels(self, flux: np.ndarray) -> np.ndarray:
        """Stretch flux (..., S, S, 3); float32 in 0..255, not rounded."""
        flux = np.maximum(np.asarray(flux, np.float32), 0)
        top = np.float32(np.arcsinh(1 / self.softening))
        mean = flux.mean(-1, keepdims=True)
        pixels = flux * (np.arcsinh(mean / np.float32(self.softening)) / top / np.maximum(mean, 1e-9))
        pixels /= np.maximum(pixels.max(-1, keepdims=True), 1)
        return np.clip(pixels * 255, 0, 255)


def stretch_of(provenance: Mapping[str, Any], where: str = "the store") -> Stretch:
    """Return the stretch that a store's provenance records; `where` names the store in messages.

    Raises
    ------
    InputError
        If it records one that cannot be undone.
    """
    known = provenance.get("rendering") or provenance.get("stretch")
    if known is None or isinstance(known, str):
        return Stretch()  # of pictures that came stretched
    try:
        if known.get("kind") == "Lupton asinh":  # pixel = asinh(Q I) / sqrt(Q)
            return Stretch(float(1 / np.sinh(np.sqrt(known["Q"]))))
        if str(known.get("method")).startswith("lupton2004"):  # `galscan.surveys.files.images.Rendering.colours`
            return Stretch(float(1 / np.sinh(10 * np.arcsinh(0.1 * known["softening"]))))
    except (AttributeError, KeyError, TypeError):
        pass
    raise InputError(
        f"{where} records the stretch {known!r:.120}, which cannot be undone to inject features in flux; ingest it "
        "again from FITS files or from pictures with an asinh stretch, or pass --no-synthetic"
    )
