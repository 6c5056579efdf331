"""Conversion of JPEG, PNG and FITS images to square uint8 cutouts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from galscan.core.errors import InputError, nearest
from galscan.surveys.base import Cutout, Failed, Flag, Outcome
from galscan.surveys.file_names import is_fits, wavelength
from galscan.surveys.files.planes import MAX_PIXELS, FileInMemory, centre_scale, read_planes
from galscan.surveys.resampling import shrink

WHITE = 65535  # brightest value of a 16-bit image
DARK = 15  # high byte of 16-bit colours: pixels of 12 bits are not brighter
SAMPLE = 32  # images on which the depth is measured
DEPTHS = (255, 1023, 4095, 16_383, WHITE)  # of 8 to 16 bits, as cameras and converters write them to 16 bits
STRETCH = 8.0  # renders SDSS frames about as bright as SDSS JPEG images
SDSS_TINT = (1.15, 1.0, 0.85)  # mean red, green, blue of galaxies in SDSS gri JPEGs, relative


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
    load: Callable[[], Sequence[Path | FileInMemory]], size: int, pixel_scale: float, rendering: Rendering | None, *,
    bands: Sequence[str] | None = None, white: int = WHITE,
) -> Outcome:  # fmt: skip
    """Read one JPEG or PNG, or the FITS files of an object, which `load` returns. Errors are outcomes.

    `bands` are those of the FITS files (`galscan.surveys.files.planes.read_planes`), `white` that of `read_picture`.
    """
    try:
        files = load()
    except Exception as error:
        return failure(error)
    if is_fits(files[0].name):
        return read_fits(files, size, pixel_scale, rendering, bands)
    return read_picture(files[0], size, pixel_scale, white)


def read_picture(path: Path | FileInMemory, size: int, pixel_scale: float, white: int = WHITE) -> Outcome:
    """Read a JPEG or PNG. EXIF orientation is ignored: it has no meaning for images of the sky.

    `white` is the brightest value of 16-bit grey images: less than 65,535 if they have fewer bits.
    """
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
                wide = any(";16" in str(tile[3]) for tile in image.tile)
                image.load()
                rgb: Image.Image = image
                if image.mode.startswith("I"):  # 16-bit grey: keep the high byte rather than clip
                    values = np.asarray(image).astype(np.int64).clip(0, WHITE)
                    if (brightest := values.max()) > white:
                        return Failed(f"a pixel of {brightest}, where others of the survey reach {white}; use 8 bits")
                    rgb = Image.fromarray((values * 255 // white).astype(np.uint8))
                rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    except Exception as error:
        return failure(error, path)
    if wide and not image.mode.startswith("I") and 0 < max(high for _, high in _extrema(rgb)) <= DARK:
        return Failed("16-bit colours of which at most 12 bits are used; convert the images to 8 bits")
    return _usable(rgb, size, pixel_scale, source=width)


def _extrema(rgb: Image.Image) -> list[tuple[float, float]]:
    return [band.getextrema() for band in rgb.split()]  # type: ignore[misc]


def white_of(pictures: Sequence[Source], load: Callable[[Source], Path | FileInMemory]) -> int:
    """Return the brightest value that the 16-bit grey images of a survey may have, measured on some of them.

    Images of 10 or 12 bits in 16 would be nearly black.
    """
    brightest = 0
    for k in np.unique(np.linspace(0, len(pictures) - 1, SAMPLE).round().astype(int)) if pictures else ():
        try:
            with Image.open(load(pictures[k]), formats=("JPEG", "PNG")) as image:
                if not image.mode.startswith("I") or image.width * image.height > MAX_PIXELS:
                    continue
                brightest = max(brightest, int(np.asarray(image).max()))
        except Exception:  # a broken image fails later, with a reason
            continue
    return next(depth for depth in DEPTHS if brightest <= depth) if brightest else WHITE


def from_pixels(pixels: np.ndarray, size: int, pixel_scale: float) -> Outcome:
    """Return the cutout of an RGB image: uint8 of shape (height, width, 3), row 0 at the top."""
    height, width = pixels.shape[:2]
    if width != height:
        return Failed(f"{height} x {width} pixels, not square", Flag.WRONG_SHAPE)
    return _usable(Image.fromarray(pixels), size, pixel_scale, source=width)


def _usable(rgb: Image.Image, size: int, pixel_scale: float, *, source: int) -> Outcome:
    if all(low == high for low, high in _extrema(rgb)):
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


def check_bands(bands: Sequence[str], found: Iterable[str]) -> None:
    """Raise `InputError` if one of `bands`, those of the option --bands, was found in no image of a survey."""
    present = set(found)
    for band in bands:
        if band not in present:
            raise InputError(f"no image has band '{band}'{nearest(band, present)}; choose others with --bands")


def measure(objects: Iterable[Mapping[str, np.ndarray]], bands: Sequence[str]) -> Rendering | None:
    """Measure the rendering (sky, noise, colour) on planes by band. None if no plane has noise.

    `bands` are those to use, from blue to red; by default all.
    """
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
    found = [b for b in bands if b in noise] if bands else sorted(noise, key=wavelength)
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
    paths: Sequence[Path | FileInMemory],
    size: int,
    pixel_scale: float,
    rendering: Rendering | None,
    bands: Sequence[str] | None = None,
) -> Outcome:
    """Read and render the bands of one object."""
    try:
        planes, headers = read_planes(paths, bands)
    except Exception as error:
        return failure(error)
    if not np.isfinite(pixel_scale):
        pixel_scale = centre_scale(headers, planes)
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
