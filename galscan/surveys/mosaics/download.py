"""Files fetched as they are needed, by one thread, so that the next are on their way while one is at work."""

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


class Fetched:
    """A `Source` whose files come from a host into a folder, and are dropped after use, or kept.

    What lies there already is not asked for: files arrive whole or not at all.

    Parameters
    ----------
    folder : path
        The files, by host and path of their addresses.
    scheme : str
        ``https``, or ``http``.
    client : callable
        Returns the client that asks; called when the first file is needed.
    keep : bool
        Leave the files in the folder.
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
        """Have `files` fetched, in this order."""
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
                # A daemon: nobody wants to wait for a slow server after Ctrl-C.
                threading.Thread(target=self._serve, args=(client, self._wanted), daemon=True).start()
            self._wanted.put((file, future))

    def _serve(self, client: Client, wanted: SimpleQueue[tuple[str, Future[Path]] | None]) -> None:
        while (task := wanted.get()) is not None:
            file, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                path = self.folder / file
                client.fetch(f"{self.scheme}://{file}", path, _look)
                future.set_result(path)
            except BaseException as error:  # raised again where the file is asked for
                future.set_exception(error)

    def locate(self, file: str) -> Path:
        """Return where `file` is, once it is there.

        Raises
        ------
        Absent, FetchError, HostDown, StorageError
            As of `galscan.surveys.services.client.Client.fetch`.
        """
        self.expect([file])
        return self._files[file].result()

    def release(self, files: Sequence[str]) -> None:
        """Drop `files`, or keep them for the next time."""
        for file in files:
            future = self._files.pop(file, None)
            if future is None or future.cancel() or self.keep:
                continue
            if future.exception() is None:  # waits for what is on its way
                (self.folder / file).unlink(missing_ok=True)

    def reject(self, files: Sequence[str]) -> None:
        """Drop `files` in any case: the next time they are fetched anew."""
        self.release(files)
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def stop(self) -> None:
        """Give up whatever is on its way."""
        if self._client is not None:
            self._client.stop()
            self._wanted.put(None)
        self._client, self._files, self._wanted = None, {}, SimpleQueue()


def _look(path: Path) -> None:
    """Refuse what is no FITS image: a page that says "maintenance" must count as a failure of its host."""
    try:
        read_header(path)
    except (ValueError, OSError, EOFError) as error:
        raise FetchError(f"what came is no FITS image ({error})") from None
