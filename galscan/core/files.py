"""Atomic writing of files, JSON, and hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from galscan.core.errors import GalscanError, InputError, NotFoundError, StorageError


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside the block into a `StorageError` with `path` and the remedy."""
    try:
        yield
    except GalscanError:
        raise
    except Exception as error:
        code = _error_number(error)
        if code is None and not isinstance(error, OSError):
            raise
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "the disk is full (or a quota is reached); free some space and run the same command again"
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = "no permission to write there; choose another path"
        else:
            why = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"cannot write {path}: {why}") from error


def _error_number(error: Exception) -> int | None:
    """Return the errno of an error; astropy and safetensors give it only in the message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    return int(match[1] or match[2]) if match else None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`, else delete it.

    Raises `StorageError` if the disk is full or the path is not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync a file, or a directory, so that a rename in it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(source: Traversable, what: str) -> str:
    """Read a text file; `what` names it in the `InputError` if it cannot be read."""
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read: {error}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN raises an error, because it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON written by `write_json`.

    Raises `NotFoundError` if the file does not exist; `InputError` if it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it or remove the folder") from error


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
