"""Survey of WebDataset shards: tar files with ``KEY.jpg``, ``.png`` or ``.fits``, and ``KEY.json`` or ``KEY.cls``.

Nothing is extracted to disk: one pass over the tar headers gives the offset of each member.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.files.archives import LARGEST
from galscan.surveys.files.base import FRAMES
from galscan.surveys.files.images import FileInMemory, Rendering, measure, read_image, read_planes, readable
from galscan.surveys.files.packed import PackedSurvey

PICTURES, FITS = ("png", "jpg", "jpeg"), ("fits", "fit")
MAX_METADATA = 1_000_000  # bytes of the metadata of one object
KEY = "__key__"


class WebDatasetSurvey(PackedSurvey):
    """A folder of shards, or one of them. See `PackedSurvey`.

    The key is the id, unless `columns` names a key of the JSON. Truncated shards are read as far as possible.
    """

    format: ClassVar[str] = "webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz")
    format_columns: ClassVar[Mapping[str, str]] = {"id": KEY}

    def _find(self) -> dict[str, int]:
        self._images: list[np.ndarray] = []  # by shard: offset, bytes and whether it is FITS, of each object's image
        return super()._find()

    def _connect(self, file_number: int) -> BinaryIO:
        path = str(self._path(file_number))
        return gzip.open(path) if path.lower().endswith("gz") else open(path, "rb")  # type: ignore[return-value]

    def _table(self, file_number: int) -> pd.DataFrame:
        shard, path = _Shard(self.files[file_number]), str(self._path(file_number))
        file = self._opened(file_number)
        # gzip detects truncation itself.
        length = None if path.lower().endswith("gz") else os.path.getsize(path)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    shard.add(tar, member, length)
                file.seek(tar.offset)
            problem = "" if file.read(512) == bytes(512) else "no end-of-archive marker"
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            if not shard.keys:
                raise
            problem = str(error)
        if problem:
            self.notes.append(
                f"{self.files[file_number]} is truncated or damaged after {len(shard.keys):,} objects ({problem})"
            )
        if not shard.keys:
            raise InputError(f"{path} has no KEY.jpg, .png, .fits, .json or .cls; give shards of WebDataset")
        if shard.unreadable:
            self.notes.append(f"{self.files[file_number]} has {shard.unreadable:,} metadata files that cannot be read")
        self._images.append(np.array(list(shard.images.values()), dtype=np.int64))
        return shard.table()

    def _image(self, file_number: int, row: int) -> list[FileInMemory]:
        """Read one image. May raise any error if the shard is damaged."""
        offset, size, fits = self._images[file_number][row].tolist()
        if size > LARGEST:
            raise ValueError(f"{size:,} bytes, at most {LARGEST:,} are allowed")
        file = self._opened(file_number)
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"truncated: {len(data):,} bytes of {size:,}")
        return [FileInMemory(data, "image.fits" if fits else "image")]

    def _outcomes(self, file_number: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        for row, scale in enumerate(scales.tolist(), first):
            if self._images[file_number][row, 0] < 0:
                yield Failed("no image of this key", Flag.MISSING)
            else:
                yield read_image(partial(self._image, file_number, row), self.size, scale, self.rendering)

    def _calibrate(self) -> Rendering | None:
        """Measure one stretch for all FITS images."""
        rows = zip(self.file_number.tolist(), self.row.tolist(), strict=True)
        fits = ((number, row) for number, row in rows if number >= 0 and self._images[number][row, 2])
        return measure(readable(lambda at: read_planes(self._image(*at))[0], islice(fits, FRAMES)), [])


class _Shard:
    """Metadata and image offsets of one shard, by key; the members of a key must be consecutive."""

    def __init__(self, name: str):
        self.name = name
        self.keys: dict[str, dict[str, Any]] = {}
        self.images: dict[str, tuple[int, int, bool]] = {}
        self.unreadable = 0
        self._last = ""

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, length: int | None) -> None:
        key, kind = split_key(member.name)
        if not member.isfile() or kind not in (*PICTURES, *FITS, "json", "cls"):
            return
        if key in self.keys and key != self._last:
            raise InputError(
                f"the members of key '{key}' are not consecutive in {self.name}; write them one after another"
            )
        self._last = key
        metadata = self.keys.setdefault(key, {})
        present = self.images.setdefault(key, (-1, 0, False))
        if kind in (*PICTURES, *FITS):
            if present[0] < 0 or present[2]:  # an RGB image is preferred to FITS planes
                self.images[key] = member.offset_data, member.size, kind in FITS
        elif length is None or member.offset_data + member.size <= length:
            data = tar.extractfile(member) if member.size <= MAX_METADATA else None
            values = _metadata(kind, data.read()) if data is not None else None
            self.unreadable += values is None
            metadata.update(values or {})

    def table(self) -> pd.DataFrame:
        names = dict.fromkeys(name for metadata in self.keys.values() for name in metadata)
        # dtype object, not float: ids have more digits than a float, and may be missing in some rows.
        columns = {n: pd.Series([m.get(n) for m in self.keys.values()], dtype=object) for n in names}
        return pd.DataFrame({KEY: list(self.keys)} | columns)


def split_key(name: str) -> tuple[str, str]:
    """Return key and suffix of a member, as WebDataset does: the key ends at the first dot of the file name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, rest = file.partition(".")
    return folder + slash + key, rest.rsplit(".", 1)[-1].lower()


def _metadata(kind: str, data: bytes) -> dict[str, Any] | None:
    """Return the metadata of an object, numbers and text by name; None if they cannot be read."""
    try:
        if kind == "cls":
            return {"cls": data.decode().strip()}
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return {str(k): v for k, v in values.items() if v is None or isinstance(v, str | int | float)}
