"""Conversion of JPEG, PNG and FITS images to square uint8 cutouts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from galscan.surveys.base import Cutout, Failed, Flag, Outcome
from galscan.surveys.files.path_matching import BANDS, is_fits, split_band
from galscan.surveys.resampling import shrink

MAX_PIXELS = 64_000_000  # of one file, against decompression bombs
STRETCH = 8.0  # renders SDSS frames about as bright as SDSS JPEG images
SDSS_TINT = (1.15, 1.0, 0.85)  # mean red, green, blue of galaxies in SDSS gri JPEGs, relative


class FileInMemory(io.BytesIO):
    """A file in memory, from an archive or a service; its name may contain the band."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


Source = TypeVar("Source")
Value = TypeVar("Value")


def readable(read: Callable[[Source], Value], sources: Iterable[Source]) -> Iterator[Value]:
    """Yield what is read of each source; broken ones are left out, as they fail later, with a reason."""
    for source in sources:
        try:
            yield read(source)
        except Exception:
            continue


def failure(error: Exception, path: Path | FileInMemory | None = None) -> Failed:
    """Return the outcome of a broken image: decoders raise many types of errors, from OSError to SyntaxError.

    The folder of `path` is left out, because the reason is written to the store.
    """
    text = str(error).replace(str(path), path.name) if path is not None else str(error)
    return Failed(f"{type(error).__name__}: {' '.join(text.split())[:160]}")


def read_image(
    load: Callable[[], Sequence[Path | FileInMemory]], size: int, pixel_scale: float, rendering: Rendering | None
) -> Outcome:
    """Read one JPEG or PNG, or one FITS file per band, which `load` returns. Errors are outcomes."""
    try:
        files = load()
    except Exception as error:
        return failure(error)
    if is_fits(files[0].name):
        return read_fits(files, size, pixel_scale, rendering)
    return read_picture(files[0], size, pixel_scale)


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
                rgb: Image.Image = image
                if image.mode.startswith("I"):  # 16-bit grey: keep the high byte rather than clip
                    high = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
                    rgb = Image.fromarray(high.astype(np.uint8))
                rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    except Exception as error:
        return failure(error, path)
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


def read_planes(paths: Sequence[Path | FileInMemory]) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Read the bands of one object: planes by band, and the FITS headers of the files.

    One file with several planes, or one file per band. Planes of a file without band names are called 0, 1, 2: blue to
    red, as in the cutouts of the Legacy Surveys.

    Raises `ValueError` if a file has no image, or a too large one. Astropy raises other errors for broken files.
    """
    from astropy.io import fits

    planes: dict[str, np.ndarray] = {}
    headers = []
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
        headers.append(header)
        if data.ndim == 2:
            planes[split_band(path.name)[1] or "0"] = data
        else:
            named = str(header.get("BANDS", "")).strip()
            names = named if len(named) == len(data) else [str(i) for i in range(len(data))]
            planes |= dict(zip(names, data, strict=True))
    return planes, headers


def read_centre(path: Path | FileInMemory) -> tuple[float, float]:
    """Return the position (ICRS, deg) of the centre of a FITS image. Raises any error if there is none."""
    planes, headers = read_planes([path])
    height, width = next(iter(planes.values())).shape
    position = _celestial_wcs(headers).pixel_to_world((width - 1) / 2, (height - 1) / 2).icrs
    return float(position.ra.deg), float(position.dec.deg)


def _celestial_wcs(headers: Iterable[Any]) -> Any:
    """Return the WCS of the first header with celestial coordinates; None if there is none."""
    from astropy.wcs import WCS

    for header in headers:
        # wcslib raises many types of errors.
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (wcs := WCS(header, naxis=2)).has_celestial:
                return wcs
    return None


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
        lines = empty.all(axis=axis)
        border = np.logical_and.accumulate(lines) | np.logical_and.accumulate(lines[::-1])[::-1]
        blank |= np.expand_dims(border, axis)
    return blank


def read_fits(
    paths: Sequence[Path | FileInMemory], size: int, pixel_scale: float, rendering: Rendering | None
) -> Outcome:
    """Read and render the bands of one object."""
    from astropy.wcs.utils import proj_plane_pixel_scales

    try:
        planes, headers = read_planes(paths)
    except Exception as error:
        return failure(error)
    if not np.isfinite(pixel_scale) and (wcs := _celestial_wcs(headers)) is not None:
        pixel_scale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
    return from_planes(planes, size, pixel_scale, rendering)


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
