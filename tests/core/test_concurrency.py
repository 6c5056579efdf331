"""Number of parallel processes, and the error when one is killed."""

from __future__ import annotations

import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from galscan.core import concurrency
from galscan.core.concurrency import WORKERS, default_workers, ordered_map, run_in_processes
from galscan.core.errors import GalscanError, InputError


def test_a_killed_process_is_an_error_with_a_remedy(monkeypatch):
    def broken(*given):
        raise BrokenProcessPool

    monkeypatch.setattr(concurrency.ProcessPoolExecutor, "submit", broken)
    with pytest.raises(GalscanError, match=r"one of 2 processes was killed.*same command.*GALSCAN_WORKERS=1"):
        run_in_processes(print, [()], 2, remedy="GALSCAN_WORKERS=1")


def test_the_default_is_the_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv(WORKERS)
    assert default_workers() >= 1
    monkeypatch.setenv(WORKERS, "3")
    assert default_workers() == 3
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv(WORKERS, wrong)
        with pytest.raises(InputError, match=f"GALSCAN_WORKERS is '{wrong}'"):
            default_workers()


def test_order_is_kept_and_nothing_is_done_twice():
    done: list[int] = []

    def work(n: int) -> int:
        time.sleep(0.01 * (n % 3))
        done.append(n)
        return n * n

    assert list(ordered_map(work, range(60), 4)) == [n * n for n in range(60)]
    assert sorted(done) == list(range(60)) and list(ordered_map(work, [], 4)) == []


def test_no_more_than_so_many_at_a_time():
    lock, at_work, most = threading.Lock(), [0], [0]

    def work(_: int) -> None:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        with lock:
            at_work[0] -= 1

    list(ordered_map(work, range(30), 3))
    assert most[0] == 3


def test_an_error_is_raised_in_place_of_its_result():
    done: list[int] = []

    def work(n: int) -> int:
        done.append(n)
        if n == 5:
            raise ValueError("five")
        time.sleep(0.005)
        return n

    results_ = []
    with pytest.raises(ValueError, match="five"):
        for n in ordered_map(work, range(1000), 2):
            results_.append(n)
    time.sleep(0.1)
    assert results_ == [0, 1, 2, 3, 4] and len(done) < 60, "what was not begun is not done"


def test_close_ends_the_threads():
    before = threading.active_count()
    results = ordered_map(lambda n: n, range(10**9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    limit = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= before
