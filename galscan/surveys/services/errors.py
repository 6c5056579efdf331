"""Errors of requests to services, and which of them can be retried."""

from __future__ import annotations

import email.utils
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

from galscan.core.errors import GalscanError

RETRYABLE = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes of temporary failures
BUSY = (429, 503)  # status codes that pause all requests to the host


class FetchError(GalscanError):
    """A request failed for good; it concerns one object, and other requests may succeed."""

    code = "request-failed"


class MissingError(FetchError):
    """The resource does not exist; not retried."""

    code = "missing-resource"


class ServiceUnavailableError(GalscanError):
    """The circuit breaker of a host is open: it gets no more requests."""

    code = "service-unavailable"


class RetryableError(GalscanError):
    """An attempt failed and may succeed later.

    Attributes
    ----------
    pause : float or None
        Seconds that the host requested by Retry-After.
    host_busy : bool
        Whether all requests to the host are to wait.
    responded : bool
        Whether the host sent any response.
    """

    def __init__(self, reason: str, pause: float | None = None, *, host_busy: bool = False, responded: bool = True):
        super().__init__(reason)
        self.pause, self.host_busy, self.responded = pause, host_busy, responded


def translate_error(error: Exception) -> Exception:
    """Return the error of this module for an exception of requests or astroquery."""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in RETRYABLE:
        return RetryableError(f"HTTP {status}", retry_after(response.headers), host_busy=status in BUSY)
    names = {kind.__name__ for kind in type(error).__mro__}
    if status is None and names & {"Timeout", "TimeoutError", "ConnectionError", "ChunkedEncodingError"}:
        return RetryableError(_line(error), responded=False)
    return FetchError(f"HTTP {status}" if status else f"{type(error).__name__}: {_line(error)}")


class network_errors:
    """Turn errors of urllib3 into `RetryableError`, or into `FetchError` where a retry cannot help."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import urllib3.exceptions as urllib3_errors

        if error is None:
            return
        if isinstance(error, urllib3_errors.LocationParseError) or "CERTIFICATE" in str(error):
            raise FetchError(f"{type(error).__name__}: {_line(error)}") from None
        if isinstance(error, urllib3_errors.TimeoutError | TimeoutError):
            raise RetryableError("request timed out", responded=False) from None
        if "IncompleteRead" in str(error):
            raise RetryableError("response truncated") from None
        if isinstance(error, urllib3_errors.HTTPError | OSError):
            raise RetryableError(f"{type(error).__name__}: {_line(error)}", responded=False) from None


def _line(error: BaseException) -> str:
    text = re.sub(r"<[^>]*>:?|HTTPS?ConnectionPool\([^)]*\):", " ", str(error))
    return " ".join(text.split())[:160]


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body whose Content-Encoding was not requested; at most `limit` bytes, against compression bombs."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError(f"unexpected Content-Encoding '{encoding[:20]}'")
    decompressed, rest = b"", body
    while rest:  # gzip allows several members, one after the other (RFC 1952, 2.2)
        stream = zlib.decompressobj(47 if "gzip" in encoding else 15)
        try:
            decompressed += stream.decompress(rest, limit + 1 - len(decompressed))
        except zlib.error as error:
            raise RetryableError(f"response cannot be decompressed ({error})") from None
        if len(decompressed) > limit:
            raise FetchError(f"{len(body):,} bytes decompress to more than {limit / 1e6:g} MB")
        if not stream.eof:
            raise RetryableError("response is truncated: its compressed body does not end")
        rest = stream.unused_data.lstrip(b"\0")  # padding, which gzip ignores as well
    return decompressed


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date by the server's own clock."""
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
