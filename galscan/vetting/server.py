"""Web server of the grading page, for this machine only, with token authentication.

The page is a single file that loads nothing from elsewhere, unless its panel with Aladin Lite is opened. It requests
the items (numbers and positions; neither score nor rank) and their images, and sends one grade at a time with a unique
key. It waits until the server has confirmed that the grade is on disk, and otherwise sends it again with the same key.
When a grade completes a batch, the response has the number of objects added, and the page requests the items again.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files as resources
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tornado.httpserver
import tornado.netutil
import tornado.web
from PIL import Image

from galscan.core.errors import InputError
from galscan.store.layout import Store
from galscan.vetting.aladin import panel_script, sky_frame
from galscan.vetting.batches import extend, total_size
from galscan.vetting.gradebook import ARTEFACTS, GRADES, GradeBook, summary_lines
from galscan.vetting.sampling import BLANK

HOST = "127.0.0.1"
MAX_REQUEST = 20_000  # bytes
POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
    "script-src 'nonce-{nonce}'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SANDBOX = "sandbox allow-scripts; frame-ancestors 'self'"  # of the frame with Aladin Lite; see `aladin`


class _Handler(tornado.web.RequestHandler):
    """Base of all handlers: checks of host, origin and token, and response headers."""

    book: GradeBook
    token: str

    def initialize(self, book: GradeBook, token: str, stores: Mapping[str, Store], texts: Mapping[str, str]) -> None:
        self.book, self.token, self.stores, self.texts = book, token, stores, texts
        self.nonce = secrets.token_urlsafe(16)

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")  # the token is in the URL
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        # Reject cross-site requests (Origin) and DNS rebinding (Host).
        self.check_host()
        origin = self.request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.request.host:
            raise tornado.web.HTTPError(403, reason="wrong origin")
        token = self.request.headers.get("X-Galscan-Token") or self.get_query_argument("token", "")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise tornado.web.HTTPError(403, reason="wrong token: use the address that galscan vet printed")

    def check_host(self) -> None:
        if (self.request.host or "").rpartition(":")[0] not in (HOST, "localhost"):
            raise tornado.web.HTTPError(403, reason="wrong host")

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish({"error": self._reason})

    def json_body(self) -> dict[str, Any]:
        """Return the JSON object in the body of a request."""
        try:
            body = json.loads(self.request.body)
            if not isinstance(body, dict):
                raise ValueError("not an object")
        except ValueError:
            raise tornado.web.HTTPError(400, reason="not a JSON object") from None
        return body


class _Page(_Handler):
    def get(self) -> None:
        text = (resources("galscan.vetting") / "page.html").read_text(encoding="utf-8")
        # Escaped, so that the JSON cannot end the script element.
        config = json.dumps({**self.texts, "grades": GRADES, "artefacts": ARTEFACTS}).replace("<", "\\u003c")
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY.format(nonce=self.nonce))
        text = text.replace("@nonce@", self.nonce).replace("@panel@", panel_script())
        self.finish(text.replace("@config@", config))


class _Sky(_Handler):
    def prepare(self) -> None:
        # No token: the page has no data, and the script that it loads must not see one in its address.
        self.check_host()

    def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", SANDBOX)
        self.finish(sky_frame())


class _Items(_Handler):
    def get(self) -> None:
        grader = self.get_query_argument("grader", "")
        current = self.book.current().astype({"item": str})
        grades = current[current["grader"] == grader].set_index("item")[["grade", "artefact", "comment"]]
        items = [
            {"item": int(i), "ra": ra if np.isfinite(ra) else None, "dec": dec if np.isfinite(dec) else None}
            for i, ra, dec in self.book.items()[["item", "ra", "dec"]].astype(float).itertuples(index=False)
        ]
        self.finish({"items": items, "given": grades.to_dict("index"), "total": total_size(self.book)})


class _Image(_Handler):
    def get(self, item: str) -> None:
        items = self.book.items()
        row = items[items["item"] == int(item)]
        if row.empty:
            raise tornado.web.HTTPError(404, reason="no such item")
        entry = row.iloc[0]
        if entry["kind"] == BLANK:
            size = next(iter(self.stores.values())).size
            image = np.random.default_rng(int(item)).integers(0, 14, (size, size, 3)).astype(np.uint8)
        else:
            image = self.stores[entry["store"]].images(slice(int(entry["row"]), int(entry["row"]) + 1))[0]
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png", compress_level=1)
        self.set_header("Content-Type", "image/png")
        self.finish(buffer.getvalue())


class _Grade(_Handler):
    def post(self) -> None:
        body = self.json_body()
        names = ("key", "item", "grader", "grade", "artefact", "comment")
        try:
            if unknown := set(body) - set(names):
                raise InputError(f"unknown field '{sorted(unknown)[0]:.40}'")
            new = self.book.record(*(body.get(name, "") for name in names))
        except InputError as error:
            self.set_status(400)
            self.finish({"error": str(error)})
        else:
            self.finish({"saved": True, "new": new, "more": extend(self.book)})


class _Undo(_Handler):
    def post(self) -> None:
        self.finish({"item": self.book.undo(str(self.json_body().get("grader", "")))})


class _Summary(_Handler):
    def get(self) -> None:
        graders, agreement = self.book.graders(), self.book.agreement()
        self.finish({"graders": graders, "agreement": agreement, "words": summary_lines(graders, agreement)})


def application(
    book: GradeBook, stores: Mapping[str, Store], token: str, title: str, target: str = "", grader: str = ""
) -> tornado.web.Application:
    """Return the web application for a grade book; `stores` are those of all items, every request needs the `token`.

    The page asks for the `target`, and saves grades as those of `grader` until another name is entered.
    """
    texts = {"title": title, "target": target, "grader": grader}
    shared = {"book": book, "token": token, "stores": stores, "texts": texts}
    routes = {
        r"/": _Page, r"/sky": _Sky, r"/api/items": _Items, r"/image/(\d{1,9})\.png": _Image, r"/api/grade": _Grade,
        r"/api/undo": _Undo, r"/api/summary": _Summary,
    }  # fmt: skip
    return tornado.web.Application(
        [(path, handler, shared) for path, handler in routes.items()], log_function=lambda handler: None
    )


async def serve(
    app: tornado.web.Application, token: str, ports: Sequence[int], ready: Callable[[str, int], None]
) -> None:
    """Serve on this machine, at the first free port of `ports`, until SIGINT or SIGTERM.

    `ready` is called with address and port. If no port is free, it is an `InputError`.
    """
    server = tornado.httpserver.HTTPServer(app, max_body_size=MAX_REQUEST, max_buffer_size=MAX_REQUEST + 65536)
    for port in ports:
        try:
            sockets = tornado.netutil.bind_sockets(port, HOST)
            break
        except OSError as error:
            why = error.strerror or error
    else:
        raise InputError(f"--port {ports[-1]} is not available ({why}); omit it to use any free port")
    server.add_sockets(sockets)
    port = int(sockets[0].getsockname()[1])
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    ready(f"http://{HOST}:{port}/?token={token}", port)
    await stopped.wait()
    server.stop()
    await server.close_all_connections()
