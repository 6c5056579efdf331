"""Errors of requests to services, and which of them can be retried."""

from __future__ import annotations

import email.utils
import gzip
import io
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn errors of urllib3 and requests into `RetryableError`, or into `FetchError` where a retry cannot help."""
    import urllib3.exceptions as urllib3_errors

    try:
        yield
    except (urllib3_errors.HTTPError, OSError) as error:
        if isinstance(error, urllib3_errors.LocationParseError) or "CERTIFICATE" in str(error):
            raise FetchError(f"{type(error).__name__}: {_line(error)}") from None
        if isinstance(error, urllib3_errors.TimeoutError | TimeoutError):
            raise RetryableError("request timed out", responded=False) from None
        if "IncompleteRead" in str(error):
            raise RetryableError("response truncated") from None
        raise RetryableError(f"{type(error).__name__}: {_line(error)}", responded=False) from None


def _line(error: BaseException) -> str:
    text = re.sub(r"<[^>]*>:?|HTTPS?ConnectionPool\([^)]*\):", " ", str(error))
    return " ".join(text.split())[:160]


def check_status(status: int, headers: Mapping[str, str]) -> None:
    """Raise `RetryableError` if `status` is that of a temporary failure."""
    if status in RETRYABLE:
        raise RetryableError(f"HTTP {status}", retry_after(headers), host_busy=status in BUSY)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body whose Content-Encoding was not requested; at most `limit` bytes, against compression bombs."""
    if encoding in ("", "identity"):
        return body
    try:
        if encoding in ("gzip", "x-gzip"):
            content = gzip.GzipFile(fileobj=io.BytesIO(body)).read(limit + 1)
        elif encoding == "deflate":
            stream = zlib.decompressobj()
            content = stream.decompress(body, limit + 1)
            if len(content) <= limit and not stream.eof:
                raise EOFError("truncated")
        else:
            raise FetchError(f"unexpected Content-Encoding '{encoding[:20]}'")
    except (OSError, EOFError, zlib.error) as error:
        raise RetryableError(f"response cannot be decompressed ({error})") from None
    if len(content) > limit:
        raise FetchError(f"{len(body):,} bytes decompress to more than {limit / 1e6:g} MB")
    return content


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
