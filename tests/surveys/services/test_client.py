"""HTTP client, against a real server that fails on request."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from galscan.core.errors import InputError
from galscan.surveys.services import client as http
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.errors import FetchError, ServiceUnavailableError
from tests.services.loopback import Loopback

PICTURE = "/dr17/SkyServerWS/ImgCutout/getjpeg?ra=150&dec=2&scale=0.4&width=64&height=64"


def client(service: Loopback, tmp_path: Path, **settings: object) -> Client:
    policy = {"hosts": (service.host,), "per_minute": 60_000, "timeout": 1.0, "tries": 3} | settings
    return Client(RequestPolicy(**policy), cache=tmp_path, contact="me@example.org")  # type: ignore[arg-type]


def body(answer: Response) -> bytes:
    return answer.body


def picture(answer: Response) -> bytes:
    if not answer.body.startswith(b"\xff\xd8"):
        raise FetchError(f"no picture but {answer.excerpt()}")
    return answer.body


def test_an_answer_is_fetched_once(service, tmp_path):
    first = client(service, tmp_path).get(service.url + PICTURE, picture)
    assert first == client(service, tmp_path).get(service.url + PICTURE, picture) and len(service.log()) == 1
    fresh = Client(
        RequestPolicy(hosts=(service.host,), per_minute=60_000), cache=tmp_path, response_folder=tmp_path / "elsewhere"
    )
    assert fresh.get(service.url + PICTURE, picture) == first and len(service.log()) == 2


def test_a_form_is_posted_once_and_is_another_question_than_its_address(service, tmp_path):
    url, asker = f"{service.url}/xmatch/api/v1/sync", client(service, tmp_path)
    table = "galscan_row,ra,dec\n" + "0,1.0,2.0\n" * 2
    form = {
        "request": "xmatch", "distMaxArcsec": "3", "selection": "best", "RESPONSEFORMAT": "csv", "cat2": "simbad",
        "cat1": ("cat1.csv", table), "colRA1": "ra", "colDec1": "dec",
    }  # fmt: skip
    for _ in range(2):
        assert client(service, tmp_path).get(url, body, form).startswith(b"angDist,galscan_row")
    assert len(service.log()) == 1
    assert asker.get(url, body, form | {"distMaxArcsec": "4"}) and asker.get(url, lambda a: a.absent)
    assert asker.get(url, body, form, days=-1) and len(service.log()) == 4


def test_who_asks_is_said(service, tmp_path):
    assert client(service, tmp_path).agent == "galscan/0.1.0 (me@example.org)"
    with pytest.raises(InputError, match="one line"):
        Client(RequestPolicy(hosts=(service.host,)), cache=tmp_path, contact="me\r\nX-Evil: 1")


def test_a_file_comes_whole_or_not_at_all(service, tmp_path):
    (tmp_path / "site/sas").mkdir(parents=True)
    (tmp_path / "site/sas/f").write_bytes(bytes(range(256)) * 4000)
    service.frames(tmp_path / "site")
    asker, path = client(service, tmp_path, max_mb=1.1), tmp_path / "to" / "f"
    asker.fetch(f"{service.url}/sas/f", path, lambda file: None)
    assert path.read_bytes() == (tmp_path / "site/sas/f").read_bytes()

    def refuse(file: Path) -> None:
        raise FetchError(f"{file.stat().st_size} bytes of no use")

    for url, check, reason in (
        ("/sas/f", refuse, "1024000 bytes of no use"),
        ("/sas/g", refuse, "there is no such file"),
        ("/_mode/truncated/sas/f", refuse, r"response truncated \(3 tries\)"),
        ("/_mode/reset/sas/f", refuse, r"\(3 tries\)"),
    ):
        with pytest.raises(FetchError, match=reason):
            asker.fetch(service.url + url, tmp_path / "to" / "g", check)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["f"]


def test_nothing_there_is_an_answer_and_is_kept(service, tmp_path):
    asker = client(service, tmp_path)
    assert asker.get(f"{service.url}/nowhere", lambda a: a.absent)
    assert asker.get(f"{service.url}/nowhere", lambda a: a.status) == 404 and len(service.log()) == 1


@pytest.mark.parametrize("mode", ["429", "500", "503", "truncated", "longer", "slow", "drip", "reset"])
def test_what_may_heal_is_asked_again(service, tmp_path, mode):
    asker = client(service, tmp_path, timeout=0.5)
    asker.get(service.url + PICTURE, picture)
    with pytest.raises(FetchError, match=r"\(3 tries\)"):
        asker.get(f"{service.url}/_mode/{mode}{PICTURE}", picture)
    assert len(service.log()) == 4
    assert asker.get(f"{service.url}{PICTURE}&again", picture), "one failure is no reason to stop"


def test_it_heals(service, tmp_path):
    service.behave("500", "reset", "429", "truncated", share=0.5, seed=3)
    asker = client(service, tmp_path, tries=12)
    assert all(asker.get(f"{service.url}{PICTURE}&n={n}", picture) for n in range(30))
    assert len(service.log()) > 40


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("html", "no picture but Maintenance We are back soon"), ("bomb", "decompress to more than 2 MB")],
)
def test_what_will_not_heal_is_asked_once_and_not_kept(service, tmp_path, mode, reason):
    asker = client(service, tmp_path, max_mb=2.0)
    for _ in range(2):
        with pytest.raises(FetchError, match=reason):
            asker.get(f"{service.url}/_mode/{mode}{PICTURE}", picture)
    assert len(service.log()) == 2


def test_a_body_that_is_too_long_is_not_read(service, tmp_path):
    with pytest.raises(FetchError, match=r"Content-Length is 0 MB, at most 0.001 MB"):
        client(service, tmp_path, max_mb=0.001).get(service.url + PICTURE, picture)


def test_a_wrong_request_says_what_the_service_said(service, tmp_path):
    url = f"{service.url}/hips-image-services/hips2fits?hips=NO/SUCH&ra=1&dec=2&fov=0.1&width=64&height=64"
    with pytest.raises(
        FetchError, match=r'HTTP 400: {"title": "Bad Request", "description": "HiPS NO/SUCH not found"}'
    ):
        client(service, tmp_path).get(url, body)


def test_only_declared_hosts(service, tmp_path):
    asker = client(service, tmp_path)
    for url in (
        "https://example.org/x.jpg",
        f"ftp://{service.host}/x",
        f"http://me@{service.host}/",
        "file:///etc/passwd",
    ):
        with pytest.raises(InputError, match="is not among those of the survey file"):
            asker.get(url, body)
    with pytest.raises(FetchError, match=rf"redirected to localhost:{service.port}, which is not among the hosts"):
        asker.get(f"{service.url}/_mode/redirect{PICTURE}", picture)
    assert [mode for *_, mode in service.log()] == ["redirect"]


def test_redirects_within_the_house(service, tmp_path):
    asker = client(service, tmp_path)
    assert asker.get(f"{service.url}/_mode/around{PICTURE}", picture)
    with pytest.raises(FetchError, match="more than 5 times"):
        asker.get(f"{service.url}/_mode/loop{PICTURE}", picture)


def test_a_token_goes_to_the_first_host_alone(service, tmp_path, monkeypatch):
    sent = []
    asker = Client(
        RequestPolicy(hosts=(service.host, f"localhost:{service.port}"), per_minute=60_000),
        cache=tmp_path,
        token="secret",
    )
    manager = asker._manager(service.url)
    request = manager.request
    monkeypatch.setattr(manager, "request", lambda *a, **k: (sent.append((a[1], k["headers"])), request(*a, **k))[1])
    assert asker.get(f"{service.url}/_mode/redirect{PICTURE}", picture)
    assert [("localhost" in url, "Authorization" in headers) for url, headers in sent] == [(False, True), (True, False)]
    assert not any(b"secret" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_host_that_fails_again_and_again_is_left_alone(service, tmp_path):
    asker = client(service, tmp_path, give_up=3, tries=2)
    asker.get(service.url + PICTURE, picture)
    service.behave("500")
    for n in range(3):
        with pytest.raises(FetchError):
            asker.get(f"{service.url}{PICTURE}&n={n}", picture)
    with pytest.raises(
        ServiceUnavailableError, match="3 failures in a row, the last was HTTP 500; downloaded data are kept"
    ):
        asker.get(f"{service.url}{PICTURE}&n=3", picture)
    assert len(service.log()) == 7, "two tries each, and a last one for what had come before"
    with pytest.raises(ServiceUnavailableError):
        asker.get(f"{service.url}{PICTURE}&n=4", picture)
    assert len(service.log()) == 7
    assert asker.get(service.url + PICTURE, picture), "what is there already needs no host"


def test_a_place_where_everything_fails_is_no_dead_host(service, tmp_path):
    asker = client(service, tmp_path, give_up=3, tries=1)
    asker.get(service.url + PICTURE, picture)
    for n in range(20):
        with pytest.raises(FetchError):
            asker.get(f"{service.url}/_mode/500{PICTURE}&n={n}", picture)
    assert sum(not mode for *_, mode in service.log()) == 1 + 6
    fresh = client(service, tmp_path, give_up=3, tries=1)
    fresh.get(service.url + PICTURE, picture)
    for n in range(5):  # what is in the cache was had as well
        with pytest.raises(FetchError):
            fresh.get(f"{service.url}/_mode/html{PICTURE}&n={n}", picture)


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceUnavailableError, match="no response"):
            Client(RequestPolicy(hosts=(host,), per_minute=60_000, tries=2), cache=tmp_path).get(
                f"http://{host}/", body
            )


def test_retry_after_is_honoured(service, tmp_path):
    for mode in ("429-after", "429-date"):
        service.behave(after=1)
        asker = client(service, tmp_path / mode, tries=2)
        done: list[float] = []

        def bystander(asker=asker, done=done):
            time.sleep(0.3)
            asker.get(service.url + PICTURE, picture)
            done.append(time.monotonic())

        other = threading.Thread(target=bystander)
        other.start()
        with pytest.raises(FetchError, match="HTTP 429"):
            asker.get(f"{service.url}/_mode/{mode}{PICTURE}", picture)
        other.join()
        times = [t for t, *_ in service.log()]
        assert times[1] - times[0] > 0.95 and len(times) == 3, "everybody waits, the bystander as well"


def test_a_pause_that_is_too_long_ends_it(service, tmp_path):
    service.behave(after=7200)
    asker = client(service, tmp_path)
    with pytest.raises(ServiceUnavailableError, match="it requests a pause of 120 minutes"):
        asker.get(f"{service.url}/_mode/429-after{PICTURE}", picture)
    with pytest.raises(ServiceUnavailableError, match="no more requests to"):
        asker.get(service.url + PICTURE, picture)
    assert len(service.log()) == 1


def test_stop_ends_every_wait(service, tmp_path):
    asker = client(service, tmp_path, per_minute=1)
    asker.get(service.url + PICTURE, picture)
    threading.Timer(0.2, asker.stop).start()
    started = time.monotonic()
    with pytest.raises(Exception, match="stopped"):
        asker.get(f"{service.url}{PICTURE}&next", picture)
    assert time.monotonic() - started < 5


def test_a_proxy_is_used_where_the_environment_names_one(service, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", service.url)
    monkeypatch.setenv("no_proxy", "")
    asker = Client(RequestPolicy(hosts=("sky.example",), per_minute=60_000), cache=tmp_path)
    assert asker.get(f"http://sky.example{PICTURE}", picture)
    assert service.log()[0][1] == f"http://sky.example{PICTURE}"
