"""Base class of surveys of files on disk: folder, catalog, provenance."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, NotFoundError
from galscan.surveys import tables
from galscan.surveys.catalog import CatalogSurvey, check_roles
from galscan.surveys.columns.values import arcseconds
from galscan.surveys.file_names import band_of, parse_bands
from galscan.surveys.files.images import WHITE, Rendering
from galscan.surveys.sizes import DEFAULT_SIZE, check_size
from galscan.surveys.tables import Catalog

CATALOGS = ("catalog.csv", "catalog.csv.gz", "catalog.fits", "catalog.vot", "catalog.parquet")
FRAMES = 32  # objects on whose planes the stretch of a survey is measured


class FileSurvey(CatalogSurvey, ABC):
    """Images in a folder or file, and the table of their objects.

    Parameters
    ----------
    path : path
        The folder (searched recursively), or one file.
    catalog : path or `galscan.surveys.tables.Catalog`, optional
        A table, or a folder of Parquet; see `galscan.surveys.table_files.reading.read_file`.
    labels : sequence of str
        Label schemas to read from the catalog.
    size : int
        Pixels on a side of every cutout.
    columns : mapping, optional
        Column for each role (``id file ra dec pixel_scale``) that does not have a usual name.
    name : str, optional
        Name of the survey; default: that of the folder.
    bands : str, optional
        Bands of FITS images that are used: ``"gri"``, or their names from blue to red: ``"f435w,f606w,f814w"``.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If they cannot be used, an id occurs twice, or the catalog matches no image.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files, in lower case
    roles: ClassVar[Sequence[str]] = ("id", "file", "ra", "dec", "pixel_scale")

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: Catalog | str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        *,
        bands: str | None = None,
    ):
        check_roles(columns or {}, self.roles)
        self.bands = [band_of(b) or b.lower() for b in parse_bands(bands)]
        check_size(size)
        self.root = Path(path).expanduser().absolute()
        if not self.root.exists():
            raise NotFoundError(f"no folder of images at {path}; name it with --path")
        self.size = size
        self.name = name or (self.root.stem if self.root.suffix.lower() == ".zip" else self.root.name)
        self._source = Catalog.of(catalog)
        self.catalog = Path(self._source.path) if self._source.path is not None else None
        self.notes: list[str] = []
        self.unmatched: list[str] = []
        sizes = self._read(labels, dict(columns or {}))
        # Names and sizes detect changes without reading the files.
        listed = "\n".join(f"{size} {file}" for file, size in sizes.items())
        self._files_digest = hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()
        self.white = WHITE
        self.rendering = self._calibrate()
        if self.white < WHITE:
            self.notes.append(f"the 16-bit images reach {self.white:,}: this is white")
        if self.bands and not isinstance(self.rendering, Rendering):
            raise InputError(f"--bands {bands}: the images of {path} have no bands to choose from; leave it out")
        self._close()

    def _close(self) -> None:
        """Close the file that was opened last, if any."""

    @abstractmethod
    def _read(self, labels: Sequence[str], columns: Mapping[str, str]) -> Mapping[str, int]:
        """Read the table of objects; return the files and their sizes in bytes."""

    @abstractmethod
    def _calibrate(self) -> Any:
        """Return the rendering of planes, an object with `describe`; None if all objects are RGB images.

        Sets `white` if the objects are 16-bit images of fewer bits.
        """

    def describe(self) -> dict[str, Any]:
        """Return provenance: files, catalog and rendering."""
        return {
            "survey": "local",
            "name": self.name,
            "path": str(self.root),
            "catalog": str(self.catalog) if self.catalog else None,
            "catalog_sha256": tables.digest(self.catalog) if self.catalog else None,
            **self._source.describe(),
            "files_sha256": self._files_digest,
            "objects": len(self),
            "images_without_row": len(self.unmatched),
            "size": self.size,
            "resize": "hamming, bilinear when enlarging",
            "labels": list(self._schemas),
            "rendering": self.rendering.describe() if self.rendering else None,
        } | ({"white": self.white} if self.white < WHITE else {})


def find_catalog(folder: Path) -> Path | None:
    """Return the table of objects in a folder of images; None if there is none."""
    return next((folder / name for name in CATALOGS if (folder / name).is_file()), None)


def pixel_scales(table: pd.DataFrame, column: str | None, where: str) -> np.ndarray:
    """Return arcsec per pixel, NaN where unknown."""
    scale = arcseconds(table, column, "pixel_scale", where) if column else np.full(len(table), np.nan)
    return np.where(scale > 0, scale, np.nan)
