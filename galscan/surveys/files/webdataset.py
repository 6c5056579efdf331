"""Survey of WebDataset shards: tar files with ``KEY.jpg``, ``.png`` or ``.fits``, and ``KEY.json`` or ``KEY.cls``.

Between key and kind may be a word: ``KEY.image.jpg``, ``KEY.g.fits`` (a band). Masks, weights and the like
(``KEY.mask.png``) are left out. Nothing is extracted to disk: one pass over the tar headers gives the offset of each
member.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice, pairwise
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.file_names import band_of, is_ambiguous, is_companion, is_fits, is_image, stem
from galscan.surveys.files.archives import LARGEST
from galscan.surveys.files.base import FRAMES
from galscan.surveys.files.images import Rendering, check_bands, measure, read_image, readable, white_of
from galscan.surveys.files.packed import PackedSurvey
from galscan.surveys.files.planes import FileInMemory, read_planes

MAX_METADATA = 1_000_000  # bytes of the metadata of one object
KEY = "__key__"
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class WebDatasetSurvey(PackedSurvey):
    """A folder of shards, or one of them. See `PackedSurvey`.

    The key is the id, unless `columns` names a key of the JSON. Truncated shards are read as far as possible.
    """

    format: ClassVar[str] = "webdataset"
    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz")
    format_columns: ClassVar[Mapping[str, str]] = {"id": KEY}

    def _find(self) -> dict[str, int]:
        # By shard: the number of each object's first image, and of the one behind the last; offset and bytes of each
        # image, whether it is FITS, and the number of its band.
        self._first: list[np.ndarray] = []
        self._images: list[np.ndarray] = []
        self._names: list[str] = [""]
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
        images = shard.chosen()
        self._first.append(np.cumsum([0, *map(len, images)]))
        for chosen in (m for group in images for m in group):
            if chosen.band not in self._names:
                self._names.append(chosen.band)
        rows = [(m.offset, m.size, m.fits, self._names.index(m.band)) for group in images for m in group]
        self._images.append(np.array(rows, dtype=np.int64).reshape(-1, 4))
        return shard.table()

    def _members(self, file_number: int, row: int) -> list[list[int]]:
        first, last = self._first[file_number][row : row + 2]
        members: list[list[int]] = self._images[file_number][first:last].tolist()
        return members

    def _bands(self, file_number: int, row: int) -> list[str]:
        return [self._names[number] for *_, number in self._members(file_number, row)]

    def _image(self, file_number: int, row: int) -> list[FileInMemory]:
        """Read the images of one object. May raise any error if the shard is damaged."""
        found = []
        for offset, size, fits, _ in self._members(file_number, row):
            if size > LARGEST:
                raise ValueError(f"{size:,} bytes, at most {LARGEST:,} are allowed")
            file = self._opened(file_number)
            file.seek(offset)
            data = file.read(size)
            if len(data) < size:
                raise ValueError(f"truncated: {len(data):,} bytes of {size:,}")
            found.append(FileInMemory(data, "image.fits" if fits else "image"))
        return found

    def _outcomes(self, file_number: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        for row, scale in enumerate(scales.tolist(), first):
            if bands := self._bands(file_number, row):
                load = partial(self._image, file_number, row)
                yield read_image(load, self.size, scale, self.rendering, bands=bands, white=self.white)
            else:
                yield Failed("no image of this key", Flag.MISSING)

    def _calibrate(self) -> Rendering | None:
        """Measure one stretch for all FITS images."""
        at = [
            (number, row)
            for number, row in zip(self.file_number.tolist(), self.row.tolist(), strict=True)
            if number >= 0
        ]
        kinds = [self._members(*place)[:1] for place in at]
        pictures = [place for place, kind in zip(at, kinds, strict=True) if kind and not kind[0][2]]
        self.white = white_of(pictures, lambda place: self._image(*place)[0])
        fits = (place for place, kind in zip(at, kinds, strict=True) if kind and kind[0][2])
        sample = list(
            readable(lambda place: read_planes(self._image(*place), self._bands(*place))[0], islice(fits, FRAMES))
        )
        if sample:
            check_bands(self.bands, (band for planes in sample for band in planes))
        return measure(sample, self.bands)


class _Member(NamedTuple):
    """An image in a shard; `word` is that between key and kind, `band` the band it names."""

    offset: int
    size: int
    fits: bool
    word: str
    band: str = ""


class _Shard:
    """Metadata and images of one shard, by key; the members of a key must be consecutive."""

    def __init__(self, name: str):
        self.name = name
        self.keys: dict[str, dict[str, Any]] = {}
        self.images: dict[str, list[_Member]] = {}
        self.unreadable = 0
        self._last = ""

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, length: int | None) -> None:
        key, word, kind = split_key(member.name)
        image = is_image(f"{key}.{kind}")
        if not member.isfile() or not (image or kind in ("json", "cls")):
            return
        if key in self.keys and key != self._last:
            raise InputError(
                f"the members of key '{key}' are not consecutive in {self.name}; write them one after another"
            )
        self._last = key
        metadata = self.keys.setdefault(key, {})
        images = self.images.setdefault(key, [])
        if image:
            images.append(_Member(member.offset_data, member.size, is_fits(f"{key}.{kind}"), word))
        elif length is None or member.offset_data + member.size <= length:
            data = tar.extractfile(member) if member.size <= MAX_METADATA else None
            values = _metadata(kind, data.read()) if data is not None else None
            self.unreadable += values is None
            metadata.update(values or {})

    def chosen(self) -> list[list[_Member]]:
        """Return the images of each key: one picture, or else one FITS file or one per band.

        Raises `InputError` if a key has several that are not bands: none would be the right one.
        """
        for pair in pairwise(self.images):
            short, long = sorted(pair, key=len)
            if long.startswith(short + ".") and len({bool(self.images[key]) for key in pair}) == 2:
                raise InputError(
                    f"one of the keys '{short}' and '{long}' of {self.name} has an image and the other has none; name "
                    "the members of an object alike"
                )
        companions = {key: [m for m in images if is_companion(m.word)] for key, images in self.images.items()}
        if all(len(companions[key]) == len(images) for key, images in self.images.items()):
            companions = {key: [] for key in companions}  # a shard of them alone: they are what the user wants
        return [
            self._of_key(key, [m for m in images if m not in companions[key]]) for key, images in self.images.items()
        ]

    def _of_key(self, key: str, images: list[_Member]) -> list[_Member]:
        pictures = [m for m in images if not m.fits]
        if len(pictures) > 1:
            words = " and ".join(f"'{m.word}'" for m in pictures[:2])
            raise InputError(
                f"key '{key}' of {self.name} has {len(pictures)} pictures, {words}; keep one, or combine bands to a "
                "colour image"
            )
        if pictures:
            return pictures  # an RGB image is preferred to FITS planes
        named = [m._replace(band=band_of(m.word)) for m in images]
        if is_ambiguous([m.band for m in named]):
            words = ", ".join(f"'{m.word}'" for m in images[:4])
            raise InputError(
                f"key '{key}' of {self.name} has {len(images)} FITS images, {words}; keep one, or name their bands: "
                "KEY.g.fits"
            )
        return named

    def table(self) -> pd.DataFrame:
        names = dict.fromkeys(name for metadata in self.keys.values() for name in metadata)
        # dtype object, not float: ids have more digits than a float, and may be missing in some rows.
        columns = {n: pd.Series([m.get(n) for m in self.keys.values()], dtype=object) for n in names}
        return pd.DataFrame({KEY: list(self.keys)} | columns)


def split_key(name: str) -> tuple[str, str, str]:
    """Return the key, the word and the kind of a member: ``("J1.5", "g", "fits.gz")`` of ``J1.5.g.fits.gz``.

    WebDataset ends the key at the first dot of the file name, so that ``J000001.85-004937.9`` and ``J000001.99-0120``
    would be one object. Here it ends at the first dot behind which there are words only, which begin with letters.
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    kind = file[len(stem(file)) + 1 :] if is_image(file) else file.rpartition(".")[2]
    parts = file[: len(file) - len(kind) - 1].split(".")
    words = 0
    while words < len(parts) - 1 and _WORD.fullmatch(parts[-1 - words]):
        words += 1
    key = ".".join(parts[: len(parts) - words])
    return folder + slash + key, ".".join(parts[len(parts) - words :]), kind.lower()


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
