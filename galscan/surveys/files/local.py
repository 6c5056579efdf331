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
from galscan.labels.galaxy10 import check_galaxy10
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.catalog import find_columns
from galscan.surveys.columns.positions import read_positions
from galscan.surveys.columns.values import identifiers
from galscan.surveys.file_names import (
    IMAGES,
    band_of,
    companions,
    group_by_name,
    is_ambiguous,
    is_fits,
    is_image,
    split_names,
    stem,
    wavelength,
)
from galscan.surveys.files import path_matching as paths
from galscan.surveys.files.archives import Zip
from galscan.surveys.files.base import CATALOGS, FRAMES, FileSurvey, find_catalog, pixel_scales
from galscan.surveys.files.images import Rendering, check_bands, measure, read_image, readable, white_of
from galscan.surveys.files.planes import FileInMemory, read_centre, read_planes
from galscan.surveys.flux_scale import check_zero_points


class LocalSurvey(FileSurvey):
    """Images of a folder, or of a zip file, which is not extracted. See `galscan.surveys.files.base.FileSurvey`.

    The default catalog is ``catalog.csv`` (``.csv.gz .fits .vot .parquet``) in the folder; without one, every image is
    an object and its file name (without suffix and band) the id. Masks, weights and errors beside an image are left
    out.
    """

    suffixes = IMAGES

    def _read(self, labels: Sequence[str], columns: Mapping[str, str]) -> Mapping[str, int]:
        archive = self.root.is_file()
        if archive and self.root.suffix.lower() != ".zip":
            raise InputError(f"{self.root} is a file; give the folder, or the zip file, of the images")
        self._zip = Zip(self.root) if archive else None
        self.catalog = self.catalog or find_catalog(self.root)
        files = self._zip.files() if self._zip else paths.find_files(self.root, IMAGES)
        if self.catalog is not None:
            files.pop(os.path.relpath(self.catalog, self.root), None)
        if not files:
            raise InputError(
                f"no JPEG, PNG or FITS file in {self.root} or below; give the folder of the images with --path"
            )
        self._missing: dict[int, Failed] = {}
        beside = set(companions(files))
        split = {f: (stem(f), "") for f in files if not is_fits(f)}  # a picture has no band, but is complete
        split |= split_names([f for f in files if is_fits(f)], self.bands)
        self._band = {f: band for f, (_, band) in split.items()}
        groups = group_by_name({f: names for f, names in split.items() if f not in beside})
        if self.catalog is None:
            if labels or columns:
                raise InputError(
                    f"labels and columns need a catalog, and {self.root} has no {CATALOGS[0]}; give one: --catalog FILE"
                )
            _refuse_bands_as_pictures([f for f in files if not is_fits(f) and f not in beside], self.root)
            table, columns = pd.DataFrame({"name of the image": list(groups)}), {"id": "name of the image"}
        else:
            table = tables.read_table(self._source.at(self.catalog), columns)
        self._join(table, files, columns, groups)
        check_galaxy10(labels, table.columns, None, str(self.catalog or self.root))
        self._schemas, self.labels = tables.read_labels(table, labels)
        self._note_positions()

        used = {f for source in self.sources for f in source}
        self._band = {f: band for f, band in self._band.items() if band and f in used}  # processes get a copy
        self.unmatched = [f for f in files if f not in used and f not in beside]
        if ignored := sorted(beside - used):
            kinds = "file(s) of masks, weights or errors"
            self.notes.append(f"{len(ignored):,} {kinds} are ignored, the first is {ignored[0]}")
        if not used:
            example = f"a row's id is '{self.ids[0]}', a file is '{next(iter(files))}'"
            raise InputError(
                f"no row of {self.catalog} has an image in {self.root} ({example}); "
                "name the id or file column: --column id=... or --column file=..."
            )
        return files

    def _join(
        self,
        table: pd.DataFrame,
        files: Mapping[str, int],
        columns: Mapping[str, str],
        groups: Mapping[str, Sequence[str]],
    ) -> None:
        where = str(self.catalog or self.root)
        role = find_columns(table, self.roles, columns, where)
        self.ids = identifiers(table[role["id"]], where)
        self._set_positions(read_positions(table, role["ra"], role["dec"], self.ids, where))
        self.pixel_scale = pixel_scales(table, role["pixel_scale"], where)
        if role["file"] is None:
            self._join_by_id(files, where, groups)
            return
        entries = table[role["file"]].astype("string").fillna("").str.strip()
        folder = next((c for c in table.columns if str(c).lower() == tables.SUBFOLDER), None)
        if role["file"].lower() != "file_loc" and folder is not None:
            entries = (table[folder].astype("string").fillna("").str.strip() + "/" + entries).where(entries != "", "")
        group_of = {f: group for group in groups.values() for f in group}
        self.sources: list[Sequence[str]] = []
        for n, path in enumerate(paths.match_files(self.root, entries.tolist(), files, where)):
            if path not in files:
                self.sources.append(())
                if path and not is_image(path) and (self.root / path).is_file():
                    self._missing[n] = Failed(f"{path} is not a JPEG, PNG or FITS file")
                else:
                    why = f"no file {path}" if path else "no file name in the catalog"
                    self._missing[n] = Failed(why, Flag.MISSING)
            elif self._band[path] and path in group_of:
                self.sources.append(self._bands_of(path, [f for f in group_of[path] if self._band[f]]))
            else:
                self.sources.append((path,))

    def _note_positions(self) -> None:
        """Say where positions come from, if the catalog has none."""
        if np.isfinite(self.ra).any():
            return
        if any(source and is_fits(source[0]) for source in self.sources):
            self.position_notes = [f"{note}; those in FITS files are used" for note in self.position_notes]
        if self.catalog is None:
            fits = all(source and is_fits(source[0]) for source in self.sources)
            self.position_notes = (
                [] if fits else [f"no positions: {self.root} has no catalog; give one: --catalog FILE"]
            )

    def _join_by_id(self, files: Mapping[str, int], where: str, groups: Mapping[str, Sequence[str]]) -> None:
        by_stem = {stem(f): (f,) for f in files}  # an id may end like a band, or be called mask
        self.sources = [groups[i] if i in groups else by_stem.get(i, ()) for i in map(str, self.ids)]
        for n, source in enumerate(self.sources):
            if not source:
                self._missing[n] = Failed(f"no file named {self.ids[n]}", Flag.MISSING)
            elif is_ambiguous(self._bands(source)):
                raise InputError(
                    f"id '{self.ids[n]}' of {where} matches two files, {source[0]} and {source[1]}; rename one, or "
                    "give a catalog with a file column"
                )

    def _bands(self, source: Sequence[str]) -> list[str]:
        return [self._band.get(f, "") for f in source]

    def _bands_of(self, path: str, group: Sequence[str]) -> Sequence[str]:
        """Return the bands of the object of `path`: of several objects of its name, only the files in its folder."""
        if not is_ambiguous(self._bands(group)):
            return group
        same = self._folder(path)
        return [f for f in group if self._folder(f) == same]

    def _folder(self, path: str) -> str:
        """Return the folder of a file; of a folder per band, the one above."""
        folder = path.rpartition("/")[0]
        return folder.rpartition("/")[0] if band_of(folder.rpartition("/")[2]) == self._band[path] else folder

    def _calibrate(self) -> Rendering | None:
        """Measure one stretch for all FITS frames, for the bands that at least half of the objects have."""
        self.white = white_of([s[0] for s in self.sources if s and not is_fits(s[0])], lambda f: self._open([f])[0])
        fits = [s for s in self.sources if s and is_fits(s[0])]
        bands = [set(self._bands(s)) for s in fits]
        found = sorted({b for present in bands for b in present if b}, key=wavelength)
        common = [b for b in found if 2 * sum(b in present for present in bands) >= len(bands)]
        headers: list[tuple[str, str, Mapping[str, object]]] = []

        def read(source: Sequence[str]) -> Mapping[str, np.ndarray]:
            planes, found = read_planes(self._open(source), self._bands(source))
            headers.extend(zip(self._bands(source), source, found, strict=True))
            return planes

        sample = list(readable(read, fits[:FRAMES]))
        check_zero_points(headers)
        if self.bands and fits:
            check_bands(self.bands, (band for planes in sample for band in planes))
        return measure(sample, self.bands or common)

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
                yield read_image(
                    partial(self._open, source), self.size, scale, self.rendering, bands=self._bands(source),
                    white=self.white,
                )  # fmt: skip
            else:
                yield self._missing[n]


def _refuse_bands_as_pictures(pictures: Sequence[str], root: Path) -> None:
    """Raise `InputError` if pictures look like the bands of one object: each would be a grey object of its own."""
    for group in group_by_name(split_names(pictures)).values():
        if len({stem(f) for f in group}) > 1:
            raise InputError(
                f"{group[0]} and {group[1]} of {root} look like bands of one object; combine them to a colour image, "
                "give FITS files, or list them in a catalog as objects"
            )
