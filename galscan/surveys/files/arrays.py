"""Pictures and planes out of arrays of many objects: coloured, or taken as they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.files.images import Rendering, from_pixels, from_planes, measure
from galscan.surveys.files.local import FRAMES
from galscan.surveys.files.packed import PackedSurvey

# What an array holds of one object: a picture (uint8, height x width x 3, row 0 at the top), planes by band (row 0 at
# the bottom, as in FITS), or the reason for neither.
Pixels = np.ndarray | Mapping[str, np.ndarray] | Failed


class Stretched:
    """Planes that somebody has stretched to 0..1 already: they are red, green, blue as they come."""

    @staticmethod
    def looks(plane: np.ndarray) -> bool:
        """Return whether a plane is stretched, it seems. The sky of one that is not is negative here and there."""
        good = plane[np.isfinite(plane)]
        return plane.dtype.kind == "f" and good.size > 0 and bool(good.min() >= 0 and good.max() <= 1)

    def describe(self) -> dict[str, Any]:
        return {"method": "linear, of planes that were stretched to 0..1 before"}

    def picture(self, planes: Mapping[str, np.ndarray], size: int, pixel_scale: float) -> Outcome:
        """Return the picture of one or three planes."""
        stack = np.stack(list(planes.values()), axis=-1)[::-1]  # their row 0 is at the bottom
        if not np.isfinite(stack).any():
            return Failed("no finite pixel", Flag.NONFINITE)
        if stack.shape[-1] not in (1, 3):
            return Failed(f"{stack.shape[-1]} stretched planes, 1 or 3 make a picture", Flag.WRONG_SHAPE)
        pixels = (np.nan_to_num(stack, nan=0.0).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return from_pixels(np.repeat(pixels, 3 // pixels.shape[-1], axis=-1), size, pixel_scale)


class ArraySurvey(PackedSurvey):
    """Objects in arrays. See `PackedSurvey`."""

    @abstractmethod
    def _pixels(self, part: int, first: int, last: int) -> Iterator[Pixels]:
        """Yield the pixels of rows `first` to `last` of a file. May raise anything where it is damaged."""

    def _outcomes(self, part: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        try:
            pixels = list(self._pixels(part, first, first + len(scales)))
        except Exception as error:  # each reader has its own family of errors for a broken file
            if len(scales) == 1:
                yield Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
                return
            for k in range(len(scales)):  # only those that are damaged shall fail
                yield from self._outcomes(part, first + k, scales[k : k + 1])
            return
        for found, scale in zip(pixels, scales.tolist(), strict=True):
            yield self._coloured(found, scale)

    def _coloured(self, found: Pixels, scale: float) -> Outcome:
        if isinstance(found, Failed):
            return found
        if isinstance(found, np.ndarray):
            return from_pixels(found, self.size, scale)
        if isinstance(self.rendering, Stretched):
            return self.rendering.picture(found, self.size, scale)
        return from_planes(found, self.size, scale, self.rendering)

    def _calibrate(self) -> Rendering | Stretched | None:
        """Set one stretch for all planes, from the first objects."""
        first: list[Mapping[str, np.ndarray]] = []
        for n in range(min(len(self), 4 * FRAMES)):
            try:
                found = next(self._pixels(int(self.part[n]), int(self.row[n]), int(self.row[n]) + 1))
            except Exception:  # what is damaged gets its reason when its turn comes
                continue
            if isinstance(found, np.ndarray):
                return None
            if isinstance(found, Mapping):
                first.append(found)
            if len(first) == FRAMES:
                break
        if first and all(Stretched.looks(plane) for planes in first for plane in planes.values()):
            self.notes.append("pixels run from 0 to 1: they are taken as stretched already")
            return Stretched()
        return measure(first, []) if first else None


def as_picture(image: np.ndarray) -> Pixels:
    """Return a picture of three colours, from one or three channels, which may come first."""
    if image.shape[0] in (1, 3) and image.shape[-1] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if (channels := image.shape[-1]) not in (1, 3):
        return Failed(f"{channels} channels, 1 or 3 make a picture", Flag.WRONG_SHAPE)
    return np.repeat(image, 3 // channels, axis=-1)
