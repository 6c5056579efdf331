"""Files of images: search in folders, and matching of the paths in a catalog."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from galscan.core.errors import InputError


def find_files(root: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Return the files below a folder with one of `suffixes`, in a fixed order: relative POSIX path -> bytes.

    Hidden files are left out, and links to folders are not followed.
    """
    found = {}
    for path in walk(root):
        if path.lower().endswith(suffixes):
            try:
                found[path] = os.stat(root / path).st_size
            except OSError:  # a broken link is a missing file
                continue
    return dict(sorted(found.items()))


def walk(root: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, without hidden ones."""
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        yield from ((inside / name).as_posix() for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error  # os.walk would skip folders that cannot be read


def match_files(root: Path, entries: Sequence[str], files: Collection[str], where: str) -> list[str]:
    """Return the file of each entry, relative to `root`; the normalised entry if there is no such file.

    Entries are paths relative to `root` or to a folder inside it, or absolute paths of another machine: then only the
    part after their common folder is used. Files outside of `root` are never matched, because catalogs are untrusted.

    Raises `InputError` if an entry is outside of `root`, or matches two of `files`, which are relative to `root`.
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
