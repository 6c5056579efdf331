"""The page people grade on, and the little server behind it: this machine only, and only for who has the token.

The page is one file without anything from elsewhere. It asks for the items (numbers and positions; neither score nor
rank), for their pictures, and sends one grade at a time, with a key of its own: it does not move on before the server
has answered that the grade is on disk, and sends it again, with the same key, when no answer comes. The grade that ends
a batch brings the next one: the answer says how many objects came, and the page asks for the items again.
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
from galscan.vetting.batches import extend, in_all
from galscan.vetting.gradebook import ARTEFACTS, GRADES, GradeBook, in_words
from galscan.vetting.sampling import BLANK

HOST = "127.0.0.1"
LARGEST = 20_000  # bytes of a request
POLICY = (
    "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; "
    "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Handler(tornado.web.RequestHandler):
    """What every answer has in common: who may ask, and what a browser may do with it."""

    book: GradeBook
    token: str

    def initialize(self, book: GradeBook, token: str, stores: Mapping[str, Store], title: str) -> None:
        self.book, self.token, self.stores, self.title = book, token, stores, title
        self.nonce = secrets.token_urlsafe(16)

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")  # the token is in the address
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        # A page elsewhere may send requests here, under a name of its own that leads here: neither is answered.
        here = (self.request.host or "").rpartition(":")[0]
        if here not in (HOST, "localhost"):
            raise tornado.web.HTTPError(403, reason="wrong host")
        origin = self.request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.request.host:
            raise tornado.web.HTTPError(403, reason="wrong origin")
        given = self.request.headers.get("X-Galscan-Token") or self.get_query_argument("token", "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise tornado.web.HTTPError(403, reason="wrong token: use the address that galscan vet printed")

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish({"error": self._reason})

    def asked(self) -> dict[str, Any]:
        """Return the JSON object of a request."""
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
        # What goes into the script is JSON in which nothing can close it.
        told = json.dumps({"title": self.title, "grades": GRADES, "artefacts": ARTEFACTS}).replace("<", "\\u003c")
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", POLICY.format(nonce=self.nonce))
        self.finish(text.replace("@nonce@", self.nonce).replace("@told@", told))


class _Items(_Handler):
    def get(self) -> None:
        grader = self.get_query_argument("grader", "")
        current = self.book.current()
        mine = current[current["grader"] == grader].set_index("item")
        items = [
            {"item": int(i), "ra": ra if np.isfinite(ra) else None, "dec": dec if np.isfinite(dec) else None}
            for i, ra, dec in self.book.items()[["item", "ra", "dec"]].astype(float).itertuples(index=False)
        ]
        given = mine[["grade", "artefact", "comment"]].to_dict("index")
        given_by_item = {str(k): v for k, v in given.items()}
        self.finish({"items": items, "given": given_by_item, "total": in_all(self.book)})


class _Picture(_Handler):
    def get(self, item: str) -> None:
        items = self.book.items()
        row = items[items["item"] == int(item)]
        if row.empty:
            raise tornado.web.HTTPError(404, reason="no such item")
        one = row.iloc[0]
        if one["kind"] == BLANK:
            size = next(iter(self.stores.values())).size
            image = np.random.default_rng(int(item)).integers(0, 14, (size, size, 3)).astype(np.uint8)
        else:
            image = self.stores[one["store"]].images(slice(int(one["row"]), int(one["row"]) + 1))[0]
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png", compress_level=1)
        self.set_header("Content-Type", "image/png")
        self.finish(buffer.getvalue())


class _Grade(_Handler):
    def post(self) -> None:
        asked = self.asked()
        names = ("key", "item", "grader", "grade", "artefact", "comment")
        try:
            if strange := set(asked) - set(names):
                raise InputError(f"unknown field '{sorted(strange)[0]:.40}'")
            new = self.book.record(*(asked.get(name, "") for name in names))
        except InputError as error:
            self.set_status(400)
            self.finish({"error": str(error)})
        else:
            self.finish({"saved": True, "new": new, "more": extend(self.book)})


class _Undo(_Handler):
    def post(self) -> None:
        self.finish({"item": self.book.undo(str(self.asked().get("grader", "")))})


class _Summary(_Handler):
    def get(self) -> None:
        graders, agreement = self.book.graders(), self.book.agreement()
        self.finish({"graders": graders, "agreement": agreement, "words": in_words(graders, agreement)})


def application(book: GradeBook, stores: Mapping[str, Store], token: str, title: str) -> tornado.web.Application:
    """Return the web application over a grade book.

    Parameters
    ----------
    stores : mapping of str to Store
        Of all items, by name.
    token : str
        Without it nothing is answered.
    """
    shared = {"book": book, "token": token, "stores": stores, "title": title}
    routes = {
        r"/": _Page, r"/api/items": _Items, r"/image/(\d{1,9})\.png": _Picture, r"/api/grade": _Grade,
        r"/api/undo": _Undo, r"/api/summary": _Summary,
    }  # fmt: skip
    return tornado.web.Application(
        [(path, handler, shared) for path, handler in routes.items()], log_function=lambda handler: None
    )


async def serve(
    app: tornado.web.Application, token: str, ports: Sequence[int], ready: Callable[[str, int], None]
) -> None:
    """Serve on this machine, at the first of `ports` that is free, until a signal comes.

    `ready` is told the address and the port.

    Raises
    ------
    InputError
        If none of the ports can be had.
    """
    server = tornado.httpserver.HTTPServer(app, max_body_size=LARGEST, max_buffer_size=LARGEST + 65536)
    for port in ports:
        try:
            sockets = tornado.netutil.bind_sockets(port, HOST)
            break
        except OSError as error:
            why = error.strerror or error
    else:
        raise InputError(f"--port {ports[-1]} cannot be had ({why}); leave it out and any free one is taken")
    server.add_sockets(sockets)
    taken = int(sockets[0].getsockname()[1])
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    ready(f"http://{HOST}:{taken}/?token={token}", taken)
    await ended.wait()
    server.stop()
    await server.close_all_connections()
