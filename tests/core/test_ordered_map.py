"""A few threads at work, and results in order."""

from __future__ import annotations

import threading
import time

import pytest

from galscan.core.ordered_map import in_order


def test_order_is_kept_and_nothing_is_done_twice():
    done: list[int] = []

    def work(n: int) -> int:
        time.sleep(0.01 * (n % 3))
        done.append(n)
        return n * n

    assert list(in_order(work, range(60), 4)) == [n * n for n in range(60)]
    assert sorted(done) == list(range(60)) and list(in_order(work, [], 4)) == []


def test_no_more_than_so_many_at_a_time():
    lock, at_work, most = threading.Lock(), [0], [0]

    def work(_: int) -> None:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        with lock:
            at_work[0] -= 1

    list(in_order(work, range(30), 3))
    assert most[0] == 3


def test_an_error_comes_where_its_result_would_have_and_ends_it():
    done: list[int] = []

    def work(n: int) -> int:
        done.append(n)
        if n == 5:
            raise ValueError("five")
        time.sleep(0.005)
        return n

    seen = []
    with pytest.raises(ValueError, match="five"):
        for n in in_order(work, range(1000), 2):
            seen.append(n)
    time.sleep(0.1)
    assert seen == [0, 1, 2, 3, 4] and len(done) < 60, "what was not begun is not done"


def test_whoever_stops_asking_stops_the_work():
    before = threading.active_count()
    results = in_order(lambda n: n, range(10**9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    limit = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert threading.active_count() <= before
