"""A rate-limited, retrying HTTP client with a cache; every request to a survey service goes through it.

Requests to a host are limited to `RequestPolicy.per_minute` over all threads and processes. Temporary failures are
retried with exponential backoff; after repeated failures a circuit breaker opens, and the host gets no more requests.
Only hosts of the policy get requests, also after a redirect. A body is used only if it is complete and not too large.
Those of astroquery are sent by its own session, within `Client.retry`.

`urllib3.Retry` is not used: it knows neither the shared rate limit nor the size limit, counts no failures over several
requests, and takes dates in Retry-After by the local clock.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from galscan.core.errors import InputError
from galscan.core.files import atomic_path, storage_errors
from galscan.core.version import __version__
from galscan.surveys.services.cache import ABSENT_DAYS, Response, ResponseCache
from galscan.surveys.services.errors import (
    FetchError,
    MissingError,
    RetryableError,
    ServiceUnavailableError,
    check_status,
    decompress,
    network_errors,
)
from galscan.surveys.services.rate_limit import RateLimiter

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
MAX_PAUSE = 900.0  # seconds: a longer Retry-After opens the circuit breaker
FIRST_PAUSE = 1.0  # seconds before the first retry; doubled for each further one

T = TypeVar("T")


class RequestPolicy(BaseModel):
    """Rate limit, retries and size limit of requests to a service."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Allowed hosts, redirects included; with ``:port`` if it is not the default port."""
    per_minute: Annotated[float, Field(gt=0, le=60_000)] = 60.0
    """Requests per minute to each host, over all threads and processes of this data home."""
    connections: Annotated[int, Field(ge=1, le=32)] = 2
    """Concurrent requests."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for one response, from the first byte to the last."""
    tries: Annotated[int, Field(ge=1, le=20)] = 5
    give_up: Annotated[int, Field(ge=1)] = 10
    """Requests failed in a row after which the circuit breaker opens, unless the host still responds to a request that
    succeeded before."""
    max_mb: Annotated[float, Field(gt=0)] = 50.0
    """Largest body, decompressed."""


class _Host:
    """State of a host, shared by all threads."""

    def __init__(self, limiter: RateLimiter):
        self.limiter = limiter
        self.failures, self.last_failure = 0, ""  # requests failed in a row
        self.responded, self.down = False, False
        self.good: tuple[str, Mapping[str, Any] | None] | None = None  # a request that succeeded
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self.failures, self.responded = 0, True

    def failed(self, why: str) -> None:
        with self._lock:
            self.failures, self.last_failure = self.failures + 1, why


class Client:
    """HTTP client with rate limits, retries and a cache, shared by all threads.

    Parameters
    ----------
    cache : path
        Folder of cached responses and of the state of the rate limiters.
    contact : str
        Contact e-mail, sent in the User-Agent.
    token : str
        Bearer token, sent only to the first host, never after a redirect to another one.
    response_folder : path, optional
        Folder of cached responses instead of that in `cache`, so that an ingest uses no responses of earlier ones.
    retry_not_found : bool
        Request again what a cached response says does not exist (HTTP 404).
    """

    def __init__(
        self, policy: RequestPolicy, *, cache: Path, contact: str = "", token: str = "",
        response_folder: Path | None = None, retry_not_found: bool = False,
    ):  # fmt: skip
        if not (contact + token).isprintable():
            raise InputError("contact and token must be one line each, of printable characters")
        self.policy, self.token = policy, token
        self.agent = f"galscan/{__version__}" + (f" ({contact})" if contact else "")
        self.cache = ResponseCache(response_folder or cache / "answers", 0 if retry_not_found else ABSENT_DAYS)
        self._stopped = threading.Event()
        self._hosts = {
            host: _Host(RateLimiter(cache / "pace", host, policy.per_minute, MAX_PAUSE, self._stopped))
            for host in policy.hosts
        }
        self._lock = threading.Lock()
        self._probe_lock = threading.Lock()
        self._managers: dict[str, Any] = {}
        self._last_message = 0.0

    def stop(self) -> None:
        """End the waits of all threads."""
        self._stopped.set()

    def get(
        self, url: str, read: Callable[[Response], T], form: Mapping[str, Any] | None = None, days: float | None = None
    ) -> T:
        """Return the result of `read` for the response of `url`, which may come from the cache.

        `read` raises `FetchError` for a response that cannot be used; that response is not cached. A `form` (text, or
        (name, content) of a small file) is posted: for queries too long for a URL. Cached responses older than
        `days` are requested again; with 0 the cache is not used.

        `FetchError` is raised if the request failed, and others may succeed; `ServiceUnavailableError` if the circuit
        breaker of the host is open; `InputError` if the host is not one of the policy.
        """
        host = self._hosts[self._host_name(url)]
        form_text = json.dumps(form, sort_keys=True) if form else ""
        if days != 0 and (cached := self.cache.get(url, form_text, days)) is not None:
            host.good = host.good or (url, form)
            return read(cached)

        def attempt() -> T:
            response = self._request(url, form)
            value = read(response)
            if days != 0:
                self.cache.put(url, response, form_text)
            host.good = url, form
            return value

        return self.retry(url, attempt)

    def fetch(self, url: str, path: Path, check: Callable[[Path], None]) -> None:
        """Download the file at `url` to `path` atomically, without caching it.

        `check` is called with the downloaded file, and raises `FetchError` if it cannot be used. `MissingError` is
        raised if there is no such file, `StorageError` if it cannot be written, other errors as in `get`.
        """

        def attempt() -> None:
            with atomic_path(path) as temporary:
                if self._request(url, path=temporary).absent:
                    raise MissingError("there is no such file")
                check(temporary)
            self._hosts[self._host_name(url)].good = url, None

        self.retry(url, attempt)

    # ------------------------------------------------------------------------------------------------- retries

    def retry(self, url: str, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, retried after a `RetryableError`; failures count for the circuit breaker.

        An `attempt` is one request to the host of `url`, which another library may send.
        """
        name = self._host_name(url)
        host, why = self._hosts[name], ""
        for k in range(self.policy.tries):
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            if host.failures >= self.policy.give_up and not self._probe(host):
                raise _unavailable(name, f"{host.failures} failures in a row, the last was {host.last_failure}")
            host.limiter.wait()
            try:
                value = attempt()
            except RetryableError as error:
                why, host.responded = str(error), host.responded or error.responded
                pause = max(error.pause or 0.0, FIRST_PAUSE * 2**k * random.uniform(0.5, 1.0))
                if pause > MAX_PAUSE:
                    host.failures, host.last_failure, host.down = self.policy.give_up, why, True
                    raise _unavailable(name, f"it requests a pause of {pause / 60:,.0f} minutes") from None
                if k + 1 < self.policy.tries:
                    self._report_wait(name, why, pause)
                    host.limiter.pause(pause) if error.host_busy else self._stopped.wait(pause)
            except MissingError:  # a valid response, no failure of the host
                host.succeeded()
                raise
            except FetchError as error:
                host.responded = True
                host.failed(str(error))
                raise
            else:
                host.succeeded()
                return value
        host.failed(why)
        if not host.responded:  # wrong host name, or no network
            raise _unavailable(name, f"no response ({why}); check the network connection")
        raise FetchError(f"{why} ({self.policy.tries} tries)")

    def _probe(self, host: _Host) -> bool:
        """Return whether the host still responds to a request that succeeded before, else open the circuit breaker."""
        with self._probe_lock:
            if host.failures < self.policy.give_up:  # another thread probed meanwhile
                return True
            if host.down or host.good is None:
                return False
            host.limiter.wait()
            try:
                self._request(*host.good)
            except (RetryableError, FetchError):
                host.down = True
                return False
            host.failures = 0
            return True

    def _report_wait(self, host: str, why: str, pause: float) -> None:
        now = time.monotonic()
        if pause >= 5 and now - self._last_message > 10:
            self._last_message = now
            print(f"{host}: {why}; waiting {pause:,.0f} s", file=sys.stderr, flush=True)

    # --------------------------------------------------------------------------------------------- one request

    def _host_name(self, url: str, redirected_from: str = "") -> str:
        """Return the host of `url`; raise an error if the policy does not allow it."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise FetchError(f"{'redirected to ' * bool(redirected_from)}{url[:80]}: {error}") from None
        host = parts.netloc.lower()
        if parts.scheme not in ("http", "https") or host not in self.policy.hosts:
            if redirected_from:
                raise FetchError(f"redirected to {host or url[:60]}, which is not among the hosts of the survey file")
            raise InputError(
                f"the host of {url[:80]} is not among those of the survey file ({', '.join(self.policy.hosts)}); "
                "add it to hosts there if you trust it"
            )
        if redirected_from.startswith("https:") and parts.scheme == "http":
            raise FetchError(f"redirected from https to http at {host}")
        return host

    def redirect(self, url: str, location: str) -> str:
        """Return the target of a redirect, when the rate limit allows it; raise `FetchError` for a forbidden host."""
        target = urljoin(url, location)
        self._hosts[self._host_name(target, redirected_from=url)].limiter.wait()
        return target

    def _request(self, url: str, form: Mapping[str, Any] | None = None, path: Path | None = None) -> Response:
        """Send one request and follow redirects within the allowed hosts, each under the rate limit.

        With a `path` the body is written there without decompression, and not held in memory.
        """
        deadline = time.monotonic() + self.policy.timeout
        for _ in range(MAX_REDIRECTS):
            response = self._send(url, form)
            try:
                if response.status in REDIRECTS and (target := response.headers.get("Location")):
                    url = self.redirect(url, target)
                    continue
                check_status(response.status, response.headers)
                body = self._body(response, deadline, path if response.status == 200 else None)
            finally:
                response.close()
            kind = response.headers.get("Content-Type", "").split(";")[0].lower()
            result = Response(url, response.status, kind, body)
            if result.status not in (200, 404, 410):
                raise FetchError(f"HTTP {result.status}: {result.excerpt()}".rstrip(": "))
            return result
        raise FetchError(f"redirected more than {MAX_REDIRECTS} times")

    def _send(self, url: str, form: Mapping[str, Any] | None) -> Any:
        import urllib3

        headers = {"User-Agent": self.agent, "Accept-Encoding": "identity"}
        if self.token and urlsplit(url).netloc.lower() == self.policy.hosts[0]:
            headers["Authorization"] = f"Bearer {self.token}"
        wait = urllib3.Timeout(connect=min(20.0, self.policy.timeout), read=self.policy.timeout)
        with network_errors():
            return self._manager(url).request(
                "POST" if form else "GET", url, fields=form or None, headers=headers, timeout=wait, retries=False,
                redirect=False, preload_content=False, decode_content=False,
            )  # fmt: skip

    def _manager(self, url: str) -> Any:
        """Return the connection pool for a URL, through the proxy set in the environment."""
        import urllib3

        parts = urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme, "")
        proxy = "" if urllib.request.proxy_bypass(parts.hostname or "") else proxy
        with self._lock:
            if proxy not in self._managers:
                size = self.policy.connections
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, maxsize=size) if proxy else urllib3.PoolManager(maxsize=size)
                )
            return self._managers[proxy]

    def _body(self, response: Any, deadline: float, path: Path | None) -> bytes:
        """Return a body; or write it to `path` without decompression, as servers set Content-Encoding for .gz files."""
        if path is None:
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            return decompress(b"".join(self._chunks(response, deadline)), encoding, int(self.policy.max_mb * 1e6))
        with storage_errors(path), open(path, "wb") as file:
            file.writelines(self._chunks(response, deadline))
        return b""

    def _chunks(self, response: Any, deadline: float) -> Iterator[bytes]:
        """Yield a body in chunks; check its size and the deadline. urllib3 compares it with Content-Length."""
        limit = int(self.policy.max_mb * 1e6)
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > limit:
            raise FetchError(f"Content-Length is {int(length) / 1e6:,.0f} MB, at most {self.policy.max_mb:g} MB")
        size = 0
        while True:
            with network_errors():  # only around the read: a full disk is no network error
                chunk = response.read1(1 << 16)
            if not chunk:
                return
            if (size := size + len(chunk)) > limit:
                raise FetchError(f"response larger than {self.policy.max_mb:g} MB")
            if time.monotonic() > deadline:
                raise RetryableError(f"response incomplete after {self.policy.timeout:g} s")
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            yield chunk


def _unavailable(host: str, why: str) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"no more requests to {host}: {why}; downloaded data are kept, run the same command again later"
    )
