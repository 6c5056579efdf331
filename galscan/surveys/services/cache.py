"""What services said, kept on disk: one file a request, named by its hash, removable at any time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from galscan.core.errors import InputError
from galscan.core.files import storage_errors

CACHE_GB = 20.0  # unless GALSCAN_CACHE_GB says otherwise


@dataclass(frozen=True)
class Response:
    """What a service said: status 200, or 404 or 410 for "there is no such thing"."""

    url: str
    status: int
    kind: str
    body: bytes

    @property
    def absent(self) -> bool:
        return self.status != 200

    def words(self) -> str:
        """Return the beginning of a body that is text, in one line without markup."""
        text = re.sub(r"<[^>]*>", " ", self.body[:2000].decode("utf-8", "replace"))
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:120]


class ResponseCache:
    """A folder of answers."""

    def __init__(self, folder: Path):
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def _place(self, url: str, sent: str = "") -> Path:
        key = hashlib.sha256((f"POST {url}\n{sent}" if sent else f"GET {url}").encode()).hexdigest()
        return self._folder / key[:2] / key

    def recall(self, url: str, sent: str = "", days: float | None = None) -> Response | None:
        """Return what was answered before; None if nothing was, if it is damaged, or older than so many days."""
        place = self._place(url, sent)
        try:
            if days is not None and time.time() - place.stat().st_mtime > 86_400 * days:
                return None
            head, _, body = place.read_bytes().partition(b"\n")
            known = json.loads(head)
            if known["url"] == url and known["sha256"] == hashlib.sha256(body).hexdigest():
                return Response(url, known["status"], known["kind"], body)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or torn when the power failed
            pass
        return None

    def keep(self, url: str, answer: Response, sent: str = "") -> None:
        """Write an answer. It is not synced to disk: its hash tells a torn one, which is asked for again."""
        place = self._place(url, sent)
        digest = hashlib.sha256(answer.body).hexdigest()
        head = {"url": url, "status": answer.status, "kind": answer.kind, "sha256": digest}
        temporary = place.with_name(f".{place.name}.tmp")
        with storage_errors(place):
            place.parent.mkdir(exist_ok=True)
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + answer.body)
            os.replace(temporary, place)

    def prune(self) -> int:
        """Remove the oldest until they take less than GALSCAN_CACHE_GB (default 20). Return how many went.

        Raises
        ------
        InputError
            If GALSCAN_CACHE_GB is not a number.
        """
        text = os.environ.get("GALSCAN_CACHE_GB", "")
        try:
            limit = float(text or CACHE_GB) * 1e9
        except ValueError:
            raise InputError(f"GALSCAN_CACHE_GB is {text!r}; give a number of gigabytes") from None
        files = [(stat.st_mtime, stat.st_size, f) for f in self._folder.glob("??/*") for stat in [f.stat()]]
        total, gone = sum(size for _, size, _ in files), 0
        for _, size, file in sorted(files) if total > limit else ():
            if total <= 0.9 * limit:
                break
            file.unlink(missing_ok=True)
            total -= size
            gone += 1
        return gone
