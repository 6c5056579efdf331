"""Base class of surveys whose files hold images and metadata of many objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.catalog import find_columns
from galscan.surveys.columns.positions import read_positions
from galscan.surveys.columns.values import identifiers
from galscan.surveys.files.base import FileSurvey, pixel_scales
from galscan.surveys.files.images import failure
from galscan.surveys.files.path_matching import find_files

BATCH = 64  # objects read at once


class PackedSurvey(FileSurvey):
    """Objects in files of one format, in the order of the files. See `galscan.surveys.files.base.FileSurvey`.

    The rows of a catalog are the objects, joined by id; its labels are used, and its positions where present. Without
    one, the metadata in the files are used.
    """

    format: ClassVar[str]
    format_columns: ClassVar[Mapping[str, str]] = {}
    """Column of the format for each role; takes precedence over other usual names."""
    _open: tuple[int, Any] | None  # number of the open file, and the file

    # ------------------------------------------------------------------------- implemented for each format

    def _find(self) -> dict[str, int]:
        """Return the files in a fixed order, relative to the root, and their bytes."""
        if self.root.is_file():
            return {self.root.name: self.root.stat().st_size}
        return find_files(self.root, self.suffixes)

    @abstractmethod
    def _table(self, file_number: int) -> pd.DataFrame:
        """Return the metadata of a file, one row per object. May raise any error if the file is damaged."""

    def _check_labels(self, file_number: int, table: pd.DataFrame, labels: Sequence[str]) -> None:
        """Raise `InputError` if the labels of a file are known to be others."""

    @abstractmethod
    def _connect(self, file_number: int) -> Any:
        """Open a file."""

    @abstractmethod
    def _outcomes(self, file_number: int, first: int, scales: np.ndarray) -> Iterator[Outcome]:
        """Yield one outcome per row from row `first` on; damaged objects are `Failed`."""

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

    def _read(self, labels: Sequence[str], columns: Mapping[str, str]) -> Mapping[str, int]:
        self._open = None
        sizes = self._find()
        self.files = list(sizes)
        if not self.files:
            raise InputError(f"no {self.format} file in {self.root} or below; give the folder of the files with --path")
        if self.catalog is None:
            objects = self._read_files(labels, columns)
        else:
            objects = self._join(self._read_files((), {}), labels, columns)
        self.ra, self.dec, self.pixel_scale = (np.array(objects[c]) for c in ("ra", "dec", "pixel_scale"))
        self.file_number, self.row = np.array(objects["file"], np.int32), np.array(objects["row"], np.int64)
        return sizes

    def _read_files(self, labels: Sequence[str], columns: Mapping[str, str]) -> pd.DataFrame:
        """Read ids, positions and labels file by file; other columns are not kept in memory."""
        parts, answers, required = [], [], ("id",) if len(self.files) > 1 else ()
        notes: list[str] = []
        self._schemas = {}
        for number in range(len(self.files)):
            where = str(self._path(number))
            try:
                table = self._table(number)
            except InputError:
                raise
            except Exception as error:
                why = failure(error).reason
                raise InputError(f"{where} cannot be read ({why}); download it again, or remove it") from error
            table = table.reset_index(drop=True)
            usual = {role: name for role, name in self.format_columns.items() if name in table.columns}
            role = find_columns(table, self.roles, usual | dict(columns), where, required)
            ids = table[role["id"]] if role["id"] else pd.Series(table.index, name="row number")
            found = read_positions(table, role["ra"], role["dec"], ids.to_numpy(), where)
            notes += found.notes
            scale = pixel_scales(table, role["pixel_scale"], where)
            parts.append(
                pd.DataFrame(
                    {
                        "id": ids,
                        "ra": found.ra,
                        "dec": found.dec,
                        "pixel_scale": scale,
                        "file": number,
                        "row": table.index,
                    }
                )
            )
            self._check_labels(number, table, labels)
            schemas, part = tables.read_labels(table, labels)
            if number and schemas != self._schemas:
                raise InputError(f"{where} has other label columns than {self._path(0)}; take them from a --catalog")
            self._schemas = schemas
            answers.append(part)
        objects = pd.concat(parts, ignore_index=True)
        self.ids = identifiers(objects["id"].rename(ids.name), str(self.root))
        self.position_notes = notes[:1] + ([f"the same of {len(notes) - 1:,} other files"] if len(notes) > 1 else [])
        self.labels = pd.concat(answers, ignore_index=True)
        return objects

    def _join(self, objects: pd.DataFrame, labels: Sequence[str], columns: Mapping[str, str]) -> pd.DataFrame:
        """Join the catalog by id; sort its rows in the order of the files, those without an image last."""
        where = str(self.catalog)
        table = tables.read_table(self._source, columns)
        role = find_columns(table, self.roles, columns, where)
        ids = identifiers(table[role["id"]], where)
        at = pd.Index(self.ids.astype(str)).get_indexer(ids.astype(str))
        if (at < 0).all():
            raise InputError(
                f"no row of {where} has an image in {self.root} (the id of a row is '{ids[0]}', that of an image "
                f"'{self.ids[0]}'); name the id column: --column id=..."
            )
        order = np.argsort(np.where(at < 0, len(self.ids), at), kind="stable")
        ids, at, table = ids[order], at[order], table.iloc[order].reset_index(drop=True)
        self.unmatched = np.delete(self.ids, at[at >= 0]).astype(str).tolist()
        self.ids = ids
        objects = objects.drop(columns="id").reindex(at).reset_index(drop=True).fillna({"file": -1, "row": -1})
        found = read_positions(table, role["ra"], role["dec"], ids, where)
        known = np.isfinite(found.ra + found.dec)
        objects.loc[known, "ra"], objects.loc[known, "dec"] = found.ra[known], found.dec[known]
        if known.any():
            self.position_notes = found.notes
        scale = pixel_scales(table, role["pixel_scale"], where)
        objects["pixel_scale"] = np.where(scale > 0, scale, objects["pixel_scale"])
        self._check_labels(0, table, labels)
        self._schemas, self.labels = tables.read_labels(table, labels)
        return objects

    # ------------------------------------------------------------------------------------- Survey protocol

    def describe(self) -> dict[str, Any]:
        """Return provenance: format, files, catalog and rendering."""
        return super().describe() | {"format": self.format, "files": len(self.files)}

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object; pixels of consecutive rows are read in batches."""
        stop = min(stop, len(self))
        while start < stop:
            number, row = int(self.file_number[start]), int(self.row[start])
            if number < 0:
                yield Failed(f"no image of {self.ids[start]}", Flag.MISSING)
                start += 1
                continue
            last = min(stop, start + BATCH)
            ahead = np.arange(last - start)
            follows = (self.file_number[start:last] == number) & (self.row[start:last] == row + ahead)
            end = start + int(np.append(follows, False).argmin())
            yield from self._outcomes(number, row, self.pixel_scale[start:end])
            start = end
