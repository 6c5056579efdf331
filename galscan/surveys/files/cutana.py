"""Survey of cutouts by ESA's Cutana: ``images.zarr`` with ``images_metadata.parquet`` beside it, one pair per batch.

The array is (object, y, x, channel), uint8 or float32, as written by ``cutana.cutout_writer_zarr`` and images-to-zarr;
row 0 is at the bottom, as in the original FITS files. Three channels are red, green and blue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """The output folder of a Cutana run, one of its batches, or one ``.zarr``. See `PackedSurvey`."""

    format: ClassVar[str] = "cutana"
    format_columns: ClassVar[Mapping[str, str]] = {
        "id": "source_id", "ra": "ra", "dec": "dec", "pixel_scale": "pixel_scale_arcsec_per_pixel",
    }  # fmt: skip

    def _find(self) -> dict[str, int]:
        return dict.fromkeys(find_archives(self.root), 0)

    def _read(self, labels: Sequence[str], columns: Mapping[str, str]) -> Mapping[str, int]:
        super()._read(labels, columns)
        archives = [self._path(k) for k in range(len(self.files))]
        files = [file for archive in archives for file in sorted(archive.rglob("*")) if file.is_file()]
        return {str(file.relative_to(self.root)): file.stat().st_size for file in files}

    def _table(self, file_number: int) -> pd.DataFrame:
        path = self._path(file_number)
        beside = path.with_name(f"{path.stem}_metadata.parquet")
        if not beside.is_file():
            raise InputError(f"{path} has no {beside.name} beside it, which lists the objects; copy it there")
        frame = pd.read_parquet(beside, dtype_backend="numpy_nullable")
        if (count := self._opened(file_number).array.shape[0]) > len(frame):
            raise InputError(
                f"{path} has {count:,} images, but {beside.name} lists {len(frame):,} objects; copy both again"
            )
        return frame

    def _connect(self, file_number: int) -> _Archive:
        return _Archive(self._path(file_number))

    def _pixels(self, file_number: int, first: int, last: int) -> Iterator[Pixels]:
        archive = self._opened(file_number)
        for row in range(first, last):
            if row >= archive.array.shape[0]:
                yield Failed("listed in the metadata, but has no image", Flag.MISSING)
            else:
                yield _planes(archive.image(row))


class _Archive:
    """One ``images.zarr``. The last chunk (up to 1,000 images), or the error of reading it, is cached."""

    def __init__(self, path: Path):
        self._path = path / "images"
        array = zarr.open_group(path, mode="r")["images"]
        if not isinstance(array, zarr.Array) or array.ndim != 4:
            raise InputError(f"{path} has no 4-dimensional array 'images'; give the output of Cutana")
        self.array = array
        self._chunk, self._images = -1, np.empty(0)
        self._error: Exception | None = None

    def image(self, row: int) -> np.ndarray:
        step = self.array.chunks[0]
        if row // step != self._chunk:
            # Free the old chunk before reading the next one.
            self._chunk, self._images, self._error = row // step, np.empty(0), None
            try:
                self._check(self._chunk)
                self._images = np.asarray(self.array[self._chunk * step : (self._chunk + 1) * step])
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._images[row % step]

    def _check(self, chunk: int) -> None:
        """Raise `ValueError` for a truncated chunk: Blosc would read beyond its end, and return other memory."""
        encoding = getattr(self.array.metadata, "chunk_key_encoding", None)
        if encoding is None or not any(isinstance(c, BloscCodec) for c in self.array.compressors):
            return
        for index in np.ndindex(*self.array.cdata_shape[1:]):
            file = self._path / encoding.encode_chunk_key((chunk, *index))
            if file.is_file():
                with open(file, "rb") as opened:
                    header = opened.read(16)
                expected = int.from_bytes(header[12:16], "little")  # compressed size, header included
                if (length := file.stat().st_size) < max(expected, 16):
                    raise ValueError(f"truncated: a chunk has {length:,} bytes of {max(expected, 16):,}")


def find_archives(root: Path) -> list[str]:
    """Return the archives in a folder, at most two levels down, relative to it."""
    if root.suffix == ".zarr":
        return [""] if (root / "images").is_dir() else []
    found = [p for p in (*root.glob("*.zarr"), *root.glob("*/*.zarr")) if (p / "images").is_dir()]
    archives = [p for p in found if p.name == "images.zarr" or p.with_name(f"{p.stem}_metadata.parquet").is_file()]
    return sorted(str(p.relative_to(root)) for p in archives)


def _planes(image: np.ndarray) -> Pixels:
    """Return an RGB image, or channels by colour. images-to-zarr may write channels first."""
    if image.dtype == np.uint8:
        picture = as_picture(image)
        return picture[::-1] if isinstance(picture, np.ndarray) else picture
    if image.shape[0] <= 4 < image.shape[-1]:
        image = np.moveaxis(image, 0, -1)
    names = COLOURS if image.shape[-1] == 3 else tuple(str(k) for k in range(image.shape[-1]))
    return {name: image[..., k] for k, name in enumerate(names)}
