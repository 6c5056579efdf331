"""Base class of surveys whose files hold images and metadata of many objects."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import file_digest
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.catalog import CatalogSurvey, check_roles, find_columns
from galscan.surveys.sizes import DEFAULT_SIZE, check_size

BATCH = 64  # objects read at once
ROLES = ("id", "ra", "dec", "pixel_scale")


class PackedSurvey(CatalogSurvey, ABC):
    """Objects in files of one format, in the order of the files.

    Parameters
    ----------
    path : path
        The folder (searched recursively), or one file.
    catalog : path, optional
        A table whose rows are the objects, joined by id; its labels are used, and its positions where present.
        Default: the metadata in the files.
    labels, size, columns, name
        As for `galscan.surveys.files.local.LocalSurvey`; `columns` refers to the catalog, if there is one.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If a file cannot be read, an id occurs twice, or the catalog matches no image.
    """

    format: ClassVar[str]
    format_columns: ClassVar[Mapping[str, str]] = {}
    """Column of the format for each role; takes precedence over other usual names."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ):
        given = dict(columns or {})
        check_roles(given, ("file", *ROLES))
        check_size(size)
        self.root = Path(path).expanduser().absolute()
        if not self.root.exists():
            raise NotFoundError(f"{path} does not exist; give the folder of the files with --path")
        self.name = name or self.root.name
        self.size = size
        self.catalog = Path(catalog).expanduser().absolute() if catalog is not None else None
        self._open: tuple[int, Any] | None = None
        self.notes: list[str] = []
        self.unmatched: list[str] = []
        self.files = self._find()
        if not self.files:
            raise InputError(f"no {self.format} file in {path} or below; give the folder of the files with --path")
        self._read_files({} if self.catalog else given, () if self.catalog else labels)
        if self.catalog is not None:
            self._join(given, labels)
        self.rendering = self._calibrate()
        self._files_digest = self._digest()
        self._close()

    # ------------------------------------------------------------------------- implemented for each format

    @abstractmethod
    def _find(self) -> list[str]:
        """Return the files in a fixed order, relative to the root."""

    @abstractmethod
    def _table(self, file_number: int) -> pd.DataFrame:
        """Return the metadata of a file, one row per object. May raise any error if the file is damaged."""

    @abstractmethod
    def _connect(self, file_number: int) -> Any:
        """Open a file."""

    @abstractmethod
    def _outcomes(self, file_number: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        """Yield one outcome per row from row `first` on; damaged objects are `Failed`."""

    @abstractmethod
    def _calibrate(self) -> Any:
        """Return the rendering of planes, an object with `describe`; None if all objects are RGB images."""

    # -------------------------------------------------------------------------------------------- the files

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _opened(self, file_number: int) -> Any:
        """Return an open file; each process keeps one open."""
        if self._open is None or self._open[0] != file_number:
            self._close()
            self._open = file_number, self._connect(file_number)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None and hasattr(self._open[1], "close"):
            self._open[1].close()
        self._open = None

    def _path(self, file_number: int) -> Path:
        return self.root / self.files[file_number] if self.root.is_dir() else self.root

    # ------------------------------------------------------------------------------------------ the catalog

    def _read_files(self, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        """Read ids, positions and labels file by file; other columns are not kept in memory."""
        ids, labelled, numbers = [], [], []
        self._schemas = {}
        counts = []
        for file_number in range(len(self.files)):
            where = str(self._path(file_number))
            try:
                frame = self._table(file_number)
            except InputError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                raise InputError(f"{where} cannot be read ({why}); download it again, or remove it") from error
            by_role = {r: c for r, c in self.format_columns.items() if c in frame.columns} | dict(columns)
            role = {r: tables.find_column(frame, r, by_role, where) for r in ROLES}
            if role["id"] is None:
                if len(self.files) > 1:
                    present = ", ".join(map(str, frame.columns[:12]))
                    raise InputError(f"{where} has no ids; it has {present}; name the column: --column id=...")
                frame, role["id"] = frame.assign(**{"row number": np.arange(len(frame))}), "row number"
            ids.append(frame[role["id"]])
            ra, dec = tables.positions(frame, role["ra"], role["dec"], ids[-1].to_numpy(), where)
            column = role["pixel_scale"]
            scale = tables.numbers(frame[column], where) if column else np.full(len(frame), np.nan)
            numbers.append(np.stack([ra, dec, np.where(scale > 0, scale, np.nan)]))
            schemas, part_labels = tables.read_labels(frame, labels)
            if file_number and schemas != self._schemas:
                raise InputError(f"{where} has other label columns than {self._path(0)}; take them from a --catalog")
            self._schemas = schemas
            labelled.append(part_labels)
            counts.append(len(frame))
        self.ids = tables.identifiers(pd.concat(ids, ignore_index=True).rename(ids[0].name), str(self.root))
        self.ra, self.dec, self.pixel_scale = np.concatenate(numbers, axis=1)
        self.labels = pd.concat(labelled, ignore_index=True)
        self.file_number = np.repeat(np.arange(len(self.files), dtype=np.int32), counts)
        self.row = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])

    def _join(self, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        """Join the catalog by id; sort its rows in the order of the files, those without an image last."""
        where = str(self.catalog)
        frame = tables.read_table(self.catalog, columns)  # type: ignore[arg-type]
        role = find_columns(frame, ROLES, columns, where)
        ids = tables.identifiers(frame[role["id"]], where)
        at = pd.Index(self.ids.astype(str)).get_indexer(ids.astype(str))
        if (at < 0).all():
            raise InputError(
                f"no row of {where} has an image in {self.root} (the id of a row is '{ids[0]}', that of an image "
                f"'{self.ids[0]}'); name the id column: --column id=..."
            )
        order = np.argsort(np.where(at < 0, len(self.ids), at), kind="stable")
        ids, at, frame = ids[order], at[order], frame.iloc[order].reset_index(drop=True)
        matched = at >= 0
        used = np.zeros(len(self.ids), dtype=bool)
        used[at[matched]] = True
        self.unmatched = self.ids[~used].astype(str).tolist()

        def from_files(values: np.ndarray, default: float) -> np.ndarray:
            return np.where(matched, values[at], default).astype(values.dtype)

        ra, dec = tables.positions(frame, role["ra"], role["dec"], ids, where)
        has_position = np.isfinite(ra) & np.isfinite(dec)
        self.ra = np.where(has_position, ra, from_files(self.ra, np.nan))
        self.dec = np.where(has_position, dec, from_files(self.dec, np.nan))
        column = role["pixel_scale"]
        scale = tables.numbers(frame[column], where) if column else np.full(len(frame), np.nan)
        self.pixel_scale = np.where(scale > 0, scale, from_files(self.pixel_scale, np.nan))
        self.file_number, self.row, self.ids = from_files(self.file_number, -1), from_files(self.row, -1), ids
        self._schemas, self.labels = tables.read_labels(frame, labels)

    # ------------------------------------------------------------------------------------- Survey protocol

    def _digest(self) -> str:
        """Return a hash of names and sizes, to detect changes without reading the files."""
        listed = [f"{self._path(k).stat().st_size} {f}" for k, f in enumerate(self.files)]
        return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return provenance: files, catalog and rendering."""
        return {
            "survey": "local",
            "format": self.format,
            "name": self.name,
            "path": str(self.root),
            "catalog": str(self.catalog) if self.catalog else None,
            "catalog_sha256": file_digest(self.catalog) if self.catalog else None,
            "files": len(self.files),
            "files_sha256": self._files_digest,
            "objects": len(self),
            "images_without_row": len(self.unmatched),
            "size": self.size,
            "resize": "hamming, bilinear when enlarging",
            "labels": list(self._schemas),
            "rendering": self.rendering.describe() if self.rendering else None,
        }

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object; pixels of consecutive rows are read in batches."""
        stop = min(stop, len(self))
        while start < stop:
            file_number, row = int(self.file_number[start]), int(self.row[start])
            if file_number < 0:
                yield Failed(f"no image of {self.ids[start]}", Flag.MISSING)
                start += 1
                continue
            end = start + 1
            while (
                end < min(stop, start + BATCH)
                and self.file_number[end] == file_number
                and self.row[end] == row + end - start
            ):
                end += 1
            yield from self._outcomes(file_number, row, self.pixel_scale[start:end])
            start = end


def find_files(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files below a folder with one of `suffixes`, sorted, relative to it; without hidden files."""
    if os.path.isfile(root):
        return [os.path.basename(root)]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, f), root) for f in files if _ends(f, suffixes)]
    return sorted(found)


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")
