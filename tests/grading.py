"""Grading through the page: the server in a thread or in a process that is killed, and a real browser."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.web

from galscan.scanning.run import open_run
from galscan.vetting import server
from galscan.vetting.gradebook import FILE, GradeBook
from tests.chromium import chromium

ROOT = Path(__file__).parents[1]
KEYS = {"a": "A", "b": "B", "c": "C", "n": "not"}
EACH = 150  # grades, after which the next grader takes over
IDLE = "!busy && document.getElementById('status').textContent === ''"


def book(run: Path) -> GradeBook:
    return GradeBook(run / FILE, str(open_run(run).info.fingerprint))


@contextmanager
def served_here(path: Path, fingerprint: str, stores: Any, token: str, *texts: str) -> Iterator[str]:
    """Serve a grade book in a thread, with title, target and name of the grader; yield the address."""
    started, state = threading.Event(), {}

    async def serve() -> None:
        with GradeBook(path, fingerprint) as opened:
            app = server.application(opened, stores, token, *(texts or [""]))
            web = tornado.httpserver.HTTPServer(app, max_body_size=server.MAX_REQUEST)
            web.listen(0, address=server.HOST)
            state["port"] = next(iter(web._sockets.values())).getsockname()[1]
            state["loop"], state["stopped"] = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await state["stopped"].wait()
            web.stop()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://{server.HOST}:{state['port']}"
    finally:
        state["loop"].call_soon_threadsafe(state["stopped"].set)
        thread.join()


@contextmanager
def served(run: Path, **more: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command and return the process and the address it prints."""
    options = [f"--{name}={value}" for name, value in more.items()]
    command = [sys.executable, "-m", "galscan", "vet", str(run), "--no-browser", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def grade_with_kills(run: Path, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Give `count` grades through the page while the server is killed at random; count lost and doubled grades.

    Every other kill comes within thirty milliseconds of a key: while the grade is sent, written, or just confirmed.
    """
    chance = random.Random(seed)
    given: dict[tuple[str, int], str] = {}
    kills, pressing = 0, 0.0
    with chromium(folder) as page:
        page_is_open = False

        def press() -> None:
            grader, item, key = page.run("grader()"), page.run("items[at].item"), chance.choice("abcn")
            given[grader, item] = KEYS[key]
            page.press(key)

        while len(given) < count:
            with served(run, best=100, size=200) as (process, address):
                if not page_is_open:
                    page.open(address)
                    page_is_open = True
                page.wait(IDLE + " || !grader()", 60)  # for a grade being sent when the last server was killed
                for _ in range(min(chance.randrange(20, 120), count - len(given))):
                    grader = f"grader {len(given) // EACH}"
                    if page.run("grader()") != grader:
                        page.run(f"document.getElementById('grader').value = '{grader}', load()")
                    started = time.monotonic()
                    press()
                    page.wait(IDLE, 60)
                    pressing += time.monotonic() - started
                if len(given) < count and chance.random() < 0.5:
                    press()
                    time.sleep(chance.uniform(0, 0.03))
                process.kill()
                kills += 1
        with served(run):
            page.wait(IDLE, 60)
            with book(run) as opened:
                stored = {(g, i): grade for g, i, grade in opened.current()[["grader", "item", "grade"]].to_numpy()}
                twice = "SELECT count(*) - count(DISTINCT grader || '/' || item) FROM grades"  # nobody regraded
                (doubled,) = opened._db.execute(twice).fetchone()
    return {
        "grades": len(given), "kills": kills, "doubled": doubled,
        "lost": sum(stored.get(key) != grade for key, grade in given.items()),
        "grades_per_minute": round(60 * len(given) / pressing, 1),
    }  # fmt: skip
