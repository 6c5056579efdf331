"""Work in progress: ``OUT.partial`` belongs to one request and one process, until it becomes OUT.

The same request goes on where it stopped; another one is refused; and two processes never write into one folder.
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
from galscan.core.files import read_json, storage_errors, write_json
from galscan.core.files import sync_directory as sync

REQUEST = "request.json"


def partial(out: Path) -> Path:
    """Return where work on `out` goes until it is finished."""
    return out.with_name(out.name + ".partial")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if need be; the lock goes when the process does.

    Raises
    ------
    ConflictError
        If another process holds it.
    StorageError
        If the folder cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another galscan is at work in {folder}; wait for it, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def drop_empty(folder: Path) -> None:
    """Remove a folder that was made to be held, if nothing came into it."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def work_on(out: Path, request: Mapping[str, Any], what: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the folder in which `request` is worked on; what it left there before is still there.

    Parameters
    ----------
    what : str
        What it makes, for messages: "training".
    overwrite : bool
        Remove what another request left there.

    Raises
    ------
    ConflictError
        If something else is there, or another process at work.
    Interrupted
        Where Ctrl-C ends the block.
    """
    work = partial(out)
    # A disk that was full at the first word leaves an empty folder; that is nobody's.
    if work.exists() and not (work / REQUEST).is_file() and (not work.is_dir() or any(work.iterdir())):
        raise ConflictError(f"{work} exists and is not an unfinished {what}; remove it or choose another --out")
    with held(work):
        if (work / REQUEST).is_file():
            before = read_json(work / REQUEST)
            if before == request:
                print(f"going on with {work}", file=sys.stderr)
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
            raise Interrupted(f"interrupted; run the same command again to go on ({work})") from None


def finished(
    out: Path, marker: str, request: Mapping[str, Any], what: str, *, overwrite: bool = False
) -> dict[str, Any] | None:
    """Return what ``out/marker`` says if `out` holds just what `request` asks for, None if it is still to be made.

    Raises
    ------
    ConflictError
        If `out` is something else; with `overwrite`, only if it is not a `what` at all.
    """
    if not out.exists():
        return None
    if not (out / marker).is_file():
        raise ConflictError(f"{out} exists and is not a finished {what}; choose another --out")
    present: dict[str, Any] = read_json(out / marker)
    if overwrite:
        return None
    if present.get("request") != request:
        raise ConflictError(f"{out} holds another {what}; choose another --out, or pass --overwrite")
    print(f"{out} holds just this {what}; nothing to do (--overwrite makes it again)", file=sys.stderr)
    return present


def _replaced(out: Path) -> Path:
    """Return where an old `out` waits until the new one is in its place; no user has a folder of this name."""
    return out.with_name(f".{out.name}.galscan-replaced")


def deliver(work: Path, out: Path) -> None:
    """Put the finished folder `work` in the place of `out`; at no moment are both old and new lost."""
    aside = _replaced(out)
    shutil.rmtree(aside, ignore_errors=True)  # of a delivery that was killed
    if out.exists():
        os.replace(out, aside)
    os.replace(work, out)
    shutil.rmtree(aside, ignore_errors=True)


def recover(out: Path) -> None:
    """Put back what was at `out` where a delivery was killed between taking the old away and putting the new there."""
    aside = _replaced(out)
    if out.exists() or not aside.is_dir():
        return
    with held(partial(out)):  # not while it is being delivered
        if not out.exists():
            os.replace(aside, out)
    drop_empty(partial(out))


@contextmanager
def whole_folder(out: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `out`: it takes the place of `out` when the block is done, and goes if it fails.

    Parameters
    ----------
    marker : str
        A file that such a folder has: only one with it, or an empty one, is replaced.

    Raises
    ------
    ConflictError
        If something else is there.
    StorageError
        If the disk is full or the place is not writable.
    """
    if out.exists() and not (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        raise ConflictError(f"{out} is there already and is not of this kind (no {marker} in it); name another place")
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(out):
        try:
            work.mkdir(parents=True)
            yield work
            for entry in [*work.rglob("*"), work]:
                sync(entry)
            deliver(work, out)
            sync(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
