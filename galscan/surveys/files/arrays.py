"""Base class of surveys whose files hold arrays of many objects: RGB images, or planes by band."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice, takewhile
from typing import Any

import numpy as np

from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.files.base import FRAMES
from galscan.surveys.files.images import (
    Rendering,
    check_bands,
    failure,
    from_pixels,
    from_planes,
    measure,
    read_picture,
    readable,
)
from galscan.surveys.files.packed import PackedSurvey
from galscan.surveys.files.planes import FileInMemory

# Pixels of one object: an RGB image (uint8, height x width x 3, row 0 at the top), the bytes of a JPEG or PNG, planes
# by band (row 0 at the bottom, as in FITS), or the reason why there are none.
Pixels = np.ndarray | bytes | Mapping[str, np.ndarray] | Failed


class Stretched:
    """Rendering of planes that are stretched to 0..1 already: they are used as red, green and blue."""

    @staticmethod
    def is_stretched(plane: np.ndarray) -> bool:
        """Return whether all pixels are within 0..1; in a plane without stretch some sky pixels are negative."""
        good = plane[np.isfinite(plane)]
        return plane.dtype.kind == "f" and good.size > 0 and bool(good.min() >= 0 and good.max() <= 1)

    def describe(self) -> dict[str, Any]:
        return {"method": "linear, of planes that were stretched to 0..1 before"}

    def picture(self, planes: Mapping[str, np.ndarray], size: int, pixel_scale: float) -> Outcome:
        """Return the cutout of one or three planes."""
        stack = np.stack(list(planes.values()), axis=-1)[::-1]  # row 0 of planes is at the bottom
        if not np.isfinite(stack).any():
            return Failed("no finite pixel", Flag.NONFINITE)
        if stack.shape[-1] not in (1, 3):
            return Failed(f"{stack.shape[-1]} stretched planes, must be 1 or 3", Flag.WRONG_SHAPE)
        pixels = (np.nan_to_num(stack, nan=0.0).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return from_pixels(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1), size, pixel_scale)


class ArraySurvey(PackedSurvey):
    """Survey of files with arrays of many objects. See `PackedSurvey`."""

    @abstractmethod
    def _pixels(self, file_number: int, first: int, last: int) -> Iterator[Pixels]:
        """Yield the pixels of rows `first` to `last` of a file. May raise any exception if the file is damaged."""

    def _outcomes(self, file_number: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        try:
            pixels = list(self._pixels(file_number, first, first + len(scales)))
        except Exception as error:  # each reader raises its own errors for broken files
            if len(scales) == 1:
                yield failure(error)
                return
            for k in range(len(scales)):  # one by one, so that only damaged objects fail
                yield from self._outcomes(file_number, first + k, scales[k : k + 1])
            return
        for object_pixels, scale in zip(pixels, scales.tolist(), strict=True):
            yield self._render(object_pixels, scale)

    def _render(self, pixels: Pixels, scale: float) -> Outcome:
        if isinstance(pixels, Failed):
            return pixels
        if isinstance(pixels, np.ndarray):
            return from_pixels(pixels, self.size, scale)
        if isinstance(pixels, bytes):
            return read_picture(FileInMemory(pixels, "image"), self.size, scale)
        if isinstance(self.rendering, Stretched):
            return self.rendering.picture(pixels, self.size, scale)
        return from_planes(pixels, self.size, scale, self.rendering)

    def _calibrate(self) -> Rendering | Stretched | None:
        """Measure one stretch for all planes on the first objects."""
        some = np.flatnonzero(self.file_number >= 0)[: 4 * FRAMES]
        rows = zip(self.file_number[some].tolist(), self.row[some].tolist(), strict=True)
        pixels = readable(lambda at: next(self._pixels(*at, at[1] + 1)), rows)
        planes_only = takewhile(lambda p: not isinstance(p, np.ndarray | bytes), pixels)
        sample = list(islice((p for p in planes_only if isinstance(p, Mapping)), FRAMES))
        if sample and all(Stretched.is_stretched(plane) for planes in sample for plane in planes.values()):
            self.notes.append("all pixels are within 0 to 1: no stretch is applied")
            return Stretched()
        check_bands(self.bands, (band for planes in sample for band in planes))
        return measure(sample, self.bands)


def as_picture(image: np.ndarray) -> Pixels:
    """Return an RGB image from an array with one or three channels, first or last."""
    if image.shape[0] in (1, 3) and image.shape[-1] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if (channels := image.shape[-1]) not in (1, 3):
        return Failed(f"{channels} channels, must be 1 or 3", Flag.WRONG_SHAPE)
    return np.repeat(image, 3 // channels, axis=-1)
