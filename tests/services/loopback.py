"""Start of the loopback services, and shipped surveys configured for them."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.home import shipped
from tests.services import sky
from tests.services.server import Handler, Server, State


@dataclass(frozen=True)
class Loopback:
    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def behave(self, *modes: str, share: float = 1.0, **more: Any) -> None:
        """Make a fraction of the responses fail from now on (none without modes), and clear the log."""
        self._post("_behave", {"modes": modes, "share": share} | more)

    def have(self, *objects: tuple[str, str, float, float, str]) -> None:
        """Set the objects of SIMBAD, NED and VizieR: (service, name, ra, dec, type)."""
        self._post("_objects", [dict(zip(("in", "name", "ra", "dec", "type"), o, strict=True)) for o in objects])

    def frames(self, folder: Path) -> None:
        """Serve the files of `folder`, by their paths."""
        self._post("_files", str(folder))

    def _post(self, path: str, value: Any) -> None:
        urllib.request.urlopen(f"{self.url}/{path}", json.dumps(value).encode()).read()

    def log(self) -> list[tuple[float, str, str]]:
        with urllib.request.urlopen(f"{self.url}/_log") as answer:
            return [tuple(entry) for entry in json.load(answer)]

    def count(self) -> int:
        with urllib.request.urlopen(f"{self.url}/_count") as answer:
            return int(answer.read())

    def survey(self, name: str, folder: Path, per_minute: float = 60_000, **settings: Any) -> Path:
        """Write the shipped survey `name` to `folder`, with this server in the place of all its hosts."""
        text = (shipped("catalogs/surveys") / f"{name}.toml").read_text(encoding="utf-8")
        text = re.sub(r"https://[^/\"]+", self.url, text)
        settings = {"hosts": [self.host], "per_minute": per_minute, "connections": 4, "timeout": 20.0} | settings
        for key, value in settings.items():
            line = f"{key} = {json.dumps(value)}"
            text, found = re.subn(rf"(?m)^{key} = .*$", lambda _, line=line: line, text)
            if not found:
                text = f"{line}\n{text}"
        path = folder / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path


@contextmanager
def loopback(objects: int = 2000) -> Iterator[Loopback]:
    """Run the services in threads of this process."""
    sky.jpeg(sky.picture(1.0, 2.0, 128))  # before the first request, which may have a short timeout
    Handler.state = State(objects)
    with _serve() as port:
        yield Loopback(port)


@contextmanager
def over_tls(folder: Path) -> Iterator[str | None]:
    """Run running services on a second port, over TLS; yield their host, or None without openssl.

    Their certificate is written to certificate.pem in `folder`.
    """
    if shutil.which("openssl") is None:
        yield None
        return
    files = [folder / "certificate.pem", folder / "key.pem"]
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
        "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1]),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    with _serve(context) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def _serve(context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def galaxies(path: Path, count: int, *, sure: Sequence[int] = (), seed: int = 0, **columns: Any) -> Path:
    """Write a table of positions all over the sky; surveys cover at least those of the rows `sure`."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, count).round(7), rng.uniform(-45, 80, count).round(7)
    for n in sure:
        while not sky.covered(ra[n], dec[n]):
            ra[n], dec[n] = round(rng.uniform(0, 360), 7), round(rng.uniform(-30, 80), 7)
    table = pd.DataFrame({"id": 10**17 + np.arange(count), "ra": ra, "dec": dec, "efigi_t": -2} | columns)
    table.to_csv(path, index=False)
    return path
