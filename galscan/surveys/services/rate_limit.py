"""The pace at which a host is asked: one request after another, over all threads and processes of a data home."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import threading
import time
from pathlib import Path

from galscan.core.errors import GalscanError
from galscan.core.files import storage_errors

SLACK = 0.03  # requests travel unevenly: ask this much slower, so that no window at the server sees too many


class RateLimiter:
    """A bucket of one token, which fills `per_minute` times a minute.

    When the next request may leave is written in a file, by the system's monotonic clock: two ingests at once share
    the pace, and one that was killed and started again goes on with it.
    """

    def __init__(self, folder: Path, host: str, per_minute: float, longest: float, stopped: threading.Event):
        self.interval = 60.0 * (1 + SLACK) / per_minute
        self._longest = max(longest, self.interval) + 1
        self._stopped = stopped
        self._lock = threading.Lock()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(folder / re.sub(r"[^a-z0-9.-]", "_", host), os.O_RDWR | os.O_CREAT, 0o644)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def wait(self) -> None:
        """Return when the next request may leave.

        Raises
        ------
        GalscanError
            If all is to stop.
        """
        while (left := self._turn()) > 0:
            if self._stopped.wait(left):
                raise GalscanError("stopped")

    def pause(self, seconds: float) -> None:
        """Let nothing leave for so long."""
        self._turn(seconds)

    def _turn(self, pause: float = 0.0) -> float:
        """Take the token, or return the seconds until there is one; with `pause`, take it away for so long."""
        with self._lock:
            with contextlib.suppress(OSError):  # a file system without locks: threads keep the pace all the same
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            try:
                now = time.monotonic()
                data = os.pread(self._handle, 8, 0)
                left = struct.unpack("<d", data)[0] - now if len(data) == 8 else 0.0
                if not 0 < left <= self._longest:  # due; or of the time before the machine was started anew
                    left = 0.0
                if pause > left or (not pause and left == 0):
                    os.pwrite(self._handle, struct.pack("<d", now + (pause or self.interval)), 0)
                return left
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._handle, fcntl.LOCK_UN)
