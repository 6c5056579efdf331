"""Staging folders: output is written to ``OUT.partial`` and renamed to OUT when it is complete.

A staging folder belongs to one request, which can be resumed; another request is refused. It is locked, so that two
processes never write to it at the same time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from galscan.core.errors import ConflictError, Interrupted
from galscan.core.files import read_json, storage_errors, sync, write_json
from galscan.core.old_names import renamed

REQUEST = "request.json"


def partial(out: Path) -> Path:
    """Return the staging folder of `out`."""
    return out.with_name(out.name + ".partial")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if missing, for this process; the lock is released when the process ends.

    Raises `ConflictError` if another process has locked it; `StorageError` if the folder cannot be created.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another galscan process is working in {folder}; wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def drop_empty(folder: Path) -> None:
    """Remove a folder that was created by `locked`, if it is still empty."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def staging_folder(out: Path, request: Mapping[str, Any], what: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the locked staging folder of `request`, with the files of an interrupted earlier call.

    Raises `ConflictError` if the folder holds something else, or is locked by another process; `Interrupted` if Ctrl-C
    ends the block.

    Parameters
    ----------
    what : str
        Name of the work in messages, such as "training".
    overwrite : bool
        Delete the staging folder of another request.
    """
    work = partial(out)
    # An empty folder is left when the disk is full from the start; it belongs to no request.
    if work.exists() and not (work / REQUEST).is_file() and (not work.is_dir() or any(work.iterdir())):
        raise ConflictError(f"{work} exists and is not an unfinished {what}; remove it or choose another --out")
    with locked(work):
        if (work / REQUEST).is_file():
            before = read_json(work / REQUEST)
            if before == request:
                print(f"resuming {work}", file=sys.stderr)
            elif overwrite:
                for path in work.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                changed = [key for key in request if before.get(key) != request[key]]
                raise ConflictError(
                    f"{work} holds an unfinished {what} with other {', '.join(changed)}; repeat that command, "
                    "remove it, or choose another --out"
                )
        write_json(work / REQUEST, request)
        try:
            yield work
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; run the same command again to resume ({work})") from None


def finished(
    out: Path, marker: str, request: Mapping[str, Any], what: str, *, overwrite: bool = False
) -> dict[str, Any] | None:
    """Return the content of ``out/marker`` if `out` is the result of `request`, None if it does not exist.

    Raises `ConflictError` if `out` is something else; with `overwrite`, only if it is not a `what` at all.
    """
    if not out.exists():
        return None
    if not (out / marker).is_file():
        raise ConflictError(f"{out} exists and is not a finished {what}; choose another --out")
    present: dict[str, Any] = renamed(read_json(out / marker))
    if overwrite:
        return None
    if present.get("request") != request:
        raise ConflictError(f"{out} holds another {what}; choose another --out, or pass --overwrite")
    print(f"{out} is already the result of this {what}; nothing to do (--overwrite repeats it)", file=sys.stderr)
    return present


def _backup_path(out: Path) -> Path:
    """Return the path of the backup of `out`, a name that users do not choose."""
    return out.with_name(f".{out.name}.galscan-replaced")


def publish(work: Path, out: Path) -> None:
    """Replace `out` by the finished folder `work`; at any time the old or the new one is complete on disk."""
    backup = _backup_path(out)
    shutil.rmtree(backup, ignore_errors=True)  # of an interrupted call
    if out.exists():
        os.replace(out, backup)
    os.replace(work, out)
    shutil.rmtree(backup, ignore_errors=True)


def recover(out: Path) -> None:
    """Restore `out` after a call of `publish` that was killed between its two renames."""
    backup = _backup_path(out)
    if out.exists() or not backup.is_dir():
        return
    with locked(partial(out)):  # not during a running `publish`
        if not out.exists():
            os.replace(backup, out)
    drop_empty(partial(out))


@contextmanager
def atomic_folder(out: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; on success it replaces `out`, on failure it is deleted.

    Raises `ConflictError` if `out` is something else; `StorageError` if the disk is full or the path is not writable.

    Parameters
    ----------
    marker : str
        A file in such folders: only a folder that has it, or an empty one, is replaced.
    """
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise ConflictError(f"{out} exists and is not of this kind (no {marker} in it); choose another path")
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(out):
        try:
            work.mkdir(parents=True)
            yield work
            for entry in [*work.rglob("*"), work]:
                sync(entry)
            publish(work, out)
            sync(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
