"""Conversion of JPEG, PNG and FITS images to square uint8 cutouts."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from galscan.surveys.base import Cutout, Failed, Flag, Outcome
from galscan.surveys.resampling import shrink

PICTURES = (".jpg", ".jpeg", ".png")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fits.bz2")
MAX_PIXELS = 64_000_000  # of one file, against decompression bombs
BANDS = "ugrizy"  # blue to red
STRETCH = 8.0  # renders SDSS frames about as bright as SDSS JPEG images
SDSS_TINT = (1.15, 1.0, 0.85)  # mean red, green, blue of galaxies in SDSS gri JPEGs, relative

_SUFFIX = re.compile(rf"[-_.]([{BANDS}])(?:[-_]?band)?$")
_INFIX = re.compile(rf"[-_]([{BANDS}])(?:band)?(?=[-_])")


def is_fits(path: str) -> bool:
    return path.lower().endswith(FITS)


def is_image(path: str) -> bool:
    return path.lower().endswith(PICTURES + FITS)


def stem(path: str) -> str:
    """Return the file name without folder and image suffix."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = next((s for s in sorted(PICTURES + FITS, key=len, reverse=True) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def split_band(path: str) -> tuple[str, str]:
    """Split ``NGC1_g.fits`` into ``("NGC1", "g")``; a file without a band in its name has band ``""``."""
    name = stem(path)
    if match := _SUFFIX.search(name):
        return name[: match.start()].rstrip("-_."), match[1]
    if match := _INFIX.search(name):
        return name[: match.start()] + name[match.end() :], match[1]
    return name, ""


# ---------------------------------------------------------------------------------------------- pictures


class FileInMemory(io.BytesIO):
    """A file in memory, from an archive or a service; its name may contain the band."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def read_picture(path: Path | FileInMemory, size: int, pixel_scale: float) -> Outcome:
    """Read a JPEG or PNG. EXIF orientation is ignored: it has no meaning for images of the sky."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Only these two decoders, for untrusted bytes.
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return Failed(f"{width} x {height} pixels, at most {MAX_PIXELS:,} are decoded")
                if width != height:
                    return Failed(f"{height} x {width} pixels, not square", Flag.WRONG_SHAPE)
                if size * 4 <= width:
                    image.draft("RGB", (size * 2, size * 2))  # libjpeg decodes at lower resolution, which is faster
                image.load()
                rgb = _to_rgb(image)
    except Exception as error:  # decoders raise many types, from OSError to SyntaxError, for broken files
        return Failed(f"{type(error).__name__}: {str(error).replace(str(path), path.name)[:160]}")
    return _usable(rgb, size, pixel_scale, source=width)


def from_pixels(pixels: np.ndarray, size: int, pixel_scale: float) -> Outcome:
    """Return the cutout of an RGB image: uint8 of shape (height, width, 3), row 0 at the top."""
    height, width = pixels.shape[:2]
    if width != height:
        return Failed(f"{height} x {width} pixels, not square", Flag.WRONG_SHAPE)
    return _usable(Image.fromarray(pixels), size, pixel_scale, source=width)


def _usable(rgb: Image.Image, size: int, pixel_scale: float, *, source: int) -> Outcome:
    if all(band.getextrema()[0] == band.getextrema()[1] for band in rgb.split()):
        return Failed("all pixels are equal", Flag.BLANK)
    return fit(rgb, size, pixel_scale, source=source)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte rather than clip
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def fit(rgb: Image.Image, size: int, pixel_scale: float, *, source: int, flags: Flag = Flag.OK) -> Cutout:
    """Resize a square image to `size`; `pixel_scale` is for the width `source` that it has in the file.

    Neither kernel has negative lobes, which would cause dark rings around stars.
    """
    if rgb.width > size:
        rgb = shrink(rgb, size)
    elif rgb.width < size:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    if source < size:
        flags |= Flag.UPSCALED
    return Cutout(np.asarray(rgb, dtype=np.uint8), pixel_scale * source / size, flags)


# -------------------------------------------------------------------------------------------------- FITS


@dataclass(frozen=True)
class Rendering:
    """Combination of FITS bands to RGB images, the same for all objects of a survey.

    Each band is divided by its unit, then all are combined after Lupton et al. 2004 (PASP 116, 133).
    Units differ between surveys (nanomaggies, counts of different exposures), so they are measured: the brightness
    scales with the sky noise, and the colour balance gives the survey's typical object its colours in SDSS images.

    Attributes
    ----------
    red, green, blue : str
        Bands; with two bands green is their mean (band ``""``), with one band all three are the same.
    unit : mapping
        Divisor of each band, in the survey's own units: sky noise (robust sigma) x colour balance, medians over its
        first frames.
    subtract : mapping
        Whether the sky is still in the frames of a band, and is to be subtracted frame by frame.
    stretch, softening : float
        Lupton's stretch (in those units) and Q.
    """

    red: str
    green: str
    blue: str
    unit: Mapping[str, float]
    subtract: Mapping[str, bool]
    stretch: float = STRETCH
    softening: float = 10.0

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(b for b in (self.blue, self.green, self.red) if b))

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"method": "lupton2004 of bands divided by their unit"}

    def colours(self, flux: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return RGB images, uint8 of shape (..., 3), of bands divided by their unit, shape (...).

        Agrees within one count with astropy's `make_lupton_rgb`, which renders one image at a time.
        """
        red, blue = flux[self.red], flux[self.blue]
        planes = np.stack([red, flux[self.green] if self.green else (red + blue) / 2, blue]).astype(np.float32)
        mean = planes.sum(axis=0) / 3
        bright = np.clip(mean, np.float32(1e-9), np.float32(1e12))  # the square must not overflow
        x = bright * np.float32(self.softening / self.stretch)
        # The logarithm is six times as fast as arcsinh, but loses precision for small x, where arcsinh(x) is x.
        curve = np.where(x < 0.01, x, np.log(x + np.sqrt(x * x + 1)))
        curve *= np.float32(25.5 / np.arcsinh(0.1 * self.softening))
        planes *= np.where(mean > 0, curve / bright, 0)
        np.maximum(planes, 0, out=planes)
        # Pixels above 255 are scaled down in all colours alike, to keep their hue.
        planes *= np.float32(255) / np.maximum(planes.max(axis=0), np.float32(255))
        return np.ascontiguousarray(np.moveaxis(planes.astype(np.uint8), 0, -1))


def choose_bands(bands: Sequence[str]) -> tuple[str, str, str]:
    """Return the bands of red, green, blue; `bands` run from blue to red."""
    for wanted in ("irg", "zrg"):
        if set(wanted) <= set(bands):
            return wanted[0], wanted[1], wanted[2]
    if len(bands) == 1:
        return bands[0], bands[0], bands[0]
    if len(bands) == 2:
        return bands[1], "", bands[0]
    return bands[-1], bands[len(bands) // 2], bands[0]


def read_planes(paths: Sequence[Path | FileInMemory]) -> tuple[dict[str, np.ndarray], float, tuple[float, float]]:
    """Read the bands of one object: planes by band, pixel scale (arcsec) and centre (ra, dec in deg), NaN if unknown.

    One file with several planes, or one file per band. Planes of a file without band names
    are called 0, 1, 2: blue to red, as in the cutouts of the Legacy Surveys.

    Raises
    ------
    ValueError
        If a file has no image, or a too large one. Astropy raises other errors for broken files.
    """
    from astropy.io import fits

    planes: dict[str, np.ndarray] = {}
    scale, centre = float("nan"), (float("nan"), float("nan"))
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old keywords, fixed by astropy as it reads
            with fits.open(path, memmap=False) as hdus:
                hdu = next((h for h in hdus if h.is_image and len(h.shape) in (2, 3)), None)
                if hdu is None:
                    raise ValueError(f"{path.name} has no image")
                if np.prod(hdu.shape, dtype=float) > MAX_PIXELS:
                    raise ValueError(f"{path.name} has {hdu.shape} pixels, at most {MAX_PIXELS:,} are allowed")
                data, header = np.asarray(hdu.data, dtype=np.float32), hdu.header
        if data.ndim == 2:
            planes[split_band(path.name)[1] or "0"] = data
        else:
            named = str(header.get("BANDS", "")).strip()
            names = named if len(named) == len(data) else [str(i) for i in range(len(data))]
            planes |= dict(zip(names, data, strict=True))
        if np.isnan(scale):
            scale, centre = _wcs(header, data.shape[-2:])
    return planes, scale, centre


def _wcs(header: Any, shape: tuple[int, ...]) -> tuple[float, tuple[float, float]]:
    """Return pixel scale (arcsec) and the position of the centre (deg)."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    nothing = float("nan"), (float("nan"), float("nan"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(header, naxis=2)
            if not wcs.has_celestial:
                return nothing
            ra, dec = wcs.all_pix2world((shape[1] - 1) / 2, (shape[0] - 1) / 2, 0)
            return float(np.mean(proj_plane_pixel_scales(wcs))) * 3600, (float(ra) % 360, float(dec))
    except Exception:  # wcslib raises many types; without a usable WCS only scale and position are unknown
        return nothing


def calibrate(objects: Iterable[Sequence[Path | FileInMemory]], bands: Sequence[str]) -> Rendering | None:
    """Measure the rendering of a survey (sky, noise, colour) on its first objects. None if no frame can be read."""

    def readable() -> Iterable[dict[str, np.ndarray]]:
        for paths in objects:
            try:
                yield read_planes(paths)[0]
            except Exception:  # broken files fail later, with a reason
                continue

    return measure(readable(), bands)


def measure(objects: Iterable[Mapping[str, np.ndarray]], bands: Sequence[str]) -> Rendering | None:
    """Measure the rendering (sky, noise, colour) on planes by band. None if no plane has noise."""
    frames: list[dict[str, np.ndarray]] = []  # sky-subtracted good pixels by band
    sky: dict[str, list[float]] = {}
    noise: dict[str, list[float]] = {}
    for planes in objects:
        frame = {}
        for band, plane in planes.items():
            good = ~blank_pixels(plane)
            middle, sigma = sky_and_noise(plane[good]) if good.sum() >= 16 else (0.0, 0.0)
            if sigma > 0:
                sky.setdefault(band, []).append(middle)
                noise.setdefault(band, []).append(sigma)
                frame[band] = np.where(good, plane - middle, 0.0)
        frames.append(frame)
    found = [b for b in bands if b in noise] if bands else sorted(noise, key=lambda b: (BANDS.find(b), b))
    if not found:
        return None
    red, green, blue = choose_bands(found)
    used = [b for b in dict.fromkeys((red, green, blue)) if b]
    sigma_of = {b: float(np.median(noise[b])) for b in used}
    balance = _balance([f for f in frames if set(used) <= f.keys()], used, sigma_of)
    # Rounded to five digits: the last ones depend on the NumPy build, and a resumed ingest must find the same values.
    unit = {b: float(f"{sigma_of[b] * balance[b]:.5g}") for b in used}
    return Rendering(red, green, blue, unit, {b: bool(abs(np.median(sky[b])) > 3 * sigma_of[b]) for b in used})


def sky_and_noise(values: np.ndarray) -> tuple[float, float]:
    """Return level and robust sigma of the sky."""
    from astropy.stats import sigma_clipped_stats

    _, median, sigma = sigma_clipped_stats(values, sigma=3, maxiters=10)
    return float(median), float(sigma)


def _balance(
    frames: Sequence[Mapping[str, np.ndarray]], used: Sequence[str], noise: Mapping[str, float]
) -> dict[str, float]:
    """Return factors that give the median object the colours of SDSS images; `used` runs from red to blue."""
    relative_fluxes = []
    for frame in frames:
        if len({frame[b].shape for b in used}) > 1:
            continue
        stack = np.stack([frame[b] / noise[b] for b in used])
        bright = (stack > 5).all(axis=0)
        if bright.sum() >= 16:
            flux = stack[:, bright].sum(axis=1)
            relative_fluxes.append(flux / flux.mean())
    if len(used) == 1 or not relative_fluxes:
        return dict.fromkeys(used, 1.0)
    tint = np.array(SDSS_TINT if len(used) == 3 else (SDSS_TINT[0], SDSS_TINT[2]))
    return dict(zip(used, np.median(relative_fluxes, axis=0) / tint, strict=True))


def blank_pixels(plane: np.ndarray) -> np.ndarray:
    """Return where a plane has no data: pixels not finite, or in rows and columns at the border that are all zero."""
    blank = ~np.isfinite(plane)
    empty = blank | (plane == 0)
    for axis in (0, 1):
        lines = empty.all(axis=1 - axis)
        inside = np.flatnonzero(~lines)
        first, last = (inside[0], inside[-1] + 1) if inside.size else (lines.size, 0)
        edge = np.ones_like(lines)
        edge[first:last] = False
        blank |= edge[:, None] if axis == 0 else edge[None, :]
    return blank


def read_fits(
    paths: Sequence[Path | FileInMemory], size: int, pixel_scale: float, rendering: Rendering | None
) -> Outcome:
    """Read and render the bands of one object."""
    try:
        planes, scale, _ = read_planes(paths)
    except Exception as error:  # astropy raises many types for broken files
        return Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    return from_planes(planes, size, pixel_scale if np.isfinite(pixel_scale) else scale, rendering)


def from_planes(
    planes: Mapping[str, np.ndarray], size: int, pixel_scale: float, rendering: Rendering | None
) -> Outcome:
    """Render the bands of one object; row 0 is at the bottom, as in FITS."""
    if rendering is None:
        return Failed("no frame of the survey has sky noise to measure the stretch on", Flag.BLANK)
    if absent := [b for b in rendering.bands if b not in planes]:
        return Failed(f"no {', '.join(absent)} band", Flag.MISSING)
    shapes = {planes[b].shape for b in rendering.bands}
    if len(shapes) > 1:
        sizes = ", ".join(f"{h} x {w}" for h, w in sorted(shapes))
        return Failed(f"bands differ in shape: {sizes}", Flag.WRONG_SHAPE)
    height, width = shapes.pop()
    if height != width:
        return Failed(f"{height} x {width} pixels, not square", Flag.WRONG_SHAPE)
    for band in rendering.bands:
        if not np.isfinite(planes[band]).any():
            return Failed(f"no finite pixel in band {band}", Flag.NONFINITE)
        if np.nanmin(planes[band]) == np.nanmax(planes[band]):
            return Failed("all pixels are equal", Flag.BLANK)

    blank = np.any([blank_pixels(planes[b]) for b in rendering.bands], axis=0)
    if blank.all():
        return Failed("no pixel is valid in all bands", Flag.BLANK)
    flux = {}
    for band in rendering.bands:
        plane = planes[band]
        sky = sky_and_noise(plane[~blank])[0] if rendering.subtract[band] else 0.0
        # Blank in one band is blanked in all, to avoid coloured edges.
        flux[band] = np.where(blank, 0.0, (plane - sky) / rendering.unit[band])
    image = Image.fromarray(rendering.colours(flux)[::-1])  # FITS counts rows from the bottom
    flags = Flag.EDGE if blank.any() else Flag.OK
    return fit(image, size, pixel_scale, source=width, flags=flags)
