"""Matching of the paths in a catalog to files on disk."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from galscan.core.errors import InputError


def match_files(root: Path, entries: Sequence[str], files: Collection[str], where: str) -> list[str]:
    """Return the file of each entry, relative to `root`; the normalised entry if there is no such file.

    Entries are paths relative to `root` or to a folder inside it, or absolute paths of another machine: then only the
    part after their common folder is used. Files outside of `root` are never matched, because catalogs are untrusted.

    Parameters
    ----------
    files : collection of str
        All existing files, relative to `root`.

    Raises
    ------
    InputError
        If an entry is outside of `root`, or matches two files.
    """
    paths = [_relative(root, entry) for entry in entries]
    outside = [k for k, path in enumerate(paths) if path.split("/", 1)[0] == os.pardir]
    refused = next((k for k in outside if not os.path.isabs(entries[k])), None)
    if refused is None and outside:
        common = os.path.commonpath([os.path.dirname(os.path.normpath(entries[k])) for k in outside])
        for k in outside:
            paths[k] = Path(os.path.relpath(os.path.normpath(entries[k]), common)).as_posix()

    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(file.rsplit("/", 1)[-1], []).append(file)
    for k, path in enumerate(paths):
        if not path or path in files:
            continue
        matches = [f for f in by_name.get(path.rsplit("/", 1)[-1], ()) if f.endswith("/" + path)]
        if len(matches) > 1:
            raise InputError(
                f"{where}: file '{entries[k]}' matches {matches[0]} and {matches[1]}; give the folder of one of them "
                "with --path"
            )
        paths[k] = matches[0] if matches else path

    if outside and not any(paths[k] in files for k in outside):
        refused = outside[0]
    if refused is not None:
        raise InputError(
            f"{where}: file '{entries[refused]}' is outside {root}; use paths relative to the folder of images"
        )
    return paths


def _relative(root: Path, entry: str) -> str:
    """Return an entry relative to the folder; it begins with ``..`` if it is outside."""
    if not entry:
        return ""
    relative = os.path.relpath(os.path.normpath(root / entry), root)
    if os.path.isabs(entry) and relative.split(os.sep, 1)[0] == os.pardir:
        relative = os.path.relpath(os.path.normpath(entry), root.resolve())
    return Path(relative).as_posix()
