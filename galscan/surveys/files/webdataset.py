"""Shards of WebDataset: tar files with ``KEY.jpg``, ``.png`` or ``.fits``, and ``KEY.json`` or ``KEY.cls`` beside it.

Nothing is unpacked: one pass over the headers tells where each member lies, and its bytes are read from there.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.files.archives import LARGEST
from galscan.surveys.files.images import FileInMemory, Rendering, calibrate, read_fits, read_picture
from galscan.surveys.files.local import FRAMES
from galscan.surveys.files.packed import PackedSurvey, find_files

SUFFIXES = (".tar", ".tar.gz", ".tgz")
PICTURES, FITS = ("png", "jpg", "jpeg"), ("fits", "fit")
LONGEST = 1_000_000  # bytes of what is known of one object
KEY = "__key__"


class WebDatasetSurvey(PackedSurvey):
    """A folder of shards, or one of them. See `PackedSurvey`.

    The key is the id, unless `columns` names one of the JSON. A shard that is cut off gives what it holds.
    """

    format: ClassVar[str] = "webdataset"
    usual: ClassVar[Mapping[str, str]] = {"id": KEY}

    def _find(self) -> list[str]:
        self._images: list[np.ndarray] = []  # by shard: offset, bytes and whether it is FITS, of each object's image
        return find_files(str(self.root), SUFFIXES)

    def _connect(self, part: int) -> BinaryIO:
        path = str(self._where(part))
        return gzip.open(path) if path.lower().endswith("gz") else open(path, "rb")  # type: ignore[return-value]

    def _table(self, part: int) -> pd.DataFrame:
        shard, path = _Shard(self.files[part]), str(self._where(part))
        file = self._opened(part)
        # The end of what is packed says by itself whether it is whole.
        length = None if path.lower().endswith("gz") else os.path.getsize(path)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    shard.add(tar, member, length)
                file.seek(tar.offset)
            trouble = "" if file.read(512) == bytes(512) else "no end"
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            if not shard.keys:
                raise
            trouble = str(error)
        if trouble:
            self.notes.append(f"{self.files[part]} is cut off or damaged after {len(shard.keys):,} objects ({trouble})")
        if not shard.keys:
            raise InputError(f"{path} holds no KEY.jpg, .png, .fits, .json or .cls; is it of WebDataset?")
        if shard.unread:
            self.notes.append(f"{self.files[part]} has JSON that cannot be read, {shard.unread:,} times")
        self._images.append(np.array(list(shard.images.values()), dtype=np.int64))
        return shard.table()

    def _image(self, part: int, row: int) -> FileInMemory | Failed:
        offset, size, fits = self._images[part][row].tolist()
        if offset < 0:
            return Failed("no image of this key", Flag.MISSING)
        if size > LARGEST:
            return Failed(f"{size:,} bytes, at most {LARGEST:,} are read")
        file = self._opened(part)
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            return Failed(f"truncated: {len(data):,} bytes of {size:,}")
        return FileInMemory(data, "image.fits" if fits else "image")

    def _outcomes(self, part: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        for row, scale in enumerate(scales.tolist(), first):
            try:
                image = self._image(part, row)
            except Exception as error:  # what is packed may be damaged
                image = Failed(f"{type(error).__name__}: {str(error)[:160]}")
            if isinstance(image, Failed):
                yield image
            elif self._images[part][row, 2]:
                yield read_fits([image], self.size, scale, self.rendering)
            else:
                yield read_picture(image, self.size, scale)

    def _calibrate(self) -> Rendering | None:
        """Set one stretch for all FITS images."""
        places = zip(self.part.tolist(), self.row.tolist(), strict=True)
        fits = ((part, row) for part, row in places if part >= 0 and self._images[part][row, 2])
        held = [self._image(part, row) for part, row in islice(fits, FRAMES)]
        return calibrate([[h] for h in held if isinstance(h, FileInMemory)], []) if held else None


class _Shard:
    """What the members of one shard say, by key; those of one key follow each other."""

    def __init__(self, name: str):
        self.name = name
        self.keys: dict[str, dict[str, Any]] = {}
        self.images: dict[str, tuple[int, int, bool]] = {}
        self.unread = 0
        self._last = ""

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, length: int | None) -> None:
        key, kind = split_key(member.name)
        if not member.isfile() or kind not in (*PICTURES, *FITS, "json", "cls"):
            return
        if key in self.keys and key != self._last:
            raise InputError(f"key '{key}' comes back after others in {self.name}; its members must lie together")
        self._last = key
        said = self.keys.setdefault(key, {})
        before = self.images.setdefault(key, (-1, 0, False))
        if kind in (*PICTURES, *FITS):
            if before[0] < 0 or before[2]:  # a picture is better than planes that are still to be coloured
                self.images[key] = member.offset_data, member.size, kind in FITS
        elif length is None or member.offset_data + member.size <= length:
            data = tar.extractfile(member) if member.size <= LONGEST else None
            known = _known(kind, data.read()) if data is not None else None
            self.unread += known is None
            said.update(known or {})

    def table(self) -> pd.DataFrame:
        names = dict.fromkeys(name for said in self.keys.values() for name in said)
        # Objects, not floats: an id has more digits than a float, and may be missing in the next line.
        columns = {n: pd.Series([said.get(n) for said in self.keys.values()], dtype=object) for n in names}
        return pd.DataFrame({KEY: list(self.keys)} | columns)


def split_key(name: str) -> tuple[str, str]:
    """Return key and kind of a member, as WebDataset does: the key ends at the first dot of the file name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, rest = file.partition(".")
    return folder + slash + key, rest.rsplit(".", 1)[-1].lower()


def _known(kind: str, data: bytes) -> dict[str, Any] | None:
    """Return what is known of an object, numbers and texts by name; None if it cannot be read."""
    try:
        if kind == "cls":
            return {"cls": data.decode().strip()}
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    return {str(k): v for k, v in said.items() if v is None or isinstance(v, str | int | float)}
