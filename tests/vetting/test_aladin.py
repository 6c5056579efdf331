"""The panel with Aladin Lite, in a real browser whose network requests are recorded."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from galscan.reports.scan import write_scan_report
from galscan.vetting import aladin
from tests.candidate_tables import candidates, write_run
from tests.chromium import chromium
from tests.grading import served_here
from tests.vetting.test_gradebook import made

TOKEN = "a-token-that-nobody-guesses"
OWN = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")  # requests of Chromium itself
STATUS = "document.querySelector('#sky [role=status]').textContent"
FRAME = "document.querySelector('#sky iframe')"
# What the panel calls of Aladin Lite; it reports each position, and what a script in the frame can reach.
STUB = """
const seen = (text) => { new Image().src = "ORIGIN/seen?" + encodeURIComponent(text); };
window.A = {
  init: Promise.resolve(), circle: () => ({}), graphicOverlay: () => ({ removeAll() {}, add() {} }),
  aladin(where, options) {
    try { seen("page:" + parent.document.title); } catch { seen("no access"); }
    seen("address:" + location.href + document.referrer);
    return { gotoRaDec(ra, dec) { seen(`at:${ra},${dec}`); }, addOverlay() {} };
  },
};
"""


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return a page of a browser without a network, and the hosts that it asks for."""
    hosts: list[str] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words = self.rfile.readline().decode("latin-1").split()
            host = urlsplit(words[1] if "://" in words[1] else f"//{words[1]}").hostname if len(words) > 1 else ""
            if host and not host.endswith(OWN):
                hosts.append(host)
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)) as port:
        options = [f"--proxy-server=127.0.0.1:{port}", "--enable-unsafe-swiftshader"]
        with chromium(tmp_path_factory.mktemp("chromium"), *options) as page:
            yield page, hosts


@pytest.fixture
def stub(monkeypatch) -> Iterator[list[str]]:
    """Serve a stand-in of Aladin Lite on loopback; return what it has seen."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/seen?"):
                seen.append(unquote(self.path.removeprefix("/seen?")))
            script = STUB.replace("ORIGIN", origin).encode() if self.path.endswith("/aladin.js") else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/javascript")
            self.send_header("Content-Length", str(len(script)))
            self.end_headers()
            self.wfile.write(script)

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        origin = f"http://127.0.0.1:{port}"
        text = aladin.sky_frame()
        for host in ("https://aladin.cds.unistra.fr", "https://*.cds.unistra.fr"):
            assert host in text
            text = text.replace(host, origin)
        for module in ("galscan.vetting.server", "galscan.reports.scan"):
            monkeypatch.setattr(f"{module}.sky_frame", lambda: text)
        yield seen


@pytest.fixture
def report(tmp_path):
    """Return a function that writes the report of a run; the last of its candidates has no position."""

    def write(**changes) -> str:
        frame = candidates(6, text=True).assign(**changes)
        return write_scan_report(write_run(tmp_path / "run", frame)).as_uri()

    return write


@pytest.fixture
def grading(tmp_path, shared_store):
    path = made(tmp_path / "grades.sqlite", ids=[str(k) for k in range(10)])
    with served_here(path, "f", {"sky": shared_store}, TOKEN, "a run", "dustlane", "ann") as address:
        yield f"{address}/?token={TOKEN}"


def wait_for(found) -> None:
    until = time.monotonic() + 30
    while not found():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["report", "grading"])
def test_nothing_is_loaded_before_it_is_opened_and_no_network_is_said(kind, browser, request):
    page, hosts = browser
    made = request.getfixturevalue(kind)
    page.open(made if isinstance(made, str) else made())
    if kind == "grading":
        page.wait("items.length === 10")
    time.sleep(0.5)
    assert hosts == [] and page.run(f"{FRAME} === null")
    page.run("document.getElementById('sky').open = true")
    page.wait(f"{STATUS}.includes('could not be loaded')")
    assert set(hosts) == {"aladin.cds.unistra.fr"} and page.run(f"{FRAME}.hidden")
    assert page.run("document.getElementById('sky').innerText.includes('could not be loaded')")
    page.run("document.getElementById('sky').open = false")
    page.wait(f"{FRAME} === null")
    hosts.clear()


def test_it_follows_the_graded_object_and_reaches_nothing_else(browser, stub, grading):
    page, hosts = browser
    page.open(grading)
    page.wait("items.length === 10")
    page.run("Object.assign(items[1], { ra: 20.5, dec: -3.25 })")
    page.run("document.getElementById('sky').open = true")
    page.wait(f"{STATUS} === '' && {FRAME}.hidden === false")
    for k in range(2):
        ra, dec = page.run(f"[items[{k}].ra, items[{k}].dec]")
        wait_for(lambda: [s for s in stub if s.startswith("at:")][-1:] == [f"at:{ra:g},{dec:g}"])  # noqa: B023
        page.press("ArrowRight")
    page.run("at = 9; show()")
    assert page.run("items[9].ra") is None and page.run(f"{FRAME}.hidden") and "position" in page.run(STATUS)
    page.run("at = 0; show()")
    page.wait(f"!{FRAME}.hidden && {STATUS} === ''")
    assert "no access" in stub and not any(TOKEN in text or text.startswith("page:") for text in stub)
    assert hosts == []
    assert not [entry for entry in page.log if "Content Security Policy" in entry]


def test_a_candidate_of_a_report_is_chosen(browser, stub, report):
    page, _ = browser
    page.open(report(ra=[10.5, 20.5, 30.5, np.nan, 50.5, 60.5], dec=[-1.5, 2.5, 3.5, np.nan, 5.5, 6.5]))
    page.run("document.getElementById('sky').open = true")
    wait_for(lambda: "at:10.5,-1.5" in stub)
    choose = "choice.selectedIndex = {}; choice.dispatchEvent(new Event('change'))"
    page.run(choose.format(3))
    assert page.run(f"{FRAME}.hidden") and "position" in page.run(STATUS)
    page.run(choose.format(2))
    wait_for(lambda: stub[-1] == "at:30.5,3.5")
    assert page.run(f"{FRAME}.hidden") is False


def test_a_report_without_positions_says_so(report, tmp_path):
    report(ra=np.nan, dec=np.nan)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "None of them has a position" in text


def test_what_is_shipped(tmp_path: Path) -> None:
    """One fixed version, from the official server; the frame may do nothing more."""
    text = aladin.sky_frame()
    assert "https://aladin.cds.unistra.fr/AladinLite/api/v3/3." in text and "latest" not in text
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'") and "http:" not in policy and "https: " not in policy
    assert 'setAttribute("sandbox", "allow-scripts")' in aladin.panel_script()
