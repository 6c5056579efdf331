"""Cutouts by the million out of frames and bricks: SDSS frames, Legacy Surveys bricks, any FITS mosaics with a WCS.

Objects are put in the order of their frames, so that ingest opens each frame about once and cuts many from it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.errors import InputError, NotFoundError, nearest
from galscan.files import digest, file_digest
from galscan.labels import load_schema
from galscan.store.layout import Flag
from galscan.surveys import footprints, tables
from galscan.surveys.base import Failed, NoCoverage, Outcome
from galscan.surveys.footprints import Folder, Frame, Source
from galscan.surveys.images import Rendering, choose_bands, measure
from galscan.surveys.local import CATALOGS
from galscan.surveys.stamps import FEWEST, MOST, OpenFrame

ROLES = ("id", "ra", "dec", "radius")
RADIUS = ("radius", "radius_arcsec", "petror90_r", "petrorad_r")
OPEN = 2  # frames kept open by a process: that at work, and the one before, which the next shard may go on with
BATCH = 256  # objects of a frame in one go
SAMPLE = 16  # frames that set the stretch, with four objects each


class FramesSurvey:
    """Objects of a catalog, cut from frames.

    A cutout has `size` pixels of its frame as they are, unless `pixel_scale` or `frame` asks for another scale: then
    the nearest whole number of pixels is cut and resized, and the scale that comes out is kept with the object. North
    is up and east is left as far as mirroring and quarter turns go; the rest of the rotation is left as it is. Bands
    are put on each other by their own astrometry, to half a pixel.

    Parameters
    ----------
    path : path
        Folder of frames, one FITS file a band, searched recursively.
    catalog : path, optional
        CSV, FITS, VOTable or Parquet with id, ra and dec. Default: ``catalog.csv`` (``.fits ...``) in the folder.
    labels : sequence of str
        Label schemas to read from the catalog.
    size : int
        Pixels on a side of every cutout.
    columns : mapping, optional
        Which column plays a role (``id ra dec radius``) where the usual names do not say.
    name : str, optional
        Name of the survey, default the folder's.
    bands : str, optional
        ``"gri"``, or from blue to red the words that tell the band in file names: ``"f435w,f606w,f814w"``.
        Default: what at least half of the frames have.
    pixel_scale : float, optional
        Arcsec a pixel of the cutouts.
    frame : float, optional
        Instead: a cutout's side in units of the object's radius, a column in arcsec.
    source : Source, optional
        Where the files are, default the folder `path`.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If they cannot be used, or no object lies on a frame.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = 64,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        *,
        bands: str | None = None,
        pixel_scale: float | None = None,
        frame: float | None = None,
        source: Source | None = None,
    ):
        _check(size, columns or {}, pixel_scale, frame)
        root = Path(path).expanduser().absolute()
        if not root.exists():
            raise NotFoundError(f"no folder of frames at {path}; name it with --path")
        if not root.is_dir():
            raise InputError(f"{path} is a file; give the folder that holds the frames")
        self.root, self.name, self.size = root, name or root.name, size
        self.pixel_scale, self.framing = pixel_scale, frame
        self.source: Source = source or Folder(root)
        self._opened: OrderedDict[int, OpenFrame] = OrderedDict()

        self.catalog = _catalog(root, catalog)
        self._read_catalog(columns or {}, labels)
        sizes = {f: n for f, n in self.source.files().items() if root / f != self.catalog}
        if not sizes:
            raise InputError(f"no FITS file in {path} or below; name the folder that holds the frames with --path")
        words = footprints.parse_bands(bands)
        frames, apart = footprints.find_frames(list(sizes), words)
        common = footprints.common_bands(frames, words)
        red, green, blue = choose_bands(common)
        self.bands = [b for b in common if b in (red, green, blue)]  # from blue to red
        self._place(frames, sizes, apart)
        self.rendering = self._measure()

    # ------------------------------------------------------------------------------- objects and frames

    def _read_catalog(self, columns: Mapping[str, str], labels: Sequence[str]) -> None:
        where = str(self.catalog)
        table = tables.read_table(self.catalog, columns)
        self._catalog_digest = file_digest(self.catalog)
        role = {r: tables.find_column(table, r, columns, where) for r in ("id", "ra", "dec")}
        for r, column in role.items():
            if column is None:
                present = ", ".join(map(str, table.columns[:12]))
                raise InputError(f"{where} has no {r} column; it has {present}; name it: --column {r}=...")
        self.ids = tables.identifiers(table[role["id"]], where)
        self.ra = tables.numbers(table[role["ra"]], where) % 360
        self.dec = tables.numbers(table[role["dec"]], where)
        if len(bad := np.flatnonzero(np.abs(self.dec) > 90)):
            raise InputError(
                f"{where}: dec of {self.ids[bad[0]]} is {self.dec[bad[0]]:g}; it must be within -90 to 90 degrees"
            )
        self.radius = np.full(len(self.ids) if self.framing else 0, np.nan, dtype=np.float32)
        if self.framing:
            lower = {str(c).lower(): str(c) for c in table.columns}
            column = columns.get("radius") or next((lower[c] for c in RADIUS if c in lower), None)
            if column is None or column not in table.columns:
                raise InputError(
                    f"--frame {self.framing:g} needs a radius (arcsec), and {where} has no column "
                    f"'{column or 'radius'}'{nearest(column or 'radius', map(str, table.columns))}; "
                    "name it: --column radius=..."
                )
            self.radius = tables.numbers(table[column], where).astype(np.float32)
        self._schemas: dict[str, list[str]] = {}
        self.labels = pd.DataFrame(index=range(len(table)))
        for schema in map(load_schema, dict.fromkeys(labels)):
            part = schema.read(tables.plain(table)).astype(np.float32).reset_index(drop=True)
            self._schemas[schema.name] = list(part.columns)
            self.labels = pd.concat([self.labels, part.add_prefix(f"{schema.name}/")], axis=1)

    def _place(self, frames: list[Frame], sizes: Mapping[str, int], apart: Sequence[str]) -> None:
        """Find the frame of each object, and put the objects in the order of frames."""
        placing = footprints.place(frames, self.source, self.bands, self.ra, self.dec)
        if (placing.frame < 0).all():
            raise InputError(placing.nowhere(self.ra, self.dec, self.root))
        used = np.unique(placing.frame[placing.frame >= 0])
        self._check_scale({frames[k].name: placing.scales[k] for k in used})
        self.frames = [frames[k] for k in used]
        number = np.where(placing.frame < 0, len(used), np.searchsorted(used, placing.frame)).astype(np.int32)
        order = np.argsort(number, kind="stable")  # those on no frame come last
        self.number, self.ids, self.ra, self.dec = number[order], self.ids[order], self.ra[order], self.dec[order]
        self.radius = self.radius[order] if self.framing else self.radius
        self.labels = self.labels.iloc[order].reset_index(drop=True)
        turns = [placing.turns[k] for k in used]
        files = [f for k in used for f in frames[k].files.values()]
        self._about = {
            "frames": len(used),
            "frames_sha256": digest([placing.digest, [[f, sizes[f]] for f in files]]),
            "on_no_frame": int((placing.frame < 0).sum()),
            "native_scale": [round(s(placing.scales[k] for k in used), 5) for s in (min, max)],
            "rotation_left": [round(s(turns), 1) + 0.0 for s in (min, max)],
        }
        self.bytes = sum(sizes[f] for x in self.frames for b, f in x.files.items() if b in self.bands)
        self.notes = []
        if apart:
            self.notes.append(f"{len(apart):,} file(s) of weights, masks or models left out, the first is {apart[0]}")
        if placing.unreadable:
            first, why = placing.unreadable[0]
            self.notes.append(f"{len(placing.unreadable):,} frame(s) cannot be read, the first is {first} ({why})")
        if self.bands == ["0"] and (twins := placing.twins()):
            one, other = (frames[k].name for k in twins)
            self.notes.append(
                f"frames {one} and {other} show the same sky, and names tell no band: an object is cut from one of "
                "them; if they are bands, name those: --bands f606w,f814w"
            )
        if missing := self._about["on_no_frame"]:
            self.notes.append(
                f"{missing:,} of {len(self.ids):,} objects lie on no frame, and are kept without an image"
            )

    def _check_scale(self, scales: Mapping[str, float]) -> None:
        if self.pixel_scale is None:
            return
        for name, scale in scales.items():
            if not FEWEST <= (across := self.size * self.pixel_scale / scale) <= MOST:
                raise InputError(
                    f"--pixel-scale {self.pixel_scale:g}: {self.size} of them are {across:,.3g} pixels of frame {name} "
                    f"({scale:.4g} arcsec); {FEWEST} to {MOST} can be cut"
                )

    def _measure(self) -> Rendering:
        """Set one stretch for the survey, on stamps around objects of frames spread over it."""
        whole = [k for k, frame in enumerate(self.frames) if set(self.bands) <= frame.files.keys()]
        if not whole:
            bands = ", ".join(self.bands)
            raise InputError(f"no frame with an object on it has all bands {bands}; name those it has with --bands")
        stamps: list[dict[str, np.ndarray]] = []
        why = ""
        for k in np.unique(np.linspace(0, len(whole) - 1, SAMPLE).round().astype(int)):
            first, last = np.searchsorted(self.number, [whole[k], whole[k] + 1])
            rows = np.unique(np.linspace(first, last - 1, 4).round().astype(int))
            try:
                stack = self._open(whole[k]).raw(self.ra[rows], self.dec[rows], int(np.clip(self.size, 64, 512)))
                stamps += [dict(zip(self.bands, stack[:, n], strict=True)) for n in range(len(rows))]
            except Exception as error:  # broken frames get their reason when their turn comes
                why = why or f"frame {self.frames[whole[k]].name}: {_words(error, self.root)}"
        self._close()
        if not stamps:
            raise InputError(f"none of {min(SAMPLE, len(whole))} frames tried in {self.root} can be used ({why})")
        rendering = measure(stamps, self.bands)
        if rendering is None:
            raise InputError(f"the frames in {self.root} have no noise to set the stretch by: all pixels are alike")
        return rendering

    # ---------------------------------------------------------------------------------- what a survey is

    @property
    def id_dtype(self) -> np.dtype:
        """int64, or text as wide as the longest id."""
        return self.ids.dtype

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}  # each process opens its own

    def plan(self) -> dict[str, Any]:
        """Return what cutting will take: frames, objects on none of them, bytes of files to read."""
        return {"frames": len(self.frames), "on_no_frame": self._about["on_no_frame"], "bytes_to_read": self.bytes}

    def describe(self) -> dict[str, Any]:
        """Return provenance: frames, catalog, and how pixels were made."""
        return {
            "survey": "frames",
            "name": self.name,
            "path": str(self.root),
            "catalog": str(self.catalog),
            "catalog_sha256": self._catalog_digest,
            "objects": len(self),
            **self._about,
            "size": self.size,
            "bands": self.bands,
            "framing": {"pixel_scale": self.pixel_scale, "radii": self.framing},
            "orientation": "north up, east left, by mirroring and quarter turns",
            "fill": "sky",
            "overlap": "the frame in which the object is farthest from the edge",
            "resize": "none at the frames' own scale, else hamming, bilinear when enlarging",
            "labels": list(self._schemas),
            "rendering": self.rendering.describe(),
        }

    def schemas(self) -> dict[str, list[str]]:
        """Return the answers found in the catalog, by schema."""
        return {k: list(v) for k, v in self._schemas.items()}

    def truth(self) -> list[str]:
        """Return nothing: only a simulation knows the truth."""
        return []

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows of the catalog in the order of frames, not in its own."""
        rows = slice(start, stop)
        frame = pd.DataFrame({"id": self.ids[rows], "ra": self.ra[rows], "dec": self.dec[rows]}, copy=True)
        return pd.concat([frame, self.labels.iloc[rows].reset_index(drop=True)], axis=1)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one cutout, or the reason for none, a row."""
        stop = min(stop, len(self))
        bounds = [start, *(np.flatnonzero(np.diff(self.number[start:stop])) + start + 1).tolist(), stop]
        for first, last in pairwise(bounds) if start < stop else ():
            number = int(self.number[first])
            if number == len(self.frames):
                known = np.isfinite(self.ra[first:last] + self.dec[first:last])
                yield from (NoCoverage("on no frame" if k else "no position in the catalog") for k in known)
            else:
                yield from self._cut(number, first, last)

    def _cut(self, number: int, first: int, last: int) -> Iterator[Outcome]:
        frame = self.frames[number]
        if absent := [b for b in self.bands if b not in frame.files]:
            words = f"no {', '.join(absent)} band of frame {frame.name}"
            yield from (Failed(words, Flag.MISSING) for _ in range(first, last))
            return
        for start in range(first, last, BATCH):
            rows = slice(start, min(start + BATCH, last))
            try:
                opened = self._open(number)
                if start == first:
                    opened.expect((last - first) * self.size)
                yield from opened.cut(self.ra[rows], self.dec[rows], self._extent(rows), self.size, self.rendering)
            except (MemoryError, NotFoundError):
                raise
            except Exception as error:  # each way to pack a file has its own ways to be broken
                words = f"frame {frame.name}: {_words(error, self.root)}"
                yield from (Failed(words) for _ in range(rows.start, rows.stop))

    def _extent(self, rows: slice) -> np.ndarray | None:
        """Return arcsec across each cutout; None for the frame's own pixels."""
        if self.framing:
            return self.framing * self.radius[rows].astype(float)
        return np.full(rows.stop - rows.start, self.size * self.pixel_scale) if self.pixel_scale else None

    def _open(self, number: int) -> OpenFrame:
        if number not in self._opened:
            frame = self.frames[number]
            self._close(OPEN - 1)
            try:
                paths = {b: self.source.locate(frame.files[b]) for b in self.bands}
                self._opened[number] = OpenFrame(frame.name, paths)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"frame {frame.name} is gone ({error.filename}); put it back and run the same command again"
                ) from error
        return self._opened[number]

    def _close(self, keep: int = 0) -> None:
        while len(self._opened) > keep:
            number, opened = self._opened.popitem(last=False)
            opened.close()
            for band in self.bands:
                self.source.release(self.frames[number].files[band])


def _check(size: int, columns: Mapping[str, str], pixel_scale: float | None, frame: float | None) -> None:
    for role in columns:
        if role not in ROLES:
            raise InputError(f"--column {role}=...: there is no role '{role}'{nearest(role, ROLES)}")
    if not 8 <= size <= 1024:
        raise InputError(f"size is {size} pixels; use 8 to 1024")
    if pixel_scale is not None and frame is not None:
        raise InputError(f"--pixel-scale {pixel_scale:g} and --frame {frame:g} contradict each other; give one of them")
    for option, value in (("--pixel-scale", pixel_scale), ("--frame", frame)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{option} is {value:g}; give a number above 0")


def _catalog(root: Path, catalog: str | os.PathLike[str] | None) -> Path:
    if catalog is not None:
        return Path(catalog).expanduser().absolute()
    found = next((root / c for c in CATALOGS if (root / c).is_file()), None)
    if found is None:
        raise InputError(
            f"frames need a table of objects with id, ra and dec: --catalog FILE, or {CATALOGS[0]} in {root}"
        )
    return found


def _words(error: Exception, root: Path) -> str:
    """Return what went wrong, without the paths of this machine: it goes into the store."""
    return " ".join(str(error).replace(f"{root}/", "").split())[:160] or type(error).__name__
