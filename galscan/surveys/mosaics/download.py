"""Download of frames with prefetching, by one thread in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from galscan.surveys.mosaics.header import read_header
from galscan.surveys.services.client import Client
from galscan.surveys.services.errors import FetchError


class DownloadedFiles:
    """A `Source` that downloads files to a folder, and deletes them after use unless they are to be kept.

    Files that are in the folder already are not downloaded again; they are written atomically.

    Parameters
    ----------
    folder : path
        Folder of the files, which are named by host and path of their URLs.
    scheme : str
        ``https`` or ``http``.
    client : callable
        Returns the HTTP client; called when the first file is needed.
    keep : bool
        Do not delete files after use.
    """

    def __init__(self, folder: Path, scheme: str, client: Callable[[], Client], *, keep: bool):
        self.folder, self.scheme, self.keep = folder, scheme, keep
        self._make = client
        self._client: Client | None = None
        self._files: dict[str, Future[Path]] = {}
        self._wanted: SimpleQueue[tuple[str, Future[Path]] | None] = SimpleQueue()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "scheme": self.scheme, "_make": self._make, "keep": self.keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["scheme"], state["_make"], keep=state["keep"])  # type: ignore[misc]

    def expect(self, files: Sequence[str]) -> None:
        """Start the download of `files`, in this order."""
        for file in files:
            if file in self._files:
                continue
            future: Future[Path] = Future()
            self._files[file] = future
            if (path := self.folder / file).is_file():
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
                path = self.folder / file
                client.fetch(f"{self.scheme}://{file}", path, _check_fits)
                future.set_result(path)
            except BaseException as error:  # raised in `locate`
                future.set_exception(error)

    def locate(self, file: str) -> Path:
        """Return the path of `file` after its download.

        Raises
        ------
        MissingError, FetchError, ServiceUnavailableError, StorageError
            As `galscan.surveys.services.client.Client.fetch`.
        """
        self.expect([file])
        return self._files[file].result()

    def release(self, files: Sequence[str]) -> None:
        """Delete `files`, unless downloaded files are to be kept."""
        for file in files:
            future = self._files.pop(file, None)
            if future is None or future.cancel() or self.keep:
                continue
            if future.exception() is None:  # waits for a running download
                (self.folder / file).unlink(missing_ok=True)

    def reject(self, files: Sequence[str]) -> None:
        """Delete `files` in any case, so that they are downloaded again."""
        self.release(files)
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

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
