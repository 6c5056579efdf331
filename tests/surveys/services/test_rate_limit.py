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
pace = RateLimiter(Path(sys.argv[1]), "host", 1200, 900, threading.Event())
for _ in range(15):
    pace.wait()
    print(time.monotonic())
"""


def test_threads_and_processes_share_it(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    times = [float(t) for other in others for t in other.communicate()[0].split()]
    mine: list[float] = []
    pace = RateLimiter(tmp_path, "host", 1200, 900, threading.Event())

    def walk():
        for _ in range(5):
            pace.wait()
            mine.append(time.monotonic())

    threads = [threading.Thread(target=walk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread may be late to look at the clock, but nobody is early: n steps never take less than n intervals.
    for taken, count in ((times, 30), (mine, 20)):
        assert len(taken) == count
        assert max(taken) - min(taken) > (count - 2) * 0.05
    steps = np.diff(sorted(times))
    assert np.median(steps) >= 0.05


def test_hosts_do_not_wait_for_each_other(tmp_path):
    slow, other = (RateLimiter(tmp_path, host, 1, 900, threading.Event()) for host in ("a:80", "b:80"))
    assert slow._acquire() == other._acquire() == 0 and slow._acquire() > 50


def test_a_pause_holds_and_is_not_shortened(tmp_path):
    pace = RateLimiter(tmp_path, "host", 6000, 900, threading.Event())
    pace.pause(30)
    pace.pause(1)
    assert 29 < pace._acquire() <= 30
    assert 29 < RateLimiter(tmp_path, "host", 6000, 900, threading.Event())._acquire() <= 30, "another process keeps it"


def test_a_clock_that_started_anew(tmp_path):
    """The monotonic clock begins again with the machine; what was written before may lie far ahead."""
    (tmp_path / "host").write_bytes(struct.pack("<d", time.monotonic() + 5000))
    assert RateLimiter(tmp_path, "host", 60, 900, threading.Event())._acquire() == 0
    (tmp_path / "host").write_bytes(b"torn")
    assert RateLimiter(tmp_path, "host", 60, 900, threading.Event())._acquire() == 0


def test_stop(tmp_path):
    stopped = threading.Event()
    pace = RateLimiter(tmp_path, "host", 1, 900, stopped)
    pace.wait()
    stopped.set()
    with pytest.raises(GalscanError, match="stopped"):
        pace.wait()


def test_a_little_slower_than_allowed(tmp_path):
    assert RateLimiter(tmp_path, "host", 60, 900, threading.Event()).interval == pytest.approx(1 + SLACK)
