"""A rate-limited, retrying HTTP client with a cache; every request to a survey service is made by it.

Requests to a host are limited to `RequestPolicy.per_minute` over all threads and processes. Failures that may pass are
retried with exponential backoff; after repeated failures a circuit breaker opens, and the host gets no more requests.
Only hosts of the policy get requests, also after a redirect, and a body is used only after its size and end have been
checked.
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
from galscan.surveys.services.cache import Response, ResponseCache
from galscan.surveys.services.errors import (
    AGAIN,
    BUSY,
    FetchError,
    MissingError,
    RetryableError,
    ServiceUnavailableError,
    network_errors,
    retry_after,
    unpack,
)
from galscan.surveys.services.rate_limit import RateLimiter

REDIRECTS = (301, 302, 303, 307, 308)
PATIENCE = 900.0  # seconds: a host that asks for a longer pause is left alone
FIRST_PAUSE = 1.0  # seconds; each further pause is twice as long

T = TypeVar("T")


@dataclass(frozen=True)
class RequestPolicy:
    """How a service wants to be asked.

    Attributes
    ----------
    hosts : tuple of str
        All that may be asked, redirects included; with ``:port`` where it is not the usual one.
    per_minute : float
        Requests, of each host, over all threads and processes of this data home.
    connections : int
        Requests under way at a time.
    timeout : float
        Seconds that one answer may take, from the first byte to the last.
    tries : int
        How often one thing is asked for.
    give_up : int
        Things in a row that could not be had, after which the host is left alone, unless it still gives what it gave
        before.
    max_mb : float
        Largest body, unpacked.
    """

    hosts: tuple[str, ...]
    per_minute: float = 60.0
    connections: int = 2
    timeout: float = 60.0
    tries: int = 5
    give_up: int = 10
    max_mb: float = 50.0


class Client:
    """Asks for things with manners, and keeps them. One for all threads; `stop` ends every wait.

    Parameters
    ----------
    cache : path
        Folder of answers, and of the pace of each host.
    contact : str
        Who is asking (an address), told to the services.
    token : str
        Sent to the first of the hosts alone, never to one an answer sends us to.
    remember : path, optional
        Where answers are kept instead: a folder of one ingest, so that nothing is taken from others.
    """

    def __init__(
        self, policy: RequestPolicy, *, cache: Path, contact: str = "", token: str = "", remember: Path | None = None
    ):
        if any(not c.isprintable() for c in contact + token):
            raise InputError("contact and token are one line each of printable characters")
        self.policy, self.token = policy, token
        self.agent = f"galscan/{__version__}" + (f" ({contact})" if contact else "")
        self.answers = ResponseCache(remember or cache / "answers")
        self._stopped = threading.Event()
        self._pace = {
            h: RateLimiter(cache / "pace", h, policy.per_minute, PATIENCE, self._stopped) for h in policy.hosts
        }
        self._lock = threading.Lock()
        self._managers: dict[str, Any] = {}
        self._failures = dict.fromkeys(policy.hosts, 0)
        self._heard = dict.fromkeys(policy.hosts, False)
        self._good: dict[str, tuple[str, Mapping[str, Any] | None]] = {}  # what was had from each host
        self._down: set[str] = set()
        self._doubt = threading.Lock()
        self._last, self._said = "", 0.0

    def stop(self) -> None:
        """Make every thread that waits give up at once."""
        self._stopped.set()

    # ------------------------------------------------------------------------------------------ what is offered

    def get(
        self,
        url: str,
        read: Callable[[Response], T],
        form: Mapping[str, Any] | None = None,
        days: float | None = None,
    ) -> T:
        """Return what `read` makes of the answer to `url`, from the cache where it was asked for before.

        `read` raises `FetchError` for an answer that cannot be used; such a one is not kept. A `form` (text, or (name,
        content) of a small file) is posted: a question that is too long for an address. What was answered more than
        `days` ago is asked again.

        Raises
        ------
        FetchError
            If it cannot be had. The next may be.
        HostDown
            If the host is left alone.
        InputError
            If the host is not a declared one.
        """
        host = self._host(url)
        sent = json.dumps(form, sort_keys=True) if form else ""
        if (known := self.answers.recall(url, sent, days)) is not None:
            self._good.setdefault(host, (url, form))
            return read(known)

        def attempt() -> T:
            answer = self._ask(url, form)
            value = read(answer)
            self.answers.keep(url, answer, sent)
            self._good[host] = url, form
            return value

        return self.patiently(host, attempt)

    def fetch(self, url: str, path: Path, check: Callable[[Path], None]) -> None:
        """Bring the file at `url` to `path`, whole or not at all. Nothing of it is kept elsewhere.

        `check` looks at what came, and raises `FetchError` if it cannot be used.

        Raises
        ------
        Absent
            If there is no such file.
        FetchError, HostDown, InputError
            As in `get`.
        StorageError
            If it cannot be written.
        """
        host = self._host(url)

        def attempt() -> None:
            with atomic_path(path) as temporary:
                if self._ask(url, path=temporary).absent:
                    raise MissingError("there is no such file")
                check(temporary)
            self._good[host] = url, None

        self.patiently(host, attempt)

    def patiently(self, host: str, attempt: Callable[[], T]) -> T:
        """Return what `attempt` does, repeated where time may heal it, and count what fails.

        Clients of others (astroquery) know no manners: `attempt` raises `in_our_terms` what they raise.
        """
        for k in range(self.policy.tries):
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            if self._failures[host] >= self.policy.give_up and not self._alive(host):
                raise ServiceUnavailableError(
                    self._words(host, f"{self._failures[host]} failures in a row, at last {self._last}")
                )
            self._pace[host].wait()
            try:
                value = attempt()
            except RetryableError as error:
                why, self._heard[host] = str(error), self._heard[host] or error.heard
                pause = max(error.pause or 0.0, FIRST_PAUSE * 2**k * random.uniform(0.5, 1.0))
                if pause > PATIENCE:
                    self._last, self._failures[host] = why, self.policy.give_up
                    self._down.add(host)
                    raise ServiceUnavailableError(
                        self._words(host, f"it asks for a pause of {pause / 60:,.0f} minutes")
                    ) from None
                if k + 1 < self.policy.tries:
                    self._say(host, why, pause)
                    self._pace[host].pause(pause) if error.everybody else self._stopped.wait(pause)
            except MissingError:  # an answer, and no failure
                with self._lock:
                    self._failures[host], self._heard[host] = 0, True
                raise
            except FetchError as error:
                self._heard[host] = True
                self._failed(host, str(error))
                raise
            else:
                with self._lock:
                    self._failures[host], self._heard[host] = 0, True
                return value
        self._failed(host, why)
        if not self._heard[host]:  # nothing ever came from there: wrong address, or no network
            raise ServiceUnavailableError(self._words(host, f"nothing came from there ({why}; is there a network?)"))
        raise FetchError(f"{why} ({self.policy.tries} tries)")

    # --------------------------------------------------------------------------------------------- one request

    def _host(self, url: str, sent_by: str = "") -> str:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise FetchError(
                f"sent on to what is no address ({error})" if sent_by else f"{url[:80]}: {error}"
            ) from None
        host = parts.netloc.lower()
        if parts.scheme not in ("http", "https") or host not in self.policy.hosts:
            if sent_by:
                raise FetchError(f"sent on to {host or url[:60]}, which is not among the hosts of the survey's file")
            raise InputError(
                f"{url[:80]} is not of a host in the survey's file ({', '.join(self.policy.hosts)}); add it to hosts "
                "there if you trust it"
            )
        if sent_by and urlsplit(sent_by).scheme == "https" and parts.scheme == "http":
            raise FetchError(f"sent on from https to http at {host}")
        return host

    def _ask(self, url: str, form: Mapping[str, Any] | None = None, path: Path | None = None) -> Response:
        """Ask once, following redirects within the declared hosts; each hop waits its turn.

        With a `path` the body goes there as it is, and not into memory.
        """
        deadline = time.monotonic() + self.policy.timeout
        for hop in range(5):
            if hop:
                self._pace[self._host(url)].wait()
            response = self._send(url, form)
            try:
                if response.status in REDIRECTS and (target := response.headers.get("Location")):
                    target = urljoin(url, target)
                    self._host(target, sent_by=url)
                    url = target
                    continue
                if response.status in AGAIN:
                    pause = retry_after(response.headers)
                    raise RetryableError(f"HTTP {response.status}", pause, everybody=response.status in BUSY)
                if path is not None and response.status == 200:
                    body = self._save(response, deadline, path)
                else:
                    body = self._body(response, deadline)
            finally:
                response.close()
            answer = Response(
                url, response.status, response.headers.get("Content-Type", "").split(";")[0].lower(), body
            )
            if answer.status not in (200, 404, 410):
                raise FetchError(f"HTTP {answer.status}: {answer.words()}".rstrip(": "))
            return answer
        raise FetchError("sent on from one address to another more than 5 times")

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
        """Return the connections to a host, by way of the proxy that the environment names."""
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
        packed = response.headers.get("Content-Encoding", "identity").strip().lower()
        return unpack(body, packed, limit)

    def _save(self, response: Any, deadline: float, path: Path) -> bytes:
        """Write a body to a file, packed as it is: a Content-Encoding tells of the file, not of its way here."""
        with storage_errors(path), open(path, "wb") as file:
            for chunk in self._chunks(response, deadline):
                file.write(chunk)
        return b""

    def _chunks(self, response: Any, deadline: float) -> Iterator[bytes]:
        """Read a body to its end, within time and size."""
        limit = int(self.policy.max_mb * 1e6)
        promised = response.headers.get("Content-Length", "")
        if promised.isdigit() and int(promised) > limit:
            raise FetchError(f"{int(promised) / 1e6:,.0f} MB are offered, at most {self.policy.max_mb:g} MB are read")
        size = 0
        while True:
            with network_errors():  # not around what is done with a chunk: a full disk is no fault of the network
                chunk = response.read1(1 << 16)
            if not chunk:
                break
            if (size := size + len(chunk)) > limit:
                raise FetchError(f"more than {self.policy.max_mb:g} MB")
            if time.monotonic() > deadline:
                raise RetryableError(f"not all there after {self.policy.timeout:g} s")
            if self._stopped.is_set():
                raise ServiceUnavailableError("stopped")
            yield chunk
        if promised.isdigit() and size != int(promised):
            raise RetryableError("cut off before its end")

    # ----------------------------------------------------------------------------------------------- failures

    def _alive(self, host: str) -> bool:
        """Ask once for something that came before: a place where everything fails is no dead host."""
        with self._doubt:
            if self._failures[host] < self.policy.give_up:  # another thread was told so meanwhile
                return True
            if host in self._down or host not in self._good:
                return False
            self._pace[host].wait()
            try:
                self._ask(*self._good[host])
            except (RetryableError, FetchError):
                self._down.add(host)
                return False
            self._failures[host] = 0
            return True

    def _failed(self, host: str, why: str) -> None:
        with self._lock:
            self._last = why
            self._failures[host] += 1

    def _words(self, host: str, why: str) -> str:
        return f"{host} is left alone, {why}; what was fetched is kept: run the same command again later"

    def _say(self, host: str, why: str, pause: float) -> None:
        now = time.monotonic()
        if pause >= 5 and now - self._said > 10:
            self._said = now
            print(f"{host}: {why}; waiting {pause:,.0f} s", file=sys.stderr, flush=True)
