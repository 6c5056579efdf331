"""Download of frames with prefetching, by one thread in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from galscan.surveys.header import read_header
from galscan.surveys.mosaics.footprints import Folder
from galscan.surveys.services.client import Client
from galscan.surveys.services.errors import FetchError


class DownloadedFiles(Folder):
    """Files that are downloaded to a folder, and deleted after use unless they are to be kept.

    Files in the folder are named by host and path of their URLs; those that are there already are not downloaded again.

    Parameters
    ----------
    client : callable
        Returns the HTTP client; called when the first file is needed.
    """

    def __init__(self, root: Path, scheme: str, client: Callable[[], Client], *, keep: bool):
        super().__init__(root)
        self.scheme, self.keep = scheme, keep
        self._make = client
        self._client: Client | None = None
        self._files: dict[str, Future[Path]] = {}
        self._wanted: SimpleQueue[tuple[str, Future[Path]] | None] = SimpleQueue()

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process downloads by itself."""
        return partial(DownloadedFiles, keep=self.keep), (self.root, self.scheme, self._make)

    def expect(self, files: Sequence[str]) -> None:
        """Start the download of `files`, in this order."""
        for file in files:
            if file in self._files:
                continue
            future: Future[Path] = Future()
            self._files[file] = future
            if (path := self.root / file).is_file():
                future.set_result(path)
                continue
            if self._client is None:
                client = self._client = self._make()
                # A daemon, so that Ctrl-C does not wait for a slow server.
                threading.Thread(target=self._serve, args=(client, self._wanted), daemon=True).start()
            self._wanted.put((file, future))

    def _serve(self, client: Client, wanted: SimpleQueue[tuple[str, Future[Path]] | None]) -> None:
        while (task := wanted.get()) is not None:
            file, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                path = self.root / file
                client.fetch(f"{self.scheme}://{file}", path, _check_fits)
                future.set_result(path)
            except BaseException as error:  # raised in `locate`
                future.set_exception(error)

    def locate(self, file: str) -> Path:
        """Return the path of `file` after its download; raise as `galscan.surveys.services.client.Client.fetch`."""
        self.expect([file])
        return self._files[file].result()

    def release(self, files: Sequence[str]) -> None:
        """Delete `files`, unless downloaded files are to be kept."""
        for file in files:
            future = self._files.pop(file, None)
            if future is None or future.cancel() or self.keep:
                continue
            if future.exception() is None:  # waits for a running download
                (self.root / file).unlink(missing_ok=True)

    def reject(self, files: Sequence[str]) -> None:
        """Delete `files` in any case, so that they are downloaded again."""
        self.release(files)
        for file in files:
            (self.root / file).unlink(missing_ok=True)

    def stop(self) -> None:
        """Cancel all downloads."""
        if self._client is not None:
            self._client.stop()
            self._wanted.put(None)
        self._client, self._files, self._wanted = None, {}, SimpleQueue()


def _check_fits(path: Path) -> None:
    """Raise `FetchError` if the file is not a FITS image: a maintenance page must count as a failure of the host."""
    try:
        read_header(path)
    except (ValueError, OSError, EOFError) as error:
        raise FetchError(f"the response is not a FITS image ({error})") from None
