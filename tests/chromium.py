"""A real Chromium, driven over its DevTools protocol: pages opened, keys pressed, scripts run, pictures taken."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio",
)  # fmt: skip


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """Start a browser with one empty page; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: chromium)")
    arguments = [program, *QUIET, f"--user-data-dir={folder}", "--remote-debugging-port=0", "--window-size=1300,900"]
    process = subprocess.Popen([*arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = folder / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not (told.is_file() and "\n" in told.read_text()):
            assert process.poll() is None and time.monotonic() < until, "Chromium does not start"
            time.sleep(0.05)
        port = told.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        yield Page(pages[0]["webSocketDebuggerUrl"])
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Page:
    """One page of the browser."""

    def __init__(self, address: str):
        self._loop = asyncio.new_event_loop()

        async def connect() -> Any:
            return await websocket_connect(address, max_message_size=2**26)

        self._socket = self._loop.run_until_complete(connect())
        self._number = 0
        self.log: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its result."""
        self._number += 1
        number = self._number

        async def talk() -> dict[str, Any]:
            await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
            while True:
                said = json.loads(await self._socket.read_message())
                if said.get("id") == number:
                    return dict(said)
                if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.log.append(json.dumps(said["params"])[:400])

        said = self._loop.run_until_complete(asyncio.wait_for(talk(), 60))
        assert "error" not in said, said
        return dict(said["result"])

    def open(self, address: str) -> None:
        self.command("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression (of what it promises) in the page."""
        said = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < until, f"never true: {condition} ({self.log})"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release one key, as a hand does."""
        text = key if len(key) == 1 else ""
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))
