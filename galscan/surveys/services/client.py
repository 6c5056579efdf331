"""A rate-limited, retrying HTTP client with a cache; every request to a survey service is made by it.

Requests to a host are limited to `RequestPolicy.per_minute` over all threads and processes. Temporary failures are
retried with exponential backoff; after repeated failures a circuit breaker opens, and the host gets no more requests.
Only hosts of the policy get requests, also after a redirect. A body is used only if it is complete and not too large.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from galscan.core.errors import InputError
from galscan.core.files import atomic_path, storage_errors
from galscan.core.version import __version__
from galscan.surveys.services.cache import ABSENT_DAYS, Response, ResponseCache
from galscan.surveys.services.errors import (
    BUSY,
    RETRYABLE,
    FetchError,
    MissingError,
    RetryableError,
    ServiceUnavailableError,
    decompress,
    network_errors,
    retry_after,
)
from galscan.surveys.services.rate_limit import RateLimiter

REDIRECTS = (301, 302, 303, 307, 308)
MAX_PAUSE = 900.0  # seconds: a longer Retry-After opens the circuit breaker
FIRST_PAUSE = 1.0  # seconds before the first retry; doubled for each further one

T = TypeVar("T")


@dataclass(frozen=True)
class RequestPolicy:
    """Rate limit, retries and size limit of requests to a service.

    Attributes
    ----------
    hosts : tuple of str
        Allowed hosts, redirects included; with ``:port`` if it is not the default port.
    per_minute : float
        Requests per minute to each host, over all threads and processes of this data home.
    connections : int
        Concurrent requests.
    timeout : float
        Seconds for one response, from the first byte to the last.
    tries : int
        Attempts per request.
    give_up : int
        Requests failed in a row after which the circuit breaker opens, unless the host still responds to a request
        that succeeded before.
    max_mb : float
        Largest body, decompressed.
    """

    hosts: tuple[str, ...]
    per_minute: float = 60.0
    connections: int = 2
    timeout: float = 60.0
    tries: int = 5
    give_up: int = 10
    max_mb: float = 50.0


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
        self,
        policy: RequestPolicy,
        *,
        cache: Path,
        contact: str = "",
        token: str = "",
        response_folder: Path | None = None,
        retry_not_found: bool = False,
    ):
        if any(not c.isprintable() for c in contact + token):
            raise InputError("contact and token must be one line each, of printable characters")
        self.policy, self.token = policy, token
        self.agent = f"galscan/{__version__}" + (f" ({contact})" if contact else "")
        self.cache = ResponseCache(response_folder or cache / "answers", 0 if retry_not_found else ABSENT_DAYS)
        self._stopped = threading.Event()
        self._limiters = {
            h: RateLimiter(cache / "pace", h, policy.per_minute, MAX_PAUSE, self._stopped) for h in policy.hosts
        }
        self._lock = threading.Lock()
        self._managers: dict[str, Any] = {}
        self._failures = dict.fromkeys(policy.hosts, 0)
        self._responded = dict.fromkeys(policy.hosts, False)
        self._good: dict[str, tuple[str, Mapping[str, Any] | None]] = {}  # a request that succeeded, by host
        self._down: set[str] = set()
        self._probe_lock = threading.Lock()
        self._last_failure, self._last_message = "", 0.0

    def stop(self) -> None:
        """End the waits of all threads."""
        self._stopped.set()

    # ------------------------------------------------------------------------------------------------- public

    def get(
        self,
        url: str,
        read: Callable[[Response], T],
        form: Mapping[str, Any] | None = None,
        days: float | None = None,
    ) -> T:
        """Return the result of `read` for the response of `url`, which may come from the cache.

        `read` raises `FetchError` for a response that cannot be used; that response is not cached. A `form` (text, or
        (name, content) of a small file) is posted: for queries too long for a URL. Cached responses older than
        `days` are requested again.

        Raises
        ------
        FetchError
            If the request failed; others may succeed.
        ServiceUnavailableError
            If the circuit breaker of the host is open.
        InputError
            If the host is not one of the policy.
        """
        host = self._host(url)
        form_text = json.dumps(form, sort_keys=True) if form else ""
        if (cached := self.cache.get(url, form_text, days)) is not None:
            self._good.setdefault(host, (url, form))
            return read(cached)

        def attempt() -> T:
            response = self._request(url, form)
            value = read(response)
            self.cache.put(url, response, form_text)
            self._good[host] = url, form
            return value

        return self.retry(host, attempt)

    def fetch(self, url: str, path: Path, check: Callable[[Path], None]) -> None:
        """Download the file at `url` to `path` atomically, without caching it.

        `check` is called with the downloaded file, and raises `FetchError` if it cannot be used.

        Raises
        ------
        MissingError
            If there is no such file.
        FetchError, ServiceUnavailableError, InputError
            As in `get`.
        StorageError
            If it cannot be written.
        """
        host = self._host(url)

        def attempt() -> None:
            with atomic_path(path) as temporary:
                if self._request(url, path=temporary).absent:
                    raise MissingError("there is no such file")
                check(temporary)
            self._good[host] = url, None

        self.retry(host, attempt)

    def retry(self, host: str, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, retried after a `RetryableError`; failures count for the circuit breaker.

        For other clients (astroquery): `attempt` raises their errors as `translate_error` returns them.
        """
        for k in range(self.policy.tries):
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            if self._failures[host] >= self.policy.give_up and not self._probe(host):
                raise ServiceUnavailableError(
                    _unavailable(host, f"{self._failures[host]} failures in a row, the last was {self._last_failure}")
                )
            self._limiters[host].wait()
            try:
                value = attempt()
            except RetryableError as error:
                why, self._responded[host] = str(error), self._responded[host] or error.responded
                pause = max(error.pause or 0.0, FIRST_PAUSE * 2**k * random.uniform(0.5, 1.0))
                if pause > MAX_PAUSE:
                    self._last_failure, self._failures[host] = why, self.policy.give_up
                    self._down.add(host)
                    raise ServiceUnavailableError(
                        _unavailable(host, f"it requests a pause of {pause / 60:,.0f} minutes")
                    ) from None
                if k + 1 < self.policy.tries:
                    self._report_wait(host, why, pause)
                    self._limiters[host].pause(pause) if error.host_busy else self._stopped.wait(pause)
            except MissingError:  # a valid response, no failure of the host
                with self._lock:
                    self._failures[host], self._responded[host] = 0, True
                raise
            except FetchError as error:
                self._responded[host] = True
                self._count_failure(host, str(error))
                raise
            else:
                with self._lock:
                    self._failures[host], self._responded[host] = 0, True
                return value
        self._count_failure(host, why)
        if not self._responded[host]:  # wrong host name, or no network
            raise ServiceUnavailableError(_unavailable(host, f"no response ({why}); check the network connection"))
        raise FetchError(f"{why} ({self.policy.tries} tries)")

    # --------------------------------------------------------------------------------------------- one request

    def _host(self, url: str, redirected_from: str = "") -> str:
        """Return the host of `url`; raise an error if the policy does not allow it."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise FetchError(
                f"redirected to an invalid URL ({error})" if redirected_from else f"{url[:80]}: {error}"
            ) from None
        host = parts.netloc.lower()
        if parts.scheme not in ("http", "https") or host not in self.policy.hosts:
            if redirected_from:
                raise FetchError(f"redirected to {host or url[:60]}, which is not among the hosts of the survey file")
            raise InputError(
                f"the host of {url[:80]} is not among those of the survey file ({', '.join(self.policy.hosts)}); "
                "add it to hosts there if you trust it"
            )
        if redirected_from and urlsplit(redirected_from).scheme == "https" and parts.scheme == "http":
            raise FetchError(f"redirected from https to http at {host}")
        return host

    def _request(self, url: str, form: Mapping[str, Any] | None = None, path: Path | None = None) -> Response:
        """Send one request and follow redirects within the allowed hosts, each under the rate limit.

        With a `path` the body is written there without decompression, and not held in memory.
        """
        deadline = time.monotonic() + self.policy.timeout
        for hop in range(5):
            if hop:
                self._limiters[self._host(url)].wait()
            response = self._send(url, form)
            try:
                if response.status in REDIRECTS and (target := response.headers.get("Location")):
                    target = urljoin(url, target)
                    self._host(target, redirected_from=url)
                    url = target
                    continue
                if response.status in RETRYABLE:
                    pause = retry_after(response.headers)
                    raise RetryableError(f"HTTP {response.status}", pause, host_busy=response.status in BUSY)
                if path is not None and response.status == 200:
                    body = self._save(response, deadline, path)
                else:
                    body = self._body(response, deadline)
            finally:
                response.close()
            result = Response(
                url, response.status, response.headers.get("Content-Type", "").split(";")[0].lower(), body
            )
            if result.status not in (200, 404, 410):
                raise FetchError(f"HTTP {result.status}: {result.excerpt()}".rstrip(": "))
            return result
        raise FetchError("redirected more than 5 times")

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
                size = {"maxsize": self.policy.connections}
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, **size) if proxy else urllib3.PoolManager(**size)  # type: ignore[arg-type]
                )
            return self._managers[proxy]

    def _body(self, response: Any, deadline: float) -> bytes:
        limit, body = int(self.policy.max_mb * 1e6), b"".join(self._chunks(response, deadline))
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        return decompress(body, encoding, limit)

    def _save(self, response: Any, deadline: float, path: Path) -> bytes:
        """Write a body to a file without decompression: servers set Content-Encoding for files that are .gz."""
        with storage_errors(path), open(path, "wb") as file:
            for chunk in self._chunks(response, deadline):
                file.write(chunk)
        return b""

    def _chunks(self, response: Any, deadline: float) -> Iterator[bytes]:
        """Yield a body in chunks; check its size, its Content-Length and the deadline."""
        limit = int(self.policy.max_mb * 1e6)
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > limit:
            raise FetchError(f"Content-Length is {int(length) / 1e6:,.0f} MB, at most {self.policy.max_mb:g} MB")
        size = 0
        while True:
            with network_errors():  # only around the read: a full disk is no network error
                chunk = response.read1(1 << 16)
            if not chunk:
                break
            if (size := size + len(chunk)) > limit:
                raise FetchError(f"response larger than {self.policy.max_mb:g} MB")
            if time.monotonic() > deadline:
                raise RetryableError(f"response incomplete after {self.policy.timeout:g} s")
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            yield chunk
        if length.isdigit() and size != int(length):
            raise RetryableError("response truncated")

    # ----------------------------------------------------------------------------------------------- failures

    def _probe(self, host: str) -> bool:
        """Return whether the host still responds to a request that succeeded before, else open the circuit breaker."""
        with self._probe_lock:
            if self._failures[host] < self.policy.give_up:  # another thread probed meanwhile
                return True
            if host in self._down or host not in self._good:
                return False
            self._limiters[host].wait()
            try:
                self._request(*self._good[host])
            except (RetryableError, FetchError):
                self._down.add(host)
                return False
            self._failures[host] = 0
            return True

    def _count_failure(self, host: str, why: str) -> None:
        with self._lock:
            self._last_failure = why
            self._failures[host] += 1

    def _report_wait(self, host: str, why: str, pause: float) -> None:
        now = time.monotonic()
        if pause >= 5 and now - self._last_message > 10:
            self._last_message = now
            print(f"{host}: {why}; waiting {pause:,.0f} s", file=sys.stderr, flush=True)


def _unavailable(host: str, why: str) -> str:
    return f"no more requests to {host}: {why}; downloaded data are kept, run the same command again later"
