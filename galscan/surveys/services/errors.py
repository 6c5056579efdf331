"""What can go wrong on the way to a service, and whether time may heal it."""

from __future__ import annotations

import email.utils
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

from galscan.core.errors import GalscanError

AGAIN = (408, 425, 429, 500, 502, 503, 504)  # answers that time may heal
BUSY = (429, 503)  # the whole host asks for a pause


class FetchError(GalscanError):
    """A request that will not succeed: the reason of one object, not the end of all."""


class MissingError(FetchError):
    """There is no such thing; final."""


class ServiceUnavailableError(GalscanError):
    """A host is left alone; what was fetched is kept."""


class RetryableError(GalscanError):
    """An attempt failed in a way that time may heal.

    `pause` is what the host asked for, in seconds, `everybody` whether other requests are to wait as well, and `heard`
    whether anything came from there.
    """

    def __init__(self, reason: str, pause: float | None = None, *, everybody: bool = False, heard: bool = True):
        super().__init__(reason)
        self.pause, self.everybody, self.heard = pause, everybody, heard


def in_our_terms(error: Exception) -> Exception:
    """Return what to raise in `Client.patiently` for an exception of requests or astroquery."""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in AGAIN:
        return RetryableError(f"HTTP {status}", retry_after(response.headers), everybody=status in BUSY)
    names = {kind.__name__ for kind in type(error).__mro__}
    if status is None and names & {"Timeout", "TimeoutError", "ConnectionError", "ChunkedEncodingError"}:
        return RetryableError(_line(error), heard=False)
    return FetchError(f"HTTP {status}" if status else f"{type(error).__name__}: {_line(error)}")


class network_errors:
    """Turn what urllib3 raises into `RetryableError`, or `FetchError` where asking again cannot help."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import urllib3.exceptions as raised

        if error is None:
            return
        if isinstance(error, raised.LocationParseError) or "CERTIFICATE" in str(error):
            raise FetchError(f"{type(error).__name__}: {_line(error)}") from None
        if isinstance(error, raised.TimeoutError | TimeoutError):
            raise RetryableError("no answer in time", heard=False) from None
        if "IncompleteRead" in str(error):
            raise RetryableError("cut off before its end") from None
        if isinstance(error, raised.HTTPError | OSError):
            raise RetryableError(f"{type(error).__name__}: {_line(error)}", heard=False) from None


def _line(error: BaseException) -> str:
    text = re.sub(r"<[^>]*>:?|HTTPS?ConnectionPool\([^)]*\):", " ", str(error))
    return " ".join(text.split())[:160]


def unpack(body: bytes, packed: str, limit: int) -> bytes:
    """Undo a Content-Encoding we did not ask for, and stop where it would fill the memory."""
    if packed in ("", "identity"):
        return body
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(f"packed as '{packed[:20]}', which was not asked for")
    try:
        unpacked = zlib.decompressobj(47 if "gzip" in packed else 15).decompress(body, limit + 1)
    except zlib.error as error:
        raise RetryableError(f"cannot be unpacked ({error})") from None
    if len(unpacked) > limit:
        raise FetchError(f"{len(body):,} bytes that unpack to more than {limit / 1e6:g} MB")
    return unpacked


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a Retry-After header asks for: a number, or a date by the server's own clock."""
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value).timestamp()
        date = headers.get("Date")
        now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
    except (TypeError, ValueError):
        return None
    return max(0.0, then - now)
