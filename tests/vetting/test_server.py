from __future__ import annotations

import asyncio
import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from galscan.core.errors import InputError
from galscan.vetting import server
from galscan.vetting.gradebook import GradeBook
from tests.grading import served_here
from tests.vetting.test_gradebook import made

TOKEN = "a token that nobody guesses"
SCRIPT = "</script><script>alert(1)"
GOOD = {"key": "key-00000001", "item": 1, "grader": "ann", "grade": "A", "artefact": "", "comment": "hm"}


@pytest.fixture
def address(tmp_path, shared_store):
    path = made(tmp_path / "grades.sqlite", ids=[SCRIPT] * 10)
    with served_here(path, "f", {"sky": shared_store}, TOKEN, SCRIPT, SCRIPT, SCRIPT) as address:
        yield address


def request(address, path, body=None, **headers):
    """Return status, headers and bytes."""
    headers = {"X-Galscan-Token": TOKEN} | {k.replace("_", "-"): v for k, v in headers.items()}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=20) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def result(*args):
    return json.loads(request(*args)[2])


@pytest.mark.parametrize(
    "headers",
    [{"X_Galscan_Token": "wrong"}, {"X_Galscan_Token": ""}, {"Origin": "http://evil.example"},
     {"Host": "evil.example:80"}, {"Origin": "null"}],
)  # fmt: skip
def test_requests_without_token_or_from_elsewhere_are_refused(address, tmp_path, headers):
    for path in ("/", "/api/items", "/image/1.png", "/api/summary"):
        status, _, body = request(address, path, **headers)
        assert status == 403 and set(json.loads(body)) == {"error"}
    assert request(address, "/api/grade", GOOD, **headers)[0] == 403
    with GradeBook(tmp_path / "grades.sqlite", "f") as book:
        assert book.current().empty


def test_page_has_no_external_resources_and_escapes_names(address):
    status, headers, body = request(address, f"/?token={TOKEN.replace(' ', '%20')}", X_Galscan_Token="")
    text = body.decode()
    assert status == 200 and "<script>alert(1)" not in text and "\\u003c/script>\\u003cscript>alert(1)" in text
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in text and "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert nonce not in request(address, "/")[2].decode()  # another one each time
    assert not [external for external in ('src="http', "@import", "cdn") if external in text]


def test_items_show_neither_score_nor_rank_nor_stratum(address):
    response = result(address, "/api/items?grader=ann")
    assert len(response["items"]) == 10 and response["given"] == {} and response["total"] == 10
    assert {frozenset(i) for i in response["items"]} == {frozenset({"item", "ra", "dec"})}
    assert response["items"][9]["ra"] is None


def test_images_are_those_of_the_store_and_blank_frames_are_noise(address, shared_store):
    for item in (1, 5):
        status, headers, body = request(address, f"/image/{item}.png")
        assert status == 200 and headers["Content-Type"] == "image/png"
        expected = shared_store.images(slice(item - 1, item))[0]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), expected)
    assert np.asarray(Image.open(io.BytesIO(request(address, "/image/10.png")[2]))).max() < 14
    assert request(address, "/image/11.png")[0] == request(address, "/image/x.png")[0] == 404


def test_grade_is_on_disk_before_the_response_and_stored_once(address, tmp_path):
    assert result(address, "/api/grade", GOOD) == {"saved": True, "new": True, "more": 0}
    with GradeBook(tmp_path / "grades.sqlite", "f") as book:
        assert list(book.current()["grade"]) == ["A"]
    assert result(address, "/api/grade", GOOD) == {"saved": True, "new": False, "more": 0}
    assert result(address, "/api/items?grader=ann")["given"] == {"1": {"grade": "A", "artefact": "", "comment": "hm"}}
    assert result(address, "/api/summary")["graders"]["ann"]["graded"] == 1
    assert [result(address, "/api/undo", {"grader": "ann"})["item"] for _ in range(2)] == [1, None]


def test_invalid_and_huge_requests_are_refused(address):
    for body, message in (
        (b"{", "JSON"), (b"[1]", "JSON"), (b"\xff", "JSON"), (GOOD | {"item": 99}, "99"),
        (GOOD | {"item": True}, "True"), (GOOD | {"grader": ["ann"]}, "grader"), (GOOD | {"grade": None}, "grade"),
        (GOOD | {"rank": 1}, "'rank'"), ({}, "grader"),
    ):  # fmt: skip
        status, _, response = request(address, "/api/grade", body)
        assert status == 400 and message in json.loads(response)["error"]
    try:
        status = request(address, "/api/grade", b"x" * (server.MAX_REQUEST * 50))[0]
    except OSError:
        status = 400  # the server closes the connection
    assert status == 400 and request(address, "/api/items")[0] == 200


def test_port_in_use_is_refused(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"--port {port}"):
        asyncio.run(server.serve(server.tornado.web.Application(), TOKEN, [port], print))
