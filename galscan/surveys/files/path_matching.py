"""Which file a catalog means: paths in the folder of images, or those of another machine."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from galscan.core.errors import InputError


def match_files(root: Path, entries: Sequence[str], files: Collection[str], where: str) -> list[str]:
    """Return which file each entry means, relative to `root`; where there is none, what was looked for.

    Entries are paths in the folder, or in a folder within it; or absolute paths of another machine, as catalogs that
    are passed on have them: of those counts what they do not share. Catalogs come from strangers, so nothing outside
    of `root` is ever meant.

    Parameters
    ----------
    files : collection of str
        All there are, relative to `root`.

    Raises
    ------
    InputError
        If an entry lies outside, or fits two files.
    """
    inside = [_inside(root, entry) for entry in entries]
    abroad = [k for k, relative in enumerate(inside) if relative.split("/", 1)[0] == os.pardir]
    refused = next((k for k in abroad if not os.path.isabs(entries[k])), None)
    if refused is None and abroad:
        shared = os.path.commonpath([os.path.dirname(os.path.normpath(entries[k])) for k in abroad])
        for k in abroad:
            inside[k] = Path(os.path.relpath(os.path.normpath(entries[k]), shared)).as_posix()

    named: dict[str, list[str]] = {}
    for file in files:
        named.setdefault(file.rsplit("/", 1)[-1], []).append(file)
    for k, relative in enumerate(inside):
        if not relative or relative in files:
            continue
        fit = [f for f in named.get(relative.rsplit("/", 1)[-1], ()) if f.endswith("/" + relative)]
        if len(fit) > 1:
            raise InputError(
                f"{where}: file '{entries[k]}' fits {fit[0]} and {fit[1]}; name the folder of one of them with --path"
            )
        inside[k] = fit[0] if fit else relative

    if abroad and not any(inside[k] in files for k in abroad):
        refused = abroad[0]
    if refused is not None:
        raise InputError(
            f"{where}: file '{entries[refused]}' lies outside {root}; use paths relative to the folder of images"
        )
    return inside


def _inside(root: Path, entry: str) -> str:
    """Return an entry relative to the folder; it begins with ``..`` where it lies outside."""
    if not entry:
        return ""
    relative = os.path.relpath(os.path.normpath(root / entry), root)
    if os.path.isabs(entry) and relative.split(os.sep, 1)[0] == os.pardir:
        relative = os.path.relpath(os.path.normpath(entry), root.resolve())
    return Path(relative).as_posix()
