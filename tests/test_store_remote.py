"""Stores far away: over HTTP and on a real S3 server, anonymous and throttled, missing and unreachable."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import timedelta

import numpy as np
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.scanning import worker
from galscan.scanning.partitions import quarantine_path, scores_path
from galscan.scanning.plan import StoreRef
from galscan.store import layout
from galscan.store.layout import open_store
from tests.helpers import tiny_store
from tests.small_scans import make_job, mean_scorer, whole

obstore = pytest.importorskip("obstore", reason="needs the extra cloud")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("far")
    tiny_store(folder / "sky.zarr", 700, 16, survey="sky", unusable=3)
    return folder


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry = {"max_retries": 4, "retry_timeout": timedelta(seconds=5)}
    monkeypatch.setattr(layout, "RETRY", hurry | {"backoff": {"init_backoff": timedelta(milliseconds=10)}})


class Busy(http.server.SimpleHTTPRequestHandler):
    """Every third request is refused."""

    requests = 0

    def send_head(self):
        Busy.requests += 1
        if Busy.requests % 3 == 0:
            self.send_error(503, "Slow Down")
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


@pytest.fixture
def address(folder):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Busy, directory=str(folder))
    ) as server:  # fmt: skip
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_requests_to_a_busy_server_are_repeated(folder, address):
    far, near = open_store(f"{address}/sky.zarr/"), open_store(folder / "sky.zarr")
    assert (far.name, far.count, far.content_hash) == (near.name, near.count, near.content_hash)
    assert far.location == f"{address}/sky.zarr"
    np.testing.assert_array_equal(far.column("id"), near.column("id"))


def test_a_partition_is_scored_over_http(folder, address, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: mean_scorer)
    Busy.requests = -(
        10**6
    )  # SimpleHTTPRequestHandler knows no ranges: the whole shard is sent, and never refused here
    far, near = open_store(f"{address}/sky.zarr"), open_store(folder / "sky.zarr")
    worker.score_partition(whole(near), make_job(near, tmp_path / "near"))
    ref = StoreRef(far.name, far.location, far.content_hash, far.count)
    try:
        worker.score_partition(whole(far), make_job(near, tmp_path / "far", stores=(ref,)))
    except ConnectionError as error:
        pytest.skip(f"this server cannot send ranges: {error}")
    for path in (scores_path, quarantine_path):
        assert path(tmp_path / "far", 0).read_bytes() == path(tmp_path / "near", 0).read_bytes()


def test_missing_and_unreachable_stores(address):
    with pytest.raises(NotFoundError, match=r"no store at http.*/none\.zarr"):
        open_store(f"{address}/none.zarr")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/sky.zarr"
    with pytest.raises(InputError, match=r"cannot be read .*the network") as error:
        open_store(url)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="not a URL"):
        open_store("nothing://at/all")


def test_without_obstore_the_install_line_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InputError, match=r"pip install 'galscan\[cloud\]'"):
        open_store("s3://bucket/sky.zarr")


@pytest.fixture(scope="module")
def s3(folder):
    """A real S3 server in a process of its own, with the store in a bucket."""
    pytest.importorskip("moto.server", reason="needs moto[server], an S3 server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/galaxies", b"", method="PUT"), timeout=30)
                break
            except OSError:  # not yet
                assert time.monotonic() < until and server.poll() is None, "the S3 server did not start"
                time.sleep(0.2)
        for path in (folder / "sky.zarr").rglob("*"):
            if path.is_file():
                url = f"{endpoint}/galaxies/{path.relative_to(folder)}"
                public = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
                urllib.request.urlopen(urllib.request.Request(url, path.read_bytes(), public, method="PUT"), timeout=30)
        yield endpoint
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def anonymous(s3, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false")


def test_s3_is_read_anonymously_and_scored_alike(folder, anonymous, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: mean_scorer)
    far, near = open_store("s3://galaxies/sky.zarr"), open_store(folder / "sky.zarr")
    np.testing.assert_array_equal(far.images(slice(300, 400)), near.images(slice(300, 400)))
    worker.score_partition(whole(near), make_job(near, tmp_path / "near"))
    ref = StoreRef(far.name, far.location, far.content_hash, far.count)
    worker.score_partition(whole(far), make_job(near, tmp_path / "far", stores=(ref,)))
    for path in (scores_path, quarantine_path):
        assert path(tmp_path / "far", 0).read_bytes() == path(tmp_path / "near", 0).read_bytes()


def test_a_bucket_without_the_store(anonymous):
    with pytest.raises(NotFoundError, match=r"no store at s3://galaxies/none\.zarr"):
        open_store("s3://galaxies/none.zarr")


def test_a_server_that_goes_away_is_no_reason_for_quarantine(folder, anonymous, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: mean_scorer)
    near = open_store(folder / "sky.zarr")
    ref = StoreRef("sky", "s3://galaxies/sky.zarr", near.content_hash, near.count)
    opened = worker.open_store

    def then_gone(*given):
        store = opened(*given)
        monkeypatch.setattr(store, "column", functools.partial(_gone, store))
        return store

    def _gone(store, name, rows=None):
        with layout._remote_errors(store.path):
            raise obstore.exceptions.GenericError("error sending request\nmore")

    monkeypatch.setattr(worker, "open_store", then_gone)
    with pytest.raises(ConnectionError, match=r"cannot be read \(error sending request\)"):
        worker.score_partition(whole(near), make_job(near, tmp_path / "run", stores=(ref,)))
    assert not scores_path(tmp_path / "run", 0).exists()
