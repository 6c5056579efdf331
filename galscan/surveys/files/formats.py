"""Formats of local surveys, detected from the files where they are unambiguous."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError, nearest
from galscan.surveys.files import cutana, multimodal, webdataset
from galscan.surveys.files.images import is_image
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.packed import PackedSurvey

PACKED: dict[str, type[PackedSurvey]] = {
    "cutana": cutana.CutanaSurvey,
    "multimodal": multimodal.MultimodalSurvey,
    "webdataset": webdataset.WebDatasetSurvey,
}
DESCRIPTIONS = {
    "images": "JPEG, PNG or FITS files, also in a zip file",
    "cutana": "Zarr of Cutana",
    "multimodal": "HDF5 of the Multimodal Universe or Galaxy10",
    "webdataset": "tar files of WebDataset",
}


def open_local(
    path: str | os.PathLike[str], *, format: str | None = None, **settings: Any
) -> LocalSurvey | PackedSurvey:
    """Open a survey of files on disk.

    Parameters
    ----------
    path : path
        A folder or file.
    format : {"images", "cutana", "multimodal", "webdataset"}, optional
        Default: detected from the files.
    **settings
        Parameters of `galscan.surveys.files.local.LocalSurvey` or `galscan.surveys.files.packed.PackedSurvey`.

    Raises
    ------
    InputError
        If the format is unknown or ambiguous, and as the survey raises.
    """
    if format is not None and format not in DESCRIPTIONS:
        raise InputError(f"--format {format}: unknown format{nearest(format, DESCRIPTIONS)}")
    format = format or find_format(Path(path).expanduser())
    return PACKED[format](path, **settings) if format in PACKED else LocalSurvey(path, **settings)


def find_format(path: Path) -> str:
    """Return the format of the files at `path`; ``images`` if there are none, whose survey raises the error.

    Raises
    ------
    InputError
        If there are files of several formats, or of none.
    """
    if not path.exists():
        return "images"
    if (path / ".ingest").is_dir():
        raise InputError(f"{path} is a store of galscan already; scan it: galscan scan --store {path}")
    if path.is_dir() and cutana.find_archives(path):
        return "cutana"
    found = sorted(_formats(path))
    if len(found) > 1:
        several = " and ".join(DESCRIPTIONS[name] for name in found)
        raise InputError(f"{path} has {several}; choose one: --format {' or --format '.join(found)}")
    if not found:
        known = "; ".join(f"{name} ({description})" for name, description in DESCRIPTIONS.items())
        raise InputError(f"{path} has no image in a known format: {known}; give another folder with --path")
    return found[0]


def _raise(error: OSError) -> None:
    raise error  # os.walk would skip folders that cannot be read


def _formats(path: Path) -> set[str]:
    names = {path.name} if path.is_file() else {f for _, _, files in os.walk(path, onerror=_raise) for f in files}
    found = set()
    for name in names:
        lower = name.lower()
        if name.startswith("."):
            continue
        if is_image(lower) or (path.is_file() and lower.endswith(".zip")):
            found.add("images")
        elif lower.endswith(multimodal.SUFFIXES):
            found.add("multimodal")
        elif lower.endswith(webdataset.SUFFIXES):
            found.add("webdataset")
    return found
