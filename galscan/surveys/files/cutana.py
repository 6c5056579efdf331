"""Cutouts that ESA's Cutana made: ``images.zarr`` with ``images_metadata.parquet`` beside it, one pair a batch.

The array is (object, y, x, channel), uint8 or float32, as ``cutana.cutout_writer_zarr`` and images-to-zarr write it;
row 0 is at the bottom, as in the FITS files it was cut from. Three channels are red, green and blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec

from galscan.core.errors import InputError
from galscan.surveys.base import Failed, Flag
from galscan.surveys.files.arrays import ArraySurvey, Pixels, as_picture

COLOURS = ("red", "green", "blue")


class CutanaSurvey(ArraySurvey):
    """The output folder of a Cutana run, a batch of it, or one ``.zarr`` (settings: `packed.PackedSurvey`)."""

    format: ClassVar[str] = "cutana"
    usual: ClassVar[Mapping[str, str]] = {
        "id": "source_id",
        "ra": "ra",
        "dec": "dec",
        "pixel_scale": "pixel_scale_arcsec_per_pixel",
    }

    def _find(self) -> list[str]:
        return find_archives(self.root)

    def _table(self, part: int) -> pd.DataFrame:
        path = self._where(part)
        beside = path.with_name(f"{path.stem}_metadata.parquet")
        if not beside.is_file():
            raise InputError(f"{path} has no {beside.name} beside it, which says what the pictures show; copy it there")
        frame = pd.read_parquet(beside, dtype_backend="numpy_nullable")
        if (count := self._opened(part).array.shape[0]) > len(frame):
            raise InputError(f"{path} holds {count:,} pictures, {beside.name} names {len(frame):,}; copy both anew")
        return frame

    def _connect(self, part: int) -> _Archive:
        return _Archive(self._where(part))

    def _pixels(self, part: int, first: int, last: int) -> Iterator[Pixels]:
        archive = self._opened(part)
        for row in range(first, last):
            if row >= archive.array.shape[0]:
                yield Failed("named by the metadata, but there is no picture of it", Flag.MISSING)
            else:
                yield _planes(archive.image(row))

    def _digest(self) -> str:
        listed = []
        for k in range(len(self.files)):
            files = sorted(p for p in self._where(k).rglob("*") if p.is_file())
            listed += [f"{p.stat().st_size} {p.relative_to(self.root)}" for p in files]
        return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()


class _Archive:
    """One ``images.zarr``. A chunk holds up to 1,000 pictures, so the last one is kept, or why it cannot be read."""

    def __init__(self, path: Path):
        self._path = path / "images"
        array = zarr.open_group(path, mode="r")["images"]
        if not isinstance(array, zarr.Array) or array.ndim != 4:
            raise InputError(f"{path} has no 4-dimensional array 'images'; is it of Cutana?")
        self.array = array
        self._chunk, self._kept = -1, np.empty(0)
        self._trouble: Exception | None = None

    def image(self, row: int) -> np.ndarray:
        step = self.array.chunks[0]
        if row // step != self._chunk:
            self._chunk, self._kept, self._trouble = row // step, np.empty(0), None  # two at once are one too many
            try:
                self._check(self._chunk)
                self._kept = np.asarray(self.array[self._chunk * step : (self._chunk + 1) * step])
            except Exception as error:
                self._trouble = error
        if self._trouble is not None:
            raise self._trouble
        return self._kept[row % step]

    def _check(self, chunk: int) -> None:
        """Refuse a chunk that is cut off: Blosc would read on beyond its end, and give what lies there as pixels."""
        encoding = getattr(self.array.metadata, "chunk_key_encoding", None)
        if encoding is None or not any(isinstance(c, BloscCodec) for c in self.array.compressors):
            return
        for place in np.ndindex(
            *(-(-n // c) for n, c in zip(self.array.shape[1:], self.array.chunks[1:], strict=True))
        ):
            file = self._path / encoding.encode_chunk_key((chunk, *place))
            if file.is_file():
                with open(file, "rb") as opened:
                    header = opened.read(16)
                said = int.from_bytes(header[12:16], "little")  # of the packed bytes, header included
                if (length := file.stat().st_size) < max(said, 16):
                    raise ValueError(f"truncated: a chunk has {length:,} bytes of {max(said, 16):,}")


def find_archives(root: Path) -> list[str]:
    """Return the archives in a folder, at most two levels down, relative to it."""
    if root.suffix == ".zarr":
        return [""] if (root / "images").is_dir() else []
    found = [p for p in (*root.glob("*.zarr"), *root.glob("*/*.zarr")) if (p / "images").is_dir()]
    told = [p for p in found if p.name == "images.zarr" or p.with_name(f"{p.stem}_metadata.parquet").is_file()]
    return sorted(str(p.relative_to(root)) for p in told)


def _planes(image: np.ndarray) -> Pixels:
    """Return a picture, or its channels by colour. images-to-zarr puts channels first where it read files."""
    if image.dtype == np.uint8:
        picture = as_picture(image)
        return picture[::-1] if isinstance(picture, np.ndarray) else picture
    if image.shape[0] <= 4 < image.shape[-1]:
        image = np.moveaxis(image, 0, -1)
    names = COLOURS if image.shape[-1] == 3 else tuple(str(k) for k in range(image.shape[-1]))
    return {name: image[..., k] for k, name in enumerate(names)}
