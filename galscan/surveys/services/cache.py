"""Cache of HTTP responses on disk: one file per request, named by its hash; may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from galscan.core.errors import InputError
from galscan.core.files import storage_errors

CACHE_GB = 20.0  # default of GALSCAN_CACHE_GB
ABSENT_DAYS = 30.0  # a cached 404 older than this is requested again, because surveys grow


@dataclass(frozen=True)
class Response:
    """An HTTP response: status 200, or 404 or 410 if the resource does not exist."""

    url: str
    status: int
    kind: str
    body: bytes

    @property
    def absent(self) -> bool:
        return self.status != 200

    def excerpt(self) -> str:
        """Return the beginning of a text body, on one line, without markup."""
        text = re.sub(r"<[^>]*>", " ", self.body[:2000].decode("utf-8", "replace"))
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:120]


class ResponseCache:
    """A folder of cached responses; those that the resource does not exist are used for `absent_days`."""

    def __init__(self, folder: Path, absent_days: float = ABSENT_DAYS):
        self._folder, self._absent_days = folder, absent_days
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, url: str, form: str = "") -> Path:
        key = hashlib.sha256((f"POST {url}\n{form}" if form else f"GET {url}").encode()).hexdigest()
        return self._folder / key[:2] / key

    def get(self, url: str, form: str = "", days: float | None = None) -> Response | None:
        """Return the cached response; None if there is none, it is damaged, or it is older than `days`."""
        path = self._path(url, form)
        try:
            age = (time.time() - path.stat().st_mtime) / 86_400
            head, _, body = path.read_bytes().partition(b"\n")
            metadata = json.loads(head)
            intact = metadata["url"] == url and metadata["sha256"] == hashlib.sha256(body).hexdigest()
            response = Response(url, metadata["status"], metadata["kind"], body)
        except (OSError, ValueError, KeyError, TypeError):  # not cached, or truncated by a power failure
            return None
        expired = (days is not None and age > days) or (response.absent and age >= self._absent_days)
        return response if intact and not expired else None

    def put(self, url: str, response: Response, form: str = "") -> None:
        """Write a response, without fsync: a truncated file fails its hash and is requested again."""
        path = self._path(url, form)
        digest = hashlib.sha256(response.body).hexdigest()
        head = {"url": url, "status": response.status, "kind": response.kind, "sha256": digest}
        # A unique name: several processes may write the same response at the same time.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with storage_errors(path):
            path.parent.mkdir(exist_ok=True)
            try:
                temporary.write_bytes(json.dumps(head).encode() + b"\n" + response.body)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def prune(self) -> int:
        """Remove the oldest responses until they take less than GALSCAN_CACHE_GB (default 20); return their number."""
        text = os.environ.get("GALSCAN_CACHE_GB", "")
        try:
            limit = float(text or CACHE_GB) * 1e9
        except ValueError:
            raise InputError(f"GALSCAN_CACHE_GB is {text!r}; give a number of gigabytes") from None
        files = []
        for file in self._folder.glob("??/[!.]*"):
            with suppress(FileNotFoundError):  # another process removed it
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, file))
        total, removed = sum(size for _, size, _ in files), 0
        for _, size, file in sorted(files) if total > limit else ():
            if total <= 0.9 * limit:
                break
            file.unlink(missing_ok=True)
            total -= size
            removed += 1
        return removed
