"""Pictures that lie many to a file, with what is known of them beside: what all such formats share."""

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
from galscan.surveys.catalog import CatalogSurvey
from galscan.surveys.files.local import checked
from galscan.surveys.sizes import DEFAULT_SIZE

BATCH = 64  # objects read at once
ROLES = ("id", "ra", "dec", "pixel_scale")


class PackedSurvey(CatalogSurvey, ABC):
    """Objects in files of one format, in the order in which they lie there.

    Parameters
    ----------
    path : path
        The folder (searched recursively), or one file.
    catalog : path, optional
        A table whose rows are the objects, joined by id; labels are taken from it, and positions where it has some.
        Default: what the files say of themselves.
    labels, size, columns, name
        As of `galscan.surveys.files.local.LocalSurvey`; `columns` are of the catalog, if there is one.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If a file cannot be read, an id occurs twice, or no picture belongs to the catalog.
    """

    format: ClassVar[str]
    usual: ClassVar[Mapping[str, str]] = {}
    """The format's own columns, by role; they win over others."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ):
        given = checked(columns, size)
        self.root = Path(path).expanduser().absolute()
        if not self.root.exists():
            raise NotFoundError(f"nothing at {path}; name the folder of the files with --path")
        self.name = name or self.root.name
        self.size = size
        self.catalog = Path(catalog).expanduser().absolute() if catalog is not None else None
        self._open: tuple[int, Any] | None = None
        self.notes: list[str] = []
        self.unmatched: list[str] = []
        self.files = self._find()
        if not self.files:
            raise InputError(f"no {self.format} file in {path} or below; name the folder that holds them with --path")
        self._read_own({} if self.catalog else given, () if self.catalog else labels)
        if self.catalog is not None:
            self._join(given, labels)
        self.rendering = self._calibrate()
        self._files_digest = self._digest()
        self._close()

    # ------------------------------------------------------------------------------------- of each format

    @abstractmethod
    def _find(self) -> list[str]:
        """Return the files in a fixed order, relative to the root."""

    @abstractmethod
    def _table(self, part: int) -> pd.DataFrame:
        """Return what file number `part` says of its objects, one row each. May raise anything where it is damaged."""

    @abstractmethod
    def _connect(self, part: int) -> Any:
        """Open file number `part`."""

    @abstractmethod
    def _outcomes(self, part: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        """Yield one outcome a row, from row `first` on; what is damaged fails with a reason."""

    @abstractmethod
    def _calibrate(self) -> Any:
        """Return how what is no picture yet is coloured, None where all are; it can `describe` itself."""

    # -------------------------------------------------------------------------------------------- the files

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _opened(self, part: int) -> Any:
        """Return a file, opened: one at a time, by each process for itself."""
        if self._open is None or self._open[0] != part:
            self._close()
            self._open = part, self._connect(part)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None and hasattr(self._open[1], "close"):
            self._open[1].close()
        self._open = None

    def _where(self, part: int) -> Path:
        return self.root / self.files[part] if self.root.is_dir() else self.root

    # ------------------------------------------------------------------------------------------ the catalog

    def _read_own(self, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        """Read ids, positions and labels file by file, so that of other columns only one file's are in memory."""
        ids, labelled, numbers = [], [], []
        self._schemas = {}
        counts = []
        for part in range(len(self.files)):
            where = str(self._where(part))
            try:
                frame = self._table(part)
            except InputError:
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                raise InputError(f"{where} cannot be read ({why}); fetch it anew, or move it away") from error
            said = {r: c for r, c in self.usual.items() if c in frame.columns} | dict(columns)
            role = {r: tables.find_column(frame, r, said, where) for r in ROLES}
            if role["id"] is None:
                if len(self.files) > 1:
                    present = ", ".join(map(str, frame.columns[:12]))
                    raise InputError(f"{where} has no ids; it has {present}; name the column: --column id=...")
                frame, role["id"] = frame.assign(**{"row number": np.arange(len(frame))}), "row number"
            ids.append(frame[role["id"]])
            ra, dec = tables.positions(frame, role["ra"], role["dec"], ids[-1].to_numpy(), where)
            found = role["pixel_scale"]
            scale = tables.numbers(frame[found], where) if found else np.full(len(frame), np.nan)
            numbers.append(np.stack([ra, dec, np.where(scale > 0, scale, np.nan)]))
            schemas, part_labels = tables.read_labels(frame, labels)
            if part and schemas != self._schemas:
                raise InputError(f"{where} has other label columns than {self._where(0)}; take them from a --catalog")
            self._schemas = schemas
            labelled.append(part_labels)
            counts.append(len(frame))
        self.ids = tables.identifiers(pd.concat(ids, ignore_index=True).rename(ids[0].name), str(self.root))
        self.ra, self.dec, self.pixel_scale = np.concatenate(numbers, axis=1)
        self.labels = pd.concat(labelled, ignore_index=True)
        self.part = np.repeat(np.arange(len(self.files), dtype=np.int32), counts)
        self.row = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])

    def _join(self, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        """Make the rows of the catalog the objects, in the order of the files; those without a picture come last."""
        where = str(self.catalog)
        frame = tables.read_table(self.catalog, columns)  # type: ignore[arg-type]
        role = {r: tables.find_column(frame, r, columns, where) for r in ROLES}
        if role["id"] is None:
            raise InputError(f"{where} has no id column; name it: --column id=...")
        ids = tables.identifiers(frame[role["id"]], where)
        at = pd.Index(self.ids.astype(str)).get_indexer(ids.astype(str))
        if (at < 0).all():
            raise InputError(
                f"no row of {where} has a picture in {self.root} (a row's id is '{ids[0]}', a picture's "
                f"'{self.ids[0]}'); name the id column: --column id=..."
            )
        order = np.argsort(np.where(at < 0, len(self.ids), at), kind="stable")
        ids, at, frame = ids[order], at[order], frame.iloc[order].reset_index(drop=True)
        there = at >= 0
        used = np.zeros(len(self.ids), dtype=bool)
        used[at[there]] = True
        self.unmatched = self.ids[~used].astype(str).tolist()

        def own(values: np.ndarray, nothing: float) -> np.ndarray:
            return np.where(there, values[at], nothing).astype(values.dtype)

        ra, dec = tables.positions(frame, role["ra"], role["dec"], ids, where)
        placed = np.isfinite(ra) & np.isfinite(dec)
        self.ra = np.where(placed, ra, own(self.ra, np.nan))
        self.dec = np.where(placed, dec, own(self.dec, np.nan))
        said = role["pixel_scale"]
        scale = tables.numbers(frame[said], where) if said else np.full(len(frame), np.nan)
        self.pixel_scale = np.where(scale > 0, scale, own(self.pixel_scale, np.nan))
        self.part, self.row, self.ids = own(self.part, -1), own(self.row, -1), ids
        self._schemas, self.labels = tables.read_labels(frame, labels)

    # ------------------------------------------------------------------------------------- what a survey is

    def _digest(self) -> str:
        """Return a hash of names and sizes, which tells changed files without reading them."""
        listed = [f"{self._where(k).stat().st_size} {f}" for k, f in enumerate(self.files)]
        return hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return provenance: files, catalog, and how pixels were made."""
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
        """Yield one cutout, or the reason for none, a row; pixels are read a batch of neighbours at a time."""
        stop = min(stop, len(self))
        while start < stop:
            part, row = int(self.part[start]), int(self.row[start])
            if part < 0:
                yield Failed(f"no picture of {self.ids[start]}", Flag.MISSING)
                start += 1
                continue
            end = start + 1
            while end < min(stop, start + BATCH) and self.part[end] == part and self.row[end] == row + end - start:
                end += 1
            yield from self._outcomes(part, row, self.pixel_scale[start:end])
            start = end


def find_files(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files below a folder that end so, in a fixed order, relative to it; hidden ones do not count."""
    if os.path.isfile(root):
        return [os.path.basename(root)]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, f), root) for f in files if _ends(f, suffixes)]
    return sorted(found)


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")
