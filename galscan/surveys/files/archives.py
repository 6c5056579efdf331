"""Images that lie in a zip file, read where they are: nothing is unpacked to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError
from galscan.surveys.files.images import FileInMemory, is_image

LARGEST = 300_000_000  # bytes of one image: the most pixels that are decoded, as floats


class Zip:
    """A zip file of images, opened by each process for itself.

    Raises
    ------
    InputError
        If it is no zip file, or cut off: its list of files is at the end.
    """

    def __init__(self, path: Path):
        self.path = path
        self._opened: zipfile.ZipFile | None = None
        try:
            self._infos = {i.filename: i for i in self._open().infolist() if _counts(i)}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read as a zip file ({error}); is it whole?") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _open(self) -> zipfile.ZipFile:
        if self._opened is None:
            self._opened = zipfile.ZipFile(self.path)
        return self._opened

    def files(self) -> dict[str, int]:
        """Return all images in a fixed order: path -> bytes."""
        return {name: self._infos[name].file_size for name in sorted(self._infos)}

    def get(self, name: str) -> FileInMemory:
        """Read one image.

        Raises
        ------
        ValueError
            If it is larger than any image. Zip raises others where it is damaged.
        """
        info = self._infos[name]
        if info.file_size > LARGEST:
            raise ValueError(f"{info.file_size:,} bytes, at most {LARGEST:,} are unpacked")
        return FileInMemory(self._open().read(info), name.rsplit("/", 1)[-1])


def _counts(info: zipfile.ZipInfo) -> bool:
    """Return whether this is an image; hidden files, and what macOS puts beside each file, are none."""
    parts = info.filename.split("/")
    hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return is_image(info.filename) and not hidden and not info.is_dir()
