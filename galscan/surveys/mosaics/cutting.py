"""Cutouts of objects from frames, local or remote; each frame is opened about once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from galscan.core.errors import GalscanError, InputError, NotFoundError, nearest
from galscan.core.sky import Cone
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, NoCoverage, Outcome
from galscan.surveys.catalog import CatalogSurvey, check_roles
from galscan.surveys.columns.names import columns_of
from galscan.surveys.columns.values import arcseconds
from galscan.surveys.files.images import Rendering
from galscan.surveys.mosaics.footprints import Folder, Frame
from galscan.surveys.mosaics.stamps import FEWEST, MOST, OpenFrame
from galscan.surveys.services.errors import FetchError, MissingError
from galscan.surveys.sizes import check_framing, check_size
from galscan.surveys.subsets import select_rows
from galscan.surveys.tables import Catalog

ROLES = ("id", "ra", "dec", "radius")
RADIUS = ("radius", "radius_arcsec", "petror90_r", "petrorad_r")
OPEN = 2  # frames kept open by a process: the current one and the one before, which the next shard may continue
AHEAD = 2  # frames prefetched by a source
BATCH = 256  # objects of a frame cut at once


class FrameCutouts(CatalogSurvey, ABC):
    """Base of surveys of frames: objects sorted by frame, and the cutting.

    A subclass sets the attributes, and implements `_frame` (the files of a frame) and `_beyond` (the outcomes of
    objects on no frame).

    """

    name: str
    size: int
    pixel_scale: float | None  # arcsec per pixel of the cutouts
    framing: float | None  # instead: side of a cutout in units of the object's radius
    root: Path  # folder of the frames
    source: Folder
    catalog: Path
    bands: list[str]  # from blue to red
    number: np.ndarray  # int32: number of the frame of each object, increasing; `count` for objects on no frame
    count: int  # frames with objects on them
    rendering: Rendering
    _frame_metadata: dict[str, Any]

    def _read_catalog(
        self, catalog: Catalog, labels: Sequence[str], size: int, columns: Mapping[str, str], roles: Sequence[str],
        pixel_scale: float | None, frame: float | None, cone: Cone | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Check the settings, read the objects, and return their table."""
        check_roles(columns, roles)
        check_size(size)
        check_framing(pixel_scale, frame)
        self._source, self.catalog = catalog, Path(catalog.path or "")
        self.size, self.pixel_scale, self.framing = size, pixel_scale, frame
        self._opened: OrderedDict[int, OpenFrame] = OrderedDict()
        self._closed: tuple[int, Exception] | None = None  # the last frame that could not be opened, and why
        table = tables.read_table(catalog, columns)
        self._catalog_digest = tables.digest(self.catalog)
        if cone is not None:
            table = self._within(table, columns, cone)
        self._read_positions(table, columns)
        self.radius = np.full(len(self.ids), np.nan, dtype=np.float32)
        if frame:
            present = [str(c) for c in table.columns]
            column = columns.get("radius") or next(iter(columns_of(RADIUS, present)), "radius")
            if column not in table.columns:
                raise InputError(
                    f"--frame {frame:g} needs a radius (arcsec), and {self.catalog} has no column '{column}'"
                    f"{nearest(column, map(str, table.columns))}; name it: --column radius=..."
                )
            self.radius = arcseconds(table, column, "radius", str(self.catalog)).astype(np.float32)
        self._schemas, self.labels = tables.read_labels(table, labels)
        return table

    @abstractmethod
    def _frame(self, number: int) -> Frame: ...

    @abstractmethod
    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        """Yield the outcomes of objects that are on no frame."""

    # --------------------------------------------------------------------------------------------- objects

    def _sort_by_frame(self, number: np.ndarray) -> None:
        """Sort the objects by frame number; those on no frame come last."""
        order = np.argsort(number, kind="stable")
        self.number, self.ids, self.ra, self.dec = number[order], self.ids[order], self.ra[order], self.dec[order]
        self.radius = self.radius[order]
        self.labels = self.labels.iloc[order].reset_index(drop=True)

    def _check_scale(self, scales: Mapping[str, float]) -> None:
        if self.pixel_scale is None:
            return
        for name, scale in scales.items():
            if not FEWEST <= (across := self.size * self.pixel_scale / scale) <= MOST:
                raise InputError(
                    f"--pixel-scale {self.pixel_scale:g}: a cutout of {self.size} pixels would be {across:,.3g} pixels "
                    f"of frame {name} ({scale:.4g} arcsec per pixel); it must be {FEWEST} to {MOST}"
                )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict(), "_closed": None}  # each process opens its own

    def _metadata(self) -> dict[str, Any]:
        """Return the provenance that local and remote frames have in common, for `describe`."""
        return {
            "catalog": str(self.catalog),
            "catalog_sha256": self._catalog_digest,
            **self._source.describe(),
            "objects": len(self),
            **self._frame_metadata,
            "size": self.size,
            "bands": self.bands,
            "framing": {"pixel_scale": self.pixel_scale, "radii": self.framing},
            "orientation": "north up, east left, by mirroring and quarter turns",
            "fill": "sky",
            "resize": "none at the frames' own scale, else hamming, bilinear when enlarging",
            "labels": list(self._schemas),
            "rendering": self.rendering.describe(),
        }

    def take(self, rows: np.ndarray) -> Self:
        """Return the survey of these rows only; other frames are not read."""
        selected: Self = select_rows(self, rows, "ids", "ra", "dec", "number", "radius", "labels")
        return selected

    # --------------------------------------------------------------------------------------------- cutting

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object."""
        stop = min(stop, len(self))
        bounds = [start, *(np.flatnonzero(np.diff(self.number[start:stop])) + start + 1).tolist(), stop]
        used = self._used_frames()
        for first, last in pairwise(bounds) if start < stop else ():
            if (number := int(self.number[first])) == self.count:
                yield from self._beyond(slice(first, last))
                continue
            if stop - start > 1:  # a single row is a retry: the next frames need not follow
                at = int(np.searchsorted(used, number))
                for k in used[at : at + 1 + AHEAD].tolist():
                    if k not in self._opened and not (self._closed and self._closed[0] == k):
                        self.source.expect(self._files(k))
            yield from self._cut(number, first, last)

    def _used_frames(self) -> np.ndarray:
        """Return the numbers of the frames with objects on them."""
        numbers = np.unique(self.number)
        return numbers[numbers < self.count]

    def _files(self, number: int) -> list[str]:
        files = self._frame(number).files
        return [files[b] for b in self.bands if b in files]

    def _cut(self, number: int, first: int, last: int) -> Iterator[Outcome]:
        frame = self._frame(number)
        if absent := [b for b in self.bands if b not in frame.files]:
            reason = f"no {', '.join(absent)} band of frame {frame.name}"
            yield from (Failed(reason, Flag.MISSING) for _ in range(first, last))
            return
        for start in range(first, last, BATCH):
            rows = slice(start, min(start + BATCH, last))
            outcome: Outcome
            try:
                opened = self._open(number)
                if start == first:
                    opened.expect((last - first) * self.size)
                yield from opened.cut(self.ra[rows], self.dec[rows], self._extent(rows), self.size, self.rendering)
                continue
            except MissingError:
                outcome = NoCoverage(f"the survey has no frame {frame.name}")
            except FetchError as error:
                outcome = Failed(f"frame {frame.name}: {error}")
            except (MemoryError, GalscanError):
                raise
            except Exception as error:  # each file format raises its own errors for broken files
                self.source.reject(self._files(number))
                outcome = Failed(f"frame {frame.name}: {error_text(error, self.root)}")
            yield from (outcome for _ in range(rows.start, rows.stop))

    def _extent(self, rows: slice) -> np.ndarray | None:
        """Return the side of each cutout in arcsec; None for cutouts at the frame's own pixel scale."""
        if self.framing:
            return self.framing * self.radius[rows].astype(float)
        return np.full(rows.stop - rows.start, self.size * self.pixel_scale) if self.pixel_scale else None

    def _open(self, number: int) -> OpenFrame:
        if self._closed and self._closed[0] == number:
            raise self._closed[1]
        if number not in self._opened:
            frame = self._frame(number)
            self._close(OPEN - 1)
            try:
                paths = {b: self.source.locate(frame.files[b]) for b in self.bands}
                self._opened[number] = OpenFrame(frame.name, paths)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"frame {frame.name} is missing ({error.filename}); restore it and run the same command again"
                ) from error
            except (FetchError, ValueError, OSError, EOFError) as error:
                self._closed = number, error
                self.source.release(self._files(number))
                raise
        return self._opened[number]

    def _close(self, keep: int = 0) -> None:
        while len(self._opened) > keep:
            number, opened = self._opened.popitem(last=False)
            opened.close()
            self.source.release(self._files(number))


def error_text(error: Exception, root: Path) -> str:
    """Return the message of an error without local paths, because it is written to the store."""
    return " ".join(str(error).replace(f"{root}/", "").split())[:160] or type(error).__name__
