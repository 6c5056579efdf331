"""Files of images: their names and bands, search in folders, and matching of the paths in a catalog."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from galscan.core.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz", ".fits.bz2")
IMAGES = PICTURES + FITS
BANDS = "ugrizy"  # blue to red

_SUFFIX = re.compile(rf"[-_.]([{BANDS}])(?:[-_]?band)?$")
_INFIX = re.compile(rf"[-_]([{BANDS}])(?:band)?(?=[-_])")


def is_fits(path: str) -> bool:
    return path.lower().endswith(FITS)


def is_image(path: str) -> bool:
    return path.lower().endswith(IMAGES)


def stem(path: str) -> str:
    """Return the file name without folder and image suffix."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    suffix = next((s for s in sorted(IMAGES, key=len, reverse=True) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)].strip()


def split_band(path: str, bands: Sequence[str] = ()) -> tuple[str, str]:
    """Split ``NGC1_g.fits`` into ``("NGC1", "g")``; a file without a band in its name has band ``""``.

    `bands` are the names of the bands if they are not the usual letters: ``("f606w", "f814w")``.
    """
    name = stem(path)
    if not set(bands) <= set(BANDS):
        words = "|".join(re.escape(b) for b in sorted(bands, key=len, reverse=True))
        if match := re.search(rf"(?:^|[-_.])({words})(?=[-_.]|$)", name, re.IGNORECASE):
            band = next(b for b in bands if b.lower() == match[1].lower())
            return (name[: match.start()] + name[match.end() :]).strip("-_."), band
    elif match := _SUFFIX.search(name):
        return name[: match.start()].rstrip("-_."), match[1]
    elif match := _INFIX.search(name):
        return name[: match.start()] + name[match.end() :], match[1]
    return name, ""


def group_by_name(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the files of each object by its name: one image, or one FITS file per band."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(split_band(file)[0] if is_fits(file) else stem(file), []).append(file)
    return groups


def is_ambiguous(files: Sequence[str]) -> bool:
    """Return whether the files of one name are not the bands of one object."""
    bands = [split_band(f)[1] if is_fits(f) else "" for f in files]
    return len(files) > 1 and ("" in bands or len(set(bands)) < len(bands))


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
