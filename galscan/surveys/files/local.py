"""Survey of a folder or zip file of JPEG, PNG or FITS images, joined to a catalog."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.catalog import find_columns
from galscan.surveys.files import path_matching as paths
from galscan.surveys.files.archives import Zip
from galscan.surveys.files.base import CATALOGS, FRAMES, FileSurvey, find_catalog, pixel_scales
from galscan.surveys.files.images import (
    FileInMemory,
    Rendering,
    measure,
    read_centre,
    read_image,
    read_planes,
    readable,
)
from galscan.surveys.files.path_matching import is_fits, split_band


class LocalSurvey(FileSurvey):
    """Images of a folder, or of a zip file, which is not extracted. See `galscan.surveys.files.base.FileSurvey`.

    The default catalog is ``catalog.csv`` (``.csv.gz .fits .vot .parquet``) in the folder; without one, every image is
    an object and its file name (without suffix) the id.
    """

    suffixes = paths.IMAGES

    def _read(self, labels: Sequence[str], columns: Mapping[str, str]) -> Mapping[str, int]:
        archive = self.root.is_file()
        if archive and self.root.suffix.lower() != ".zip":
            raise InputError(f"{self.root} is a file; give the folder, or the zip file, of the images")
        self._zip = Zip(self.root) if archive else None
        self.catalog = self.catalog or find_catalog(self.root)
        files = self._zip.files() if self._zip else paths.find_files(self.root, paths.IMAGES)
        if self.catalog is not None:
            files.pop(os.path.relpath(self.catalog, self.root), None)
        if not files:
            raise InputError(
                f"no JPEG, PNG or FITS file in {self.root} or below; give the folder of the images with --path"
            )
        self._missing: dict[int, Failed] = {}
        if self.catalog is None:
            if labels or columns:
                raise InputError(
                    f"labels and columns need a catalog, and {self.root} has no {CATALOGS[0]}; give one: --catalog FILE"
                )
            table, columns = pd.DataFrame({"file name": list(paths.group_by_name(files))}), {"id": "file name"}
        else:
            table = tables.read_table(self.catalog, columns)
        self._join(table, files, columns)
        self._schemas, self.labels = tables.read_labels(table, labels)

        used = {f for source in self.sources for f in source}
        self.unmatched = [f for f in files if f not in used]
        if not used:
            example = f"a row's id is '{self.ids[0]}', a file is '{next(iter(files))}'"
            raise InputError(
                f"no row of {self.catalog} has an image in {self.root} ({example}); "
                "name the id or file column: --column id=... or --column file=..."
            )
        return files

    def _join(self, table: pd.DataFrame, files: Mapping[str, int], columns: Mapping[str, str]) -> None:
        where = str(self.catalog or self.root)
        role = find_columns(table, self.roles, columns, where)
        self.ids = tables.identifiers(table[role["id"]], where)
        self.ra, self.dec = tables.positions(table, role["ra"], role["dec"], self.ids, where)
        self.pixel_scale = pixel_scales(table, role["pixel_scale"], where)
        if role["file"] is None:
            self._join_by_id(files, where)
            return
        entries = table[role["file"]].astype("string").fillna("").str.strip()
        folder = next((c for c in table.columns if str(c).lower() == tables.SUBFOLDER), None)
        if role["file"].lower() != "file_loc" and folder is not None:
            entries = (table[folder].astype("string").fillna("").str.strip() + "/" + entries).where(entries != "", "")
        groups = paths.group_by_name(f for f in files if is_fits(f) and split_band(f)[1])
        self.sources: list[Sequence[str]] = []
        for n, path in enumerate(paths.match_files(self.root, entries.tolist(), files, where)):
            base, band = split_band(path)
            if path not in files:
                self.sources.append(())
                if path and not paths.is_image(path) and (self.root / path).is_file():
                    self._missing[n] = Failed(f"{path} is not a JPEG, PNG or FITS file")
                else:
                    why = f"no file {path}" if path else "no file name in the catalog"
                    self._missing[n] = Failed(why, Flag.MISSING)
            elif band and is_fits(path):
                self.sources.append(_bands_of(path, groups[base]))
            else:
                self.sources.append((path,))

    def _join_by_id(self, files: Mapping[str, int], where: str) -> None:
        groups = paths.group_by_name(files)
        self.sources = [groups.get(str(i), ()) for i in self.ids]
        for n, source in enumerate(self.sources):
            if not source:
                self._missing[n] = Failed(f"no file named {self.ids[n]}", Flag.MISSING)
            elif paths.is_ambiguous(source):
                raise InputError(
                    f"id '{self.ids[n]}' of {where} matches two files, {source[0]} and {source[1]}; rename one, or "
                    "give a catalog with a file column"
                )

    def _calibrate(self) -> Rendering | None:
        """Measure one stretch for all FITS frames, for the bands that at least half of the objects have."""
        fits = [s for s in self.sources if s and is_fits(s[0])]
        bands = [{split_band(f)[1] for f in s} for s in fits]
        common = [b for b in paths.BANDS if 2 * sum(b in present for present in bands) >= len(bands)]
        return measure(readable(lambda source: read_planes(self._open(source))[0], fits[:FRAMES]), common)

    def _open(self, source: Sequence[str]) -> Sequence[Path | FileInMemory]:
        return [self._zip.get(f) for f in source] if self._zip else [self.root / f for f in source]

    # --------------------------------------------------------------------------------- Survey protocol

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return catalog rows; missing positions are taken from the WCS of FITS files."""
        frame = super().objects(start, stop)
        for n in np.flatnonzero(frame[["ra", "dec"]].isna().any(axis=1)):
            source = self.sources[start + n]
            if source and is_fits(source[0]):
                with suppress(Exception):  # a broken file fails in cutouts(), with a reason
                    frame.loc[n, ["ra", "dec"]] = read_centre(self._open(source)[0])
        return frame

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object."""
        for n in range(start, min(stop, len(self))):
            source, scale = self.sources[n], float(self.pixel_scale[n])
            if source:
                yield read_image(partial(self._open, source), self.size, scale, self.rendering)
            else:
                yield self._missing[n]


def _bands_of(path: str, group: Sequence[str]) -> Sequence[str]:
    """Return the bands of the object of `path`: of several objects of its name, only the files in its folder."""
    folder = path.rpartition("/")[0]
    return [f for f in group if f.rpartition("/")[0] == folder] if paths.is_ambiguous(group) else group
