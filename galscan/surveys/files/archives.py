"""Images in a zip file, read without extracting them to disk."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from galscan.core.errors import InputError
from galscan.surveys.file_names import is_image
from galscan.surveys.files.planes import FileInMemory

LARGEST = 300_000_000  # bytes of one image: the maximum number of pixels that are decoded, as floats


class Zip:
    """A zip file of images; each process opens it on its own.

    Raises `InputError` if it is not a zip file, or truncated (the index of a zip file is at its end).
    """

    def __init__(self, path: Path):
        self.path = path
        self._opened: zipfile.ZipFile | None = None
        try:
            infos = {i.filename: i for i in self._open().infolist() if _is_visible_image(i)}
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read as a zip file ({error}); check that it is complete") from error
        self._infos = dict(sorted(infos.items()))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _open(self) -> zipfile.ZipFile:
        if self._opened is None:
            self._opened = zipfile.ZipFile(self.path)
        return self._opened

    def files(self) -> dict[str, int]:
        """Return all images in a fixed order: path -> bytes."""
        return {name: info.file_size for name, info in self._infos.items()}

    def get(self, name: str) -> FileInMemory:
        """Read one image. `zipfile` raises many types of errors if the file is damaged."""
        info = self._infos[name]
        if info.file_size > LARGEST:
            raise ValueError(f"{info.file_size:,} bytes, at most {LARGEST:,} are decompressed")
        return FileInMemory(self._open().read(info), name.rsplit("/", 1)[-1])


def _is_visible_image(info: zipfile.ZipInfo) -> bool:
    """Return whether an entry is an image, and neither hidden nor of the __MACOSX folder."""
    parts = info.filename.split("/")
    hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return is_image(info.filename) and not hidden and not info.is_dir()
