"""A real Chromium, controlled over its DevTools protocol: pages opened, keys pressed, scripts run."""

from __future__ import annotations

import asyncio
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
def chromium(folder: Path, *more: str) -> Iterator[Page]:
    """Start a browser with one empty page, with `more` of its options; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium (Debian: chromium)")
    arguments = [
        program,
        *QUIET,
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
        "--window-size=1300,900",
        *more,
    ]
    process = subprocess.Popen([*arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, until = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and "\n" in port_file.read_text()):
            assert process.poll() is None and time.monotonic() < until, "Chromium does not start"
            time.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as response:
            pages = [page for page in json.load(response) if page["type"] == "page"]
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

        async def request() -> dict[str, Any]:
            body = {"id": self._number, "method": method, "params": parameters}
            await self._socket.write_message(json.dumps(body))
            while True:
                message = json.loads(await self._socket.read_message())
                if message.get("id") == self._number:
                    return dict(message)
                if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.log.append(json.dumps(message["params"])[:400])

        response = self._loop.run_until_complete(asyncio.wait_for(request(), 60))
        assert "error" not in response, response
        return dict(response["result"])

    def open(self, address: str) -> None:
        self.command("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited if it is a promise."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < until, f"never true: {condition} ({self.log})"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release one key."""
        text = key if len(key) == 1 else ""
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")
