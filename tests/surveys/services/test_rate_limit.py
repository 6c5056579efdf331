"""Rate limiter: even spacing, shared by threads and processes, no burst at the start."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from galscan.core.errors import GalscanError
from galscan.surveys.services.rate_limit import SLACK, RateLimiter

SCRIPT = """
import sys, threading, time
from pathlib import Path
from galscan.surveys.services.rate_limit import RateLimiter
limiter = RateLimiter(Path(sys.argv[1]), "host", 1200, 900, threading.Event())
for _ in range(10):
    limiter.wait()
    print(time.monotonic())
"""


@pytest.fixture
def limiter(tmp_path):
    """Return a function that makes limiters of one folder."""

    def make(host: str = "host", per_minute: float = 60, stopped: threading.Event | None = None) -> RateLimiter:
        return RateLimiter(tmp_path, host, per_minute, 900, stopped or threading.Event())

    return make


def test_threads_and_processes_share_the_limit(limiter, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    of_processes = [float(t) for process in processes for t in process.communicate()[0].split()]
    of_threads: list[float] = []
    shared = limiter(per_minute=1200)

    def wait_often():
        for _ in range(5):
            shared.wait()
            of_threads.append(time.monotonic())

    threads = [threading.Thread(target=wait_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread may read the clock late, but none is early: n steps never take less than n intervals.
    for times in (of_processes, of_threads):
        assert len(times) == 20 and max(times) - min(times) > 18 * 0.05
    assert np.median(np.diff(sorted(of_processes))) >= 0.05


def test_hosts_have_limits_of_their_own(limiter):
    slow, other = limiter("a:80", 1), limiter("b:80", 1)
    assert slow._acquire() == other._acquire() == 0 and slow._acquire() > 50
    assert slow.interval == pytest.approx(60 * (1 + SLACK))


def test_a_pause_is_not_shortened_and_holds_for_others(limiter):
    first = limiter()
    first.pause(30)
    first.pause(1)
    assert 29 < first._acquire() <= 30 and 29 < limiter()._acquire() <= 30


@pytest.mark.parametrize("content", [struct.pack("<d", time.monotonic() + 5000), b"torn"], ids=["later", "damaged"])
def test_files_from_before_a_reboot_are_ignored(limiter, tmp_path, content):
    """The monotonic clock restarts with the machine; an old value may lie far ahead."""
    (tmp_path / "host").write_bytes(content)
    assert limiter()._acquire() == 0


def test_stop(limiter):
    stopped = threading.Event()
    stopping = limiter(per_minute=1, stopped=stopped)
    stopping.wait()
    stopped.set()
    with pytest.raises(GalscanError):
        stopping.wait()
