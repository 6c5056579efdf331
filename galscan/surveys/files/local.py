"""Survey of a folder or zip file of JPEG, PNG or FITS images, joined to a catalog."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import file_digest
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.catalog import CatalogSurvey, check_roles, find_columns
from galscan.surveys.files.archives import Zip
from galscan.surveys.files.images import (  # fmt: skip
    BANDS,
    FileInMemory,
    Rendering,
    calibrate,
    is_fits,
    is_image,
    read_fits,
    read_picture,
    read_planes,
    split_band,
    stem,
)
from galscan.surveys.files.path_matching import match_files
from galscan.surveys.sizes import DEFAULT_SIZE, check_size

ROLES = ("id", "file", "ra", "dec", "pixel_scale")
CATALOGS = ("catalog.csv", "catalog.csv.gz", "catalog.fits", "catalog.vot", "catalog.parquet")
FRAMES = 32  # objects on whose frames the stretch of a FITS survey is measured


class LocalSurvey(CatalogSurvey):
    """Images of a folder (searched recursively) and their catalog.

    Parameters
    ----------
    path : path
        The folder, or a zip file of images, which is not extracted. Links to folders are not followed.
    catalog : path, optional
        CSV, FITS, VOTable or Parquet. Default: ``catalog.csv`` (``.csv.gz .fits .vot .parquet``) in the
        folder; without one, every image is an object and its file name (without suffix) the id.
    labels : sequence of str
        Label schemas to read from the catalog.
    size : int
        Pixels on a side of every cutout.
    columns : mapping, optional
        Column for each role (``id file ra dec pixel_scale``) that does not have a usual name.
    name : str, optional
        Name of the survey; default: that of the folder.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If the catalog cannot be used, or matches no image.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
    ):
        columns = dict(columns or {})
        check_roles(columns, ROLES)
        check_size(size)
        self.root = Path(path).expanduser().absolute()
        if not self.root.exists():
            raise NotFoundError(f"no folder of images at {path}; name it with --path")
        if self.root.is_file() and self.root.suffix.lower() != ".zip":
            raise InputError(f"{path} is a file; give the folder, or the zip file, of the images")
        self.name = name or (self.root.stem if self.root.is_file() else self.root.name)
        self.size = size
        self._zip = Zip(self.root) if self.root.is_file() else None

        found = next((self.root / c for c in CATALOGS if (self.root / c).is_file()), None)
        self.catalog = Path(catalog).expanduser().absolute() if catalog is not None else found
        files = self._zip.files() if self._zip else find_images(self.root, self.catalog)
        if not files:
            raise InputError(f"no JPEG, PNG or FITS file in {path} or below; give the folder of the images with --path")
        if self.catalog is None:
            if labels or columns:
                raise InputError(
                    f"labels and columns need a catalog, and {path} has no {CATALOGS[0]}; give one: --catalog FILE"
                )
            self._from_files(files)
            self.labels = pd.DataFrame(index=range(len(self.ids)))
            self._schemas = {}
        else:
            frame = tables.read_table(self.catalog, columns)
            self._join(frame, files, columns)
            self._schemas, self.labels = tables.read_labels(frame, labels)

        used = {f for source in self.sources for f in source}
        self.unmatched = [f for f in files if f not in used]
        if not used:
            example = f"a row's id is '{self.ids[0]}', a file is '{next(iter(files))}'"
            raise InputError(
                f"no row of {self.catalog} has an image in {path} ({example}); "
                "name the id or file column: --column id=... or --column file=..."
            )
        self.rendering = self._calibrate()
        self._files_digest = _digest_files(files)

    # ------------------------------------------------------------------------------------ the catalog

    def _from_files(self, files: Mapping[str, int]) -> None:
        groups = _group(files)
        self.ids = tables.identifiers(pd.Series(list(groups), name="file name"), str(self.root))
        repeated = next((g for g in groups.values() if len(g) > 1 and not split_band(g[0])[1]), None)
        if repeated:
            raise InputError(
                f"two files would have the same id: {repeated[0]} and {repeated[1]}; "
                "rename one, or give a catalog with a file column"
            )
        self.sources: list[tuple[str, ...]] = list(groups.values())
        self.missing_reasons: dict[int, str] = {}
        nan = np.full(len(self.ids), np.nan)
        self.ra, self.dec, self.pixel_scale = nan, nan, nan

    def _join(self, frame: pd.DataFrame, files: Mapping[str, int], columns: Mapping[str, str]) -> None:
        where = str(self.catalog)
        role = find_columns(frame, ROLES, columns, where)
        self.ids = tables.identifiers(frame[role["id"]], where)

        self.ra, self.dec = tables.positions(frame, role["ra"], role["dec"], self.ids, where)
        column = role["pixel_scale"]
        scale = tables.numbers(frame[column], where) if column else np.full(len(frame), np.nan)
        self.pixel_scale = np.where(scale > 0, scale, np.nan)

        self.missing_reasons = {}
        if role["file"] is None:
            groups = _group(files)
            text = [str(i) for i in self.ids]
            for i in text:
                if len(g := groups.get(i, ())) > 1 and not split_band(g[0])[1]:
                    raise InputError(f"id '{i}' matches two files, {g[0]} and {g[1]}; add a file column to {where}")
            self.sources = [groups.get(i, ()) for i in text]
            self.missing_reasons = {n: f"no file named {text[n]}" for n, s in enumerate(self.sources) if not s}
            return
        groups = _group(f for f in files if is_fits(f) and split_band(f)[1])
        entries = frame[role["file"]].astype("string").fillna("").str.strip()
        if role["file"].lower() != "file_loc" and (folder := _column(frame, tables.SUBFOLDER)) is not None:
            entries = (frame[folder].astype("string").fillna("").str.strip() + "/" + entries).where(entries != "", "")
        self.sources = []
        for n, relative in enumerate(match_files(self.root, entries.tolist(), files, where)):
            if relative in files:
                base, band = split_band(relative)
                self.sources.append(groups[base] if band and is_fits(relative) and base in groups else (relative,))
                continue
            if relative and not is_image(relative) and (self.root / relative).is_file():
                self.missing_reasons[n] = f"{relative} is not a JPEG, PNG or FITS file"
            else:
                self.missing_reasons[n] = f"no file {relative}" if relative else "no file name in the catalog"
            self.sources.append(())

    def _calibrate(self) -> Rendering | None:
        """Measure one stretch for all FITS frames, for the bands that at least half of the objects have."""
        fits = [s for s in self.sources if s and is_fits(s[0])]
        bands = [{split_band(f)[1] for f in s} for s in fits]
        common = [b for b in BANDS if 2 * sum(b in present for present in bands) >= len(bands)]
        return calibrate(self._readable(fits[:FRAMES]), common) if fits else None

    def _readable(self, sources: Sequence[Sequence[str]]) -> Iterator[Sequence[Path | FileInMemory]]:
        for source in sources:
            try:
                yield self._paths(source)
            except Exception:  # damaged archive entries fail later, with a reason
                continue

    def _paths(self, source: Sequence[str]) -> Sequence[Path | FileInMemory]:
        return [self._zip.get(f) for f in source] if self._zip else [self.root / f for f in source]

    # --------------------------------------------------------------------------------- Survey protocol

    def describe(self) -> dict[str, Any]:
        """Return provenance: files, catalog and rendering."""
        return {
            "survey": "local",
            "name": self.name,
            "path": str(self.root),
            "catalog": str(self.catalog) if self.catalog else None,
            "catalog_sha256": file_digest(self.catalog) if self.catalog else None,
            "files_sha256": self._files_digest,
            "objects": len(self),
            "images_without_row": len(self.unmatched),
            "size": self.size,
            "resize": "hamming, bilinear when enlarging",
            "labels": list(self._schemas),
            "rendering": self.rendering.describe() if self.rendering else None,
        }

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return catalog rows; missing positions are taken from the WCS of FITS files."""
        frame = super().objects(start, stop)
        for n in np.flatnonzero(frame[["ra", "dec"]].isna().any(axis=1)):
            source = self.sources[start + n]
            if source and is_fits(source[0]):
                try:
                    frame.loc[n, ["ra", "dec"]] = read_planes(self._paths(source[:1]))[2]
                except Exception:  # a broken file fails in cutouts(), with a reason
                    continue
        return frame

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object."""
        for n in range(start, min(stop, len(self))):
            source, scale = self.sources[n], float(self.pixel_scale[n])
            if not source:
                unsupported = self.missing_reasons[n].endswith("file")
                yield Failed(self.missing_reasons[n], Flag.UNREADABLE if unsupported else Flag.MISSING)
                continue
            try:
                paths = self._paths(source)
            except Exception as error:  # a damaged archive raises many types
                yield Failed(f"{type(error).__name__}: {str(error)[:160]}")
                continue
            if is_fits(source[0]):
                yield read_fits(paths, self.size, scale, self.rendering)
            else:
                yield read_picture(paths[0], self.size, scale)


def _column(frame: pd.DataFrame, name: str) -> str | None:
    return next((c for c in frame.columns if str(c).lower() == name), None)


def find_images(root: Path, catalog: Path | None) -> dict[str, int]:
    """Return all images below `root` in a fixed order: relative POSIX path -> bytes."""
    found = {}
    stack = [str(root)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif is_image(entry.name) and (catalog is None or entry.path != str(catalog)):
                    try:
                        found[os.path.relpath(entry.path, root).replace(os.sep, "/")] = entry.stat().st_size
                    except OSError:  # a broken link is a missing image
                        continue
    return dict(sorted(found.items()))


def _group(files: Iterator[str] | Mapping[str, int] | Any) -> dict[str, tuple[str, ...]]:
    """Return the files of each object by its name: one image, or one FITS file per band."""
    groups: dict[str, list[str]] = {}
    for file in files:
        name = split_band(file)[0] if is_fits(file) else stem(file)
        groups.setdefault(name, []).append(file)
    return {name: tuple(found) for name, found in groups.items()}


def _digest_files(files: Mapping[str, int]) -> str:
    """Return a hash of names and sizes, to detect changes without reading the files."""
    return hashlib.sha256("\n".join(f"{n} {f}" for f, n in files.items()).encode(errors="surrogateescape")).hexdigest()
