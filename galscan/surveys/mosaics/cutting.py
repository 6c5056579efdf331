"""Cutting objects out of frames, wherever the frames are: each is opened about once, and many are cut from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from galscan.core.errors import GalscanError, InputError, NotFoundError, nearest
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, NoCoverage, Outcome
from galscan.surveys.catalog import CatalogSurvey
from galscan.surveys.files.images import Rendering
from galscan.surveys.growth import narrowed
from galscan.surveys.mosaics.footprints import Frame, Source
from galscan.surveys.mosaics.stamps import FEWEST, MOST, OpenFrame
from galscan.surveys.services.errors import FetchError, MissingError
from galscan.surveys.sizes import check_size

ROLES = ("id", "ra", "dec", "radius")
RADIUS = ("radius", "radius_arcsec", "petror90_r", "petrorad_r")
OPEN = 2  # frames kept open by a process: that at work, and the one before, which the next shard may go on with
AHEAD = 2  # frames that a source is told of before they are needed
BATCH = 256  # objects of a frame in one go


class FrameCutouts(CatalogSurvey, ABC):
    """What surveys of frames have in common: objects in the order of their frames, and the cutting itself.

    A subclass sets the attributes, and says what a frame is (`_frame`) and what becomes of objects without (`_beyond`).

    Attributes
    ----------
    name, size
        As of any survey.
    pixel_scale, framing : float or None
        Arcsec a pixel of the cutouts; or a cutout's side in units of the object's radius.
    root : Path
        Folder of the frames.
    source : Source
        Where their files are.
    catalog : Path
        Where the objects come from.
    bands : list of str
        From blue to red.
    number : ndarray of int32
        Number of the frame of each object, rising; `count` for those that have none.
    count : int
        Frames with objects on them.
    rendering : Rendering
        How bands become colours.
    """

    name: str
    size: int
    pixel_scale: float | None
    framing: float | None
    root: Path
    source: Source
    catalog: Path
    bands: list[str]
    number: np.ndarray
    count: int
    rendering: Rendering

    def __init__(self) -> None:
        self._opened: OrderedDict[int, OpenFrame] = OrderedDict()
        self._closed: tuple[int, Exception] | None = None  # the last frame that could not be opened, and why

    @abstractmethod
    def _frame(self, number: int) -> Frame: ...

    @abstractmethod
    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        """Yield the reasons of objects that have no frame."""

    # --------------------------------------------------------------------------------------------- objects

    def _read_objects(self, table: pd.DataFrame, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        self._read_places(table, columns)
        self.radius = np.full(len(self.ids) if self.framing else 0, np.nan, dtype=np.float32)
        if self.framing:
            lower = {str(c).lower(): str(c) for c in table.columns}
            column = columns.get("radius") or next((lower[c] for c in RADIUS if c in lower), None)
            if column is None or column not in table.columns:
                raise InputError(
                    f"--frame {self.framing:g} needs a radius (arcsec), and {self.catalog} has no column "
                    f"'{column or 'radius'}'{nearest(column or 'radius', map(str, table.columns))}; "
                    "name it: --column radius=..."
                )
            self.radius = tables.numbers(table[column], str(self.catalog)).astype(np.float32)
        self._schemas, self.labels = tables.read_labels(table, labels)

    def _in_order(self, number: np.ndarray) -> None:
        """Put the objects in the order of their frames; those on no frame come last."""
        order = np.argsort(number, kind="stable")
        self.number, self.ids, self.ra, self.dec = number[order], self.ids[order], self.ra[order], self.dec[order]
        self.radius = self.radius[order] if self.framing else self.radius
        self.labels = self.labels.iloc[order].reset_index(drop=True)

    def _check_scale(self, scales: Mapping[str, float]) -> None:
        if self.pixel_scale is None:
            return
        for name, scale in scales.items():
            if not FEWEST <= (across := self.size * self.pixel_scale / scale) <= MOST:
                raise InputError(
                    f"--pixel-scale {self.pixel_scale:g}: {self.size} of them are {across:,.3g} pixels of frame {name} "
                    f"({scale:.4g} arcsec); {FEWEST} to {MOST} can be cut"
                )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict(), "_closed": None}  # each process opens its own

    def _how(self) -> dict[str, Any]:
        """Return what `describe` says of the cutting."""
        return {
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
        """Return the survey of these rows alone: of frames that none of them is on nothing is read."""
        part: Self = narrowed(self, rows, "ids", "ra", "dec", "number", "labels", *(["radius"] if self.framing else []))
        FrameCutouts.__init__(part)
        return part

    # --------------------------------------------------------------------------------------------- cutting

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one cutout, or the reason for none, a row."""
        stop = min(stop, len(self))
        bounds = [start, *(np.flatnonzero(np.diff(self.number[start:stop])) + start + 1).tolist(), stop]
        used = self._used()
        for first, last in pairwise(bounds) if start < stop else ():
            if (number := int(self.number[first])) == self.count:
                yield from self._beyond(slice(first, last))
                continue
            if stop - start > 1:  # one row alone is a second try, which says nothing of the frames that follow
                at = int(np.searchsorted(used, number))
                for k in used[at : at + 1 + AHEAD].tolist():
                    if k not in self._opened and not (self._closed and self._closed[0] == k):
                        self.source.expect(self._files(k))
            yield from self._cut(number, first, last)

    def _used(self) -> np.ndarray:
        """Return the numbers of the frames with objects on them."""
        numbers = np.unique(self.number)
        return numbers[numbers < self.count]

    def _files(self, number: int) -> list[str]:
        files = self._frame(number).files
        return [files[b] for b in self.bands if b in files]

    def _cut(self, number: int, first: int, last: int) -> Iterator[Outcome]:
        frame = self._frame(number)
        if absent := [b for b in self.bands if b not in frame.files]:
            words = f"no {', '.join(absent)} band of frame {frame.name}"
            yield from (Failed(words, Flag.MISSING) for _ in range(first, last))
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
            except Exception as error:  # each way to pack a file has its own ways to be broken
                self.source.reject(self._files(number))
                outcome = Failed(f"frame {frame.name}: {words_of(error, self.root)}")
            yield from (outcome for _ in range(rows.start, rows.stop))

    def _extent(self, rows: slice) -> np.ndarray | None:
        """Return arcsec across each cutout; None for the frame's own pixels."""
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
                    f"frame {frame.name} is gone ({error.filename}); put it back and run the same command again"
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


def check_framing(
    size: int, columns: Iterable[str], roles: Sequence[str], pixel_scale: float | None, frame: float | None
) -> None:
    """Refuse what no survey of frames can do."""
    for role in columns:
        if role not in roles:
            raise InputError(f"--column {role}=...: there is no role '{role}'{nearest(role, roles)}")
    check_size(size)
    if pixel_scale is not None and frame is not None:
        raise InputError(f"--pixel-scale {pixel_scale:g} and --frame {frame:g} contradict each other; give one of them")
    for option, value in (("--pixel-scale", pixel_scale), ("--frame", frame)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{option} is {value:g}; give a number above 0")


def words_of(error: Exception, root: Path) -> str:
    """Return what went wrong, without the paths of this machine: it goes into the store."""
    return " ".join(str(error).replace(f"{root}/", "").split())[:160] or type(error).__name__
