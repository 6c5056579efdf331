"""Grading as people do it: the command as a process of its own, the page in a real browser, and a power cut or two."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from galscan.scanning.run import open_run
from galscan.vetting.gradebook import FILE, GradeBook
from tests.chromium import chromium

ROOT = Path(__file__).parents[1]
KEYS = {"a": "A", "b": "B", "c": "C", "n": "not"}
EACH = 150  # grades, after which the next grader takes over
STILL = "!busy && said.textContent === ''"


def book(run: Path) -> GradeBook:
    return GradeBook(run / FILE, str(open_run(run).info.fingerprint))


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


def grade_under_fire(run: Path, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Give `count` grades through the page, the server killed at random; say how many were lost, how many doubled.

    Every other kill comes within thirty milliseconds of a key: while the grade is on its way, being written, or just
    answered.
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
                page.wait(STILL + " || !grader()", 60)  # a grade on its way when the last server died
                for _ in range(min(chance.randrange(20, 120), count - len(given))):
                    grader = f"grader {len(given) // EACH}"
                    if page.run("grader()") != grader:
                        page.run(f"document.getElementById('grader').value = '{grader}', load()")
                    started = time.monotonic()
                    press()
                    page.wait(STILL, 60)
                    pressing += time.monotonic() - started
                if len(given) < count and chance.random() < 0.5:
                    press()
                    time.sleep(chance.uniform(0, 0.03))
                process.kill()
                kills += 1
        with served(run):
            page.wait(STILL, 60)
            with book(run) as one:
                got = {(g, i): grade for g, i, grade in one.current()[["grader", "item", "grade"]].to_numpy()}
                twice = "SELECT count(*) - count(DISTINCT grader || '/' || item) FROM grades"  # nobody thought again
                with closing(one._db.execute(twice)) as cursor:
                    doubled = cursor.fetchone()[0]
    return {
        "grades": len(given), "kills": kills, "doubled": doubled,
        "lost": sum(got.get(one) != grade for one, grade in given.items()),
        "grades_per_minute": round(60 * len(given) / pressing, 1),
    }  # fmt: skip
