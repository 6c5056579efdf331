"""The server behind the page: who may ask, what is told, and that a grade is on disk before the answer."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from galscan.core.errors import InputError
from galscan.vetting import server
from galscan.vetting.gradebook import GradeBook
from tests.helpers import tiny_store
from tests.vetting.test_gradebook import made

TOKEN = "a token that nobody guesses"


@pytest.fixture
def store(tmp_path):
    return tiny_store(tmp_path / "sky.zarr", 40, 32, survey="sky")


@pytest.fixture
def address(tmp_path, store):
    """Serve in a thread; signals are for the main one, so it is stopped by its loop."""
    path, started, told = (
        made(tmp_path / "grades.sqlite", ids=["</script><script>alert(1)"] * 10),
        threading.Event(),
        {},
    )

    async def running():
        with GradeBook(path, "f") as book:
            app = server.application(book, {"sky": store}, TOKEN, "</script><script>alert(1)")
            web = server.tornado.httpserver.HTTPServer(app, max_body_size=server.MAX_REQUEST)
            web.listen(0, address=server.HOST)
            told["port"] = next(iter(web._sockets.values())).getsockname()[1]
            told["loop"], told["end"] = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await told["end"].wait()
            web.stop()

    thread = threading.Thread(target=asyncio.run, args=[running()])
    thread.start()
    assert started.wait(20)
    yield f"http://{server.HOST}:{told['port']}"
    told["loop"].call_soon_threadsafe(told["end"].set)
    thread.join()


def ask(address, path, body=None, **headers):
    """Return status, headers and bytes."""
    headers = {"X-Galscan-Token": TOKEN} | {k.replace("_", "-"): v for k, v in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


GOOD = {"key": "key-00000001", "item": 1, "grader": "ann", "grade": "A", "artefact": "", "comment": "hm"}


@pytest.mark.parametrize("path", ["/", "/api/items", "/image/1.png", "/api/summary"])
@pytest.mark.parametrize(
    "headers",
    [{"X_Galscan_Token": "wrong"}, {"Origin": "http://evil.example"}, {"Host": "evil.example:80"}, {"Origin": "null"}],
)
def test_without_token_or_from_elsewhere_nothing_is_answered(address, path, headers):
    status, _, body = ask(address, path, **headers)
    assert status == 403 and set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("headers", [{"X_Galscan_Token": ""}, {"Origin": "http://evil.example"}])
def test_nor_is_a_grade_taken(address, tmp_path, headers):
    assert ask(address, "/api/grade", GOOD, **headers)[0] == 403
    with GradeBook(tmp_path / "grades.sqlite", "f") as book:
        assert book.current().empty


def test_the_page_stands_alone_and_lets_nothing_in(address):
    status, headers, body = ask(address, f"/?token={TOKEN.replace(' ', '%20')}", X_Galscan_Token="")
    text = body.decode()
    assert status == 200 and "<script>alert(1)" not in text and "\\u003c/script>\\u003cscript>alert(1)" in text
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in text and "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert nonce not in ask(address, "/")[2].decode()  # another one each time
    for elsewhere in ('src="http', "@import", "cdn"):
        assert elsewhere not in text


def test_neither_score_nor_rank_nor_stratum_is_told(address):
    told = json.loads(ask(address, "/api/items?grader=ann")[2])
    assert len(told["items"]) == 10 and {frozenset(i) for i in told["items"]} == {frozenset({"item", "ra", "dec"})}
    assert told["items"][9]["ra"] is None and told["given"] == {} and told["total"] == 10


def test_pictures_are_those_of_the_store_and_blank_frames_are_empty(address, store):
    for item in (1, 5):
        status, headers, body = ask(address, f"/image/{item}.png")
        assert status == 200 and headers["Content-Type"] == "image/png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), store.images(slice(item - 1, item))[0])
    assert np.asarray(Image.open(io.BytesIO(ask(address, "/image/10.png")[2]))).max() < 14
    assert ask(address, "/image/11.png")[0] == 404 and ask(address, "/image/x.png")[0] == 404


def test_a_grade_is_on_disk_before_the_answer_and_one_sent_twice_is_there_once(address, tmp_path):
    assert json.loads(ask(address, "/api/grade", GOOD)[2]) == {"saved": True, "new": True, "more": 0}
    with GradeBook(tmp_path / "grades.sqlite", "f") as book:
        assert list(book.current()["grade"]) == ["A"]
    assert json.loads(ask(address, "/api/grade", GOOD)[2]) == {"saved": True, "new": False, "more": 0}
    assert json.loads(ask(address, "/api/items?grader=ann")[2])["given"] == {
        "1": {"grade": "A", "artefact": "", "comment": "hm"}
    }
    assert json.loads(ask(address, "/api/summary")[2])["graders"]["ann"]["graded"] == 1
    assert json.loads(ask(address, "/api/undo", {"grader": "ann"})[2]) == {"item": 1}
    assert json.loads(ask(address, "/api/undo", {"grader": "ann"})[2]) == {"item": None}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (GOOD | {"item": 99}, "no item 99"),
        (GOOD | {"item": True}, "no item True"),
        (GOOD | {"grader": ["ann"]}, "must be a string"),
        (GOOD | {"grade": None}, "must be a string"),
        (GOOD | {"rank": 1}, "unknown field 'rank'"),
        ({}, "must be a string|key|grader"),
    ],
)
def test_what_is_no_grade_is_refused_in_words(address, body, message):
    status, _, said = ask(address, "/api/grade", body)
    assert status == 400
    import re

    assert re.search(message, json.loads(said)["error"])


def test_a_huge_request_is_not_read(address):
    try:
        status = ask(address, "/api/grade", b"x" * (server.MAX_REQUEST * 50))[0]
    except (urllib.error.URLError, ConnectionError, OSError):
        status = 400  # the connection is closed on it
    assert status == 400
    assert ask(address, "/api/items")[0] == 200


def test_a_port_that_is_taken_is_said(address, tmp_path):
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match=rf"--port {port} is not available"):
        asyncio.run(server.serve(server.tornado.web.Application(), TOKEN, [port], print))
