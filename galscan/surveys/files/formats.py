"""Formats of local surveys, detected from the files where they are unambiguous."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError, nearest
from galscan.surveys.files import cutana, multimodal, webdataset
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.packed import PackedSurvey
from galscan.surveys.files.path_matching import walk

FORMATS: dict[str, tuple[type[LocalSurvey] | type[PackedSurvey], str]] = {
    "images": (LocalSurvey, "JPEG, PNG or FITS files, also in a zip file"),
    "cutana": (cutana.CutanaSurvey, "Zarr of Cutana"),
    "multimodal": (multimodal.MultimodalSurvey, "HDF5 of the Multimodal Universe or Galaxy10"),
    "webdataset": (webdataset.WebDatasetSurvey, "tar files of WebDataset"),
    "parquet": (multimodal.ParquetSurvey, "Parquet with images, as the HATS catalogs of the Multimodal Universe"),
}


def open_local(
    path: str | os.PathLike[str], *, format: str | None = None, **settings: Any
) -> LocalSurvey | PackedSurvey:
    """Open a survey of files on disk.

    Parameters
    ----------
    path : path
        A folder or file.
    format : {"images", "cutana", "multimodal", "webdataset", "parquet"}, optional
        Default: detected from the files.
    **settings
        Parameters of `galscan.surveys.files.base.FileSurvey`.

    Raises
    ------
    InputError
        If the format is unknown or ambiguous, and as the survey raises.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"--format {format}: unknown format{nearest(format, FORMATS)}")
    return FORMATS[format or find_format(Path(path).expanduser())][0](path, **settings)


def find_format(path: Path) -> str:
    """Return the format of the files at `path`; ``images`` if there are none, whose survey raises the error.

    Raises `InputError` if there are files of several formats, or of none.
    """
    if not path.exists():
        return "images"
    if (path / ".ingest").is_dir():
        raise InputError(f"{path} is a store of galscan already; scan it: galscan scan --store {path}")
    if path.is_dir() and cutana.find_archives(path):
        return "cutana"
    names = [path.name] if path.is_file() else walk(path)
    suffixes = {name: survey.suffixes for name, (survey, _) in FORMATS.items()}
    suffixes["images"] += (".zip",) if path.is_file() else ()
    found = sorted({form for name in names for form, ends in suffixes.items() if name.lower().endswith(ends)})
    if len(found) > 1 and "parquet" in found:
        found.remove("parquet")  # a table of the objects beside their images
    if len(found) > 1:
        several = " and ".join(FORMATS[name][1] for name in found)
        raise InputError(f"{path} has {several}; choose one: --format {' or --format '.join(found)}")
    if not found:
        known = "; ".join(f"{name} ({description})" for name, (_, description) in FORMATS.items())
        raise InputError(f"{path} has no image in a known format: {known}; give another folder with --path")
    return found[0]
