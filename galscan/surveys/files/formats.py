"""Files that people have already: which format they are in, found out from the files themselves where that is safe."""

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
WORDS = {
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
        Default: what the files are.
    **settings
        Of `galscan.surveys.files.local.LocalSurvey` and `galscan.surveys.files.packed.PackedSurvey`, which
        take the same.

    Raises
    ------
    InputError
        If the format is unknown, or not plain from the files; what the survey raises besides.
    """
    if format is not None and format not in WORDS:
        raise InputError(f"--format {format}: there is no such format{nearest(format, WORDS)}")
    format = format or find_format(Path(path).expanduser())
    return PACKED[format](path, **settings) if format in PACKED else LocalSurvey(path, **settings)


def find_format(path: Path) -> str:
    """Return the format of what is at `path`; ``images`` where there is nothing, whose survey says so.

    Raises
    ------
    InputError
        If it may be several, or is none that is known.
    """
    if not path.exists():
        return "images"
    if (path / ".ingest").is_dir():
        raise InputError(f"{path} is a store of galscan already; scan it: galscan scan --store {path}")
    if path.is_dir() and cutana.find_archives(path):
        return "cutana"
    found = sorted(_kinds(path))
    if len(found) > 1:
        words = " and ".join(WORDS[kind] for kind in found)
        raise InputError(f"{path} holds {words}; say which: --format {' or --format '.join(found)}")
    if not found:
        known = "; ".join(f"{kind} ({words})" for kind, words in WORDS.items())
        raise InputError(f"{path} holds no image in a format that is known: {known}; name the place with --path")
    return found[0]


def _closed(error: OSError) -> None:
    raise error  # else all in there would be missed without a word


def _kinds(path: Path) -> set[str]:
    names = {path.name} if path.is_file() else {f for _, _, files in os.walk(path, onerror=_closed) for f in files}
    found = set()
    for name in names:
        low = name.lower()
        if name.startswith("."):
            continue
        if is_image(low) or (path.is_file() and low.endswith(".zip")):
            found.add("images")
        elif low.endswith(multimodal.SUFFIXES):
            found.add("multimodal")
        elif low.endswith(webdataset.SUFFIXES):
            found.add("webdataset")
    return found
