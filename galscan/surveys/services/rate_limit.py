"""Rate limiter of requests to a host, shared by all threads and processes of a data home."""

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

SLACK = 0.03  # fraction by which requests are slowed down: network delays vary, and bunch requests at the server


class RateLimiter:
    """Token bucket of size one, filled `per_minute` times a minute.

    The time of the next request, by the system's monotonic clock, is stored in a file: two ingests at the same time
    share the limit, and a resumed one keeps it.
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
        """Wait until the next request may be sent; raise `GalscanError` if the client was stopped."""
        while (left := self._acquire()) > 0:
            if self._stopped.wait(left):
                raise GalscanError("stopped")

    def pause(self, seconds: float) -> None:
        """Send no request for `seconds`."""
        self._acquire(seconds)

    def _acquire(self, pause: float = 0.0) -> float:
        """Take the token, or return the seconds until there is one; with `pause`, block it for that time."""
        with self._lock:
            with contextlib.suppress(OSError):  # a file system without locks: only threads share the limit
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            try:
                now = time.monotonic()
                data = os.pread(self._handle, 8, 0)
                left = struct.unpack("<d", data)[0] - now if len(data) == 8 else 0.0
                if not 0 < left <= self._longest:  # due, or written before a reboot
                    left = 0.0
                if pause > left or (not pause and left == 0):
                    os.pwrite(self._handle, struct.pack("<d", now + (pause or self.interval)), 0)
                return left
            finally:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._handle, fcntl.LOCK_UN)
