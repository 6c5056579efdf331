"""HTTP client, with a real server that fails on request."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

import galscan
from galscan.core.errors import InputError
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.errors import FetchError, ServiceUnavailableError

IMAGE = "/dr17/SkyServerWS/ImgCutout/getjpeg?ra=150&dec=2&scale=0.4&width=64&height=64"


@pytest.fixture
def new_client(service, tmp_path):
    def make(folder: str = "cache", response_folder: Path | None = None, **settings: object) -> Client:
        policy = {"hosts": (service.host,), "per_minute": 60_000, "timeout": 10.0, "tries": 3} | settings
        return Client(
            RequestPolicy(**policy), cache=tmp_path / folder, contact="me@example.org", response_folder=response_folder
        )

    return make


def body(response: Response) -> bytes:
    return response.body


def jpeg(response: Response) -> bytes:
    if not response.body.startswith(b"\xff\xd8"):
        raise FetchError(f"no image but {response.excerpt()}")
    return response.body


def test_responses_are_cached(service, new_client, tmp_path):
    first = new_client().get(service.url + IMAGE, jpeg)
    assert first == new_client().get(service.url + IMAGE, jpeg) and len(service.log()) == 1
    assert new_client(response_folder=tmp_path / "other").get(service.url + IMAGE, jpeg) == first
    assert new_client().get(service.url + IMAGE, jpeg, days=0) == first and len(service.log()) == 3
    client = new_client()
    assert client.get(f"{service.url}/nowhere", lambda r: r.absent)
    assert client.get(f"{service.url}/nowhere", lambda r: r.status) == 404 and len(service.log()) == 4


def test_forms_are_posted_and_cached_by_content(service, new_client):
    url, client = f"{service.url}/xmatch/api/v1/sync", new_client()
    table = "galscan_row,ra,dec\n" + "0,1.0,2.0\n" * 2
    form = {
        "request": "xmatch", "distMaxArcsec": "3", "selection": "best", "RESPONSEFORMAT": "csv", "cat2": "simbad",
        "cat1": ("cat1.csv", table), "colRA1": "ra", "colDec1": "dec",
    }  # fmt: skip
    for _ in range(2):
        assert new_client().get(url, body, form).startswith(b"angDist,galscan_row")
    assert len(service.log()) == 1
    assert client.get(url, body, form | {"distMaxArcsec": "4"}) and client.get(url, lambda r: r.absent)
    assert client.get(url, body, form, days=-1) and len(service.log()) == 4
    service.behave("500", "429-after", "truncated", "reset", share=0.5, seed=1, after=0)
    client = new_client(tries=12)
    assert all(client.get(url, body, form | {"distMaxArcsec": str(n)}) for n in range(5, 9))


def test_contact(new_client, service, tmp_path):
    assert new_client().agent == f"galscan/{galscan.__version__} (me@example.org)"
    with pytest.raises(InputError):
        Client(RequestPolicy(hosts=(service.host,)), cache=tmp_path, contact="me\r\nX-Evil: 1")


def test_files_are_complete_or_absent(service, new_client, tmp_path):
    (tmp_path / "site/sas").mkdir(parents=True)
    (tmp_path / "site/sas/f").write_bytes(bytes(range(256)) * 4000)
    service.frames(tmp_path / "site")
    client, path = new_client(max_mb=1.1), tmp_path / "to" / "f"
    client.fetch(f"{service.url}/sas/f", path, lambda file: None)
    assert path.read_bytes() == (tmp_path / "site/sas/f").read_bytes()

    def refuse(file: Path) -> None:
        raise FetchError(f"{file.stat().st_size} bytes refused")

    for url, check, reason in (
        ("/sas/f", refuse, "1024000 bytes"),
        ("/sas/g", refuse, "no such file"),
        ("/_mode/truncated/sas/f", refuse, "truncated"),
        ("/_mode/reset/sas/f", refuse, "3 tries"),
    ):
        with pytest.raises(FetchError, match=reason):
            client.fetch(service.url + url, tmp_path / "to" / "g", check)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["f"]


@pytest.mark.parametrize("mode", ["429", "500", "503", "truncated", "longer", "slow", "drip", "reset"])
def test_temporary_failures_are_retried(service, new_client, mode):
    client = new_client(timeout=1.0)
    client.get(service.url + IMAGE, jpeg)
    with pytest.raises(FetchError, match="3 tries"):
        client.get(f"{service.url}/_mode/{mode}{IMAGE}", jpeg)
    assert len(service.log()) == 4
    assert client.get(f"{service.url}{IMAGE}&again", jpeg), "one failure does not open the circuit breaker"


def test_recovery(service, new_client):
    service.behave("500", "reset", "429", "truncated", share=0.5, seed=3)
    client = new_client(tries=12)
    assert all(client.get(f"{service.url}{IMAGE}&n={n}", jpeg) for n in range(20))
    assert len(service.log()) > 25


@pytest.mark.parametrize(("mode", "reason"), [("html", "We are back soon"), ("bomb", "2 MB")])
def test_permanent_failures_are_neither_retried_nor_cached(service, new_client, mode, reason):
    client = new_client(max_mb=2.0)
    for _ in range(2):
        with pytest.raises(FetchError, match=reason):
            client.get(f"{service.url}/_mode/{mode}{IMAGE}", jpeg)
    assert len(service.log()) == 2


def test_bodies_above_the_limit_are_not_read(service, new_client):
    with pytest.raises(FetchError, match=r"0\.001 MB"):
        new_client(max_mb=0.001).get(service.url + IMAGE, jpeg)


def test_errors_quote_the_service(service, new_client):
    url = f"{service.url}/hips-image-services/hips2fits?hips=NO/SUCH&ra=1&dec=2&fov=0.1&width=64&height=64"
    with pytest.raises(FetchError, match=r"HTTP 400: .*HiPS NO/SUCH not found"):
        new_client().get(url, body)


def test_only_hosts_of_the_policy(service, new_client):
    client = new_client()
    for url in (
        "https://example.org/x", f"ftp://{service.host}/x", f"http://me@{service.host}/", "file:///etc/passwd",
    ):  # fmt: skip
        with pytest.raises(InputError, match=url):
            client.get(url, body)
    with pytest.raises(FetchError, match=f"localhost:{service.port}"):
        client.get(f"{service.url}/_mode/redirect{IMAGE}", jpeg)
    assert [mode for *_, mode in service.log()] == ["redirect"]
    assert client.get(f"{service.url}/_mode/around{IMAGE}", jpeg)
    with pytest.raises(FetchError, match="5 times"):
        client.get(f"{service.url}/_mode/loop{IMAGE}", jpeg)


def test_the_token_is_sent_to_the_first_host_only(service, tmp_path, monkeypatch):
    sent = []
    policy = RequestPolicy(hosts=(service.host, f"localhost:{service.port}"), per_minute=60_000)
    client = Client(policy, cache=tmp_path, token="secret")
    manager = client._manager(service.url)
    request = manager.request
    monkeypatch.setattr(manager, "request", lambda *a, **k: (sent.append((a[1], k["headers"])), request(*a, **k))[1])
    assert client.get(f"{service.url}/_mode/redirect{IMAGE}", jpeg)
    assert [("localhost" in url, "Authorization" in headers) for url, headers in sent] == [(False, True), (True, False)]
    assert not any(b"secret" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_circuit_breaker(service, new_client):
    client = new_client(give_up=3, tries=2)
    client.get(service.url + IMAGE, jpeg)
    service.behave("500")
    for n in range(3):
        with pytest.raises(FetchError):
            client.get(f"{service.url}{IMAGE}&n={n}", jpeg)
    with pytest.raises(ServiceUnavailableError, match=r"3 failures .* HTTP 500"):
        client.get(f"{service.url}{IMAGE}&n=3", jpeg)
    assert len(service.log()) == 7, "two tries each, and one of the request that succeeded"
    with pytest.raises(ServiceUnavailableError):
        client.get(f"{service.url}{IMAGE}&n=4", jpeg)
    assert len(service.log()) == 7
    assert client.get(service.url + IMAGE, jpeg), "cached"


def test_failures_at_some_urls_do_not_open_the_circuit_breaker(service, new_client):
    client = new_client(give_up=3, tries=1)
    client.get(service.url + IMAGE, jpeg)
    for n in range(20):
        with pytest.raises(FetchError):
            client.get(f"{service.url}/_mode/500{IMAGE}&n={n}", jpeg)
    assert sum(not mode for *_, mode in service.log()) == 1 + 6
    fresh = new_client(give_up=3, tries=1)
    fresh.get(service.url + IMAGE, jpeg)
    for n in range(5):  # a cached response is a request that succeeded, too
        with pytest.raises(FetchError):
            fresh.get(f"{service.url}/_mode/html{IMAGE}&n={n}", jpeg)


def test_no_server(new_client):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceUnavailableError, match="no response"):
            new_client(hosts=(host,), tries=2).get(f"http://{host}/", body)


@pytest.mark.parametrize("mode", ["429-after", "429-date"])
def test_retry_after_is_respected_by_all_threads(service, new_client, mode):
    service.behave(after=1)
    client = new_client(tries=2)
    other = threading.Timer(0.3, client.get, (service.url + IMAGE, jpeg))
    other.start()
    with pytest.raises(FetchError, match="HTTP 429"):
        client.get(f"{service.url}/_mode/{mode}{IMAGE}", jpeg)
    other.join()
    times = [t for t, *_ in service.log()]
    assert times[1] - times[0] > 0.95 and len(times) == 3


def test_a_long_retry_after_opens_the_circuit_breaker(service, new_client):
    service.behave(after=7200)
    client = new_client()
    with pytest.raises(ServiceUnavailableError, match="120 minutes"):
        client.get(f"{service.url}/_mode/429-after{IMAGE}", jpeg)
    with pytest.raises(ServiceUnavailableError):
        client.get(service.url + IMAGE, jpeg)
    assert len(service.log()) == 1


def test_stop_ends_waits(service, new_client):
    client = new_client(per_minute=1)
    client.get(service.url + IMAGE, jpeg)
    threading.Timer(0.2, client.stop).start()
    started = time.monotonic()
    with pytest.raises(Exception, match="stopped"):
        client.get(f"{service.url}{IMAGE}&next", jpeg)
    assert time.monotonic() - started < 30


def test_proxy_of_the_environment(service, new_client, monkeypatch):
    monkeypatch.setenv("http_proxy", service.url)
    monkeypatch.setenv("no_proxy", "")
    assert new_client(hosts=("sky.example",)).get(f"http://sky.example{IMAGE}", jpeg)
    assert service.log()[0][1] == f"http://sky.example{IMAGE}"
