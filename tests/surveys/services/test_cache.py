"""HTTP cache: damaged entries are ignored, and its size is limited."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from galscan.core.errors import InputError, StorageError
from galscan.surveys.services.cache import ABSENT_DAYS, Response, ResponseCache


def fill(folder: Path, count: int) -> ResponseCache:
    answers = ResponseCache(folder)
    for n in range(count):
        answers.put(f"http://h/{n}", Response(f"http://h/{n}", 200, "image/jpeg", bytes([n]) * 1000))
    return answers


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_what_was_kept_comes_back(tmp_path):
    answers = fill(tmp_path, 3)
    assert answers.get("http://h/1") == Response("http://h/1", 200, "image/jpeg", b"\1" * 1000)
    assert answers.get("http://h/9") is None


@pytest.mark.parametrize("damage", [b"", b"{ half", b"[]\nbody", b"{}\n"])
def test_a_damaged_file_is_no_answer(tmp_path, damage):
    answers = fill(tmp_path, 1)
    whole = files(tmp_path)[0].read_bytes()
    for torn in (damage, whole[:-1], whole[:-1] + b"x"):
        files(tmp_path)[0].write_bytes(torn)
        assert answers.get("http://h/0") is None


def test_addresses_do_not_become_paths(tmp_path):
    answers = ResponseCache(tmp_path / "a")
    url = "http://h/../../../../etc/passwd\0%00?x=" + "y" * 5000
    answers.put(url, Response(url, 200, "", b"1"))
    assert answers.get(url).body == b"1" and len(files(tmp_path / "a")) == len(files(tmp_path)) == 1


def test_the_oldest_go(tmp_path, monkeypatch):
    answers = fill(tmp_path, 10)
    for n in range(10):
        os.utime(answers._path(f"http://h/{n}"), (n, n))
    assert answers.prune() == 0
    monkeypatch.setenv("GALSCAN_CACHE_GB", "0.000005")
    assert answers.prune() == 7
    assert [n for n in range(10) if answers.get(f"http://h/{n}")] == [7, 8, 9]
    monkeypatch.setenv("GALSCAN_CACHE_GB", "much")
    with pytest.raises(InputError, match="GALSCAN_CACHE_GB is 'much'"):
        answers.prune()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        ResponseCache(tmp_path / "file" / "answers")


def test_an_old_answer_is_none_to_who_wants_a_new_one(tmp_path):
    answers = fill(tmp_path, 1)
    os.utime(answers._path("http://h/0"), (time.time() - 90_000,) * 2)
    assert answers.get("http://h/0") == answers.get("http://h/0", days=2) is not None
    assert answers.get("http://h/0", days=1) is None and answers.get("http://h/0", "form") is None


def test_that_there_is_no_such_thing_is_not_kept_for_ever(tmp_path):
    cache, url = ResponseCache(tmp_path), "http://h/none"
    cache.put(url, Response(url, 404, "", b""))
    assert cache.get(url).absent
    (path,) = files(tmp_path)
    os.utime(path, (time.time() - 86_400 * (ABSENT_DAYS + 1),) * 2)
    assert cache.get(url) is None


def test_processes_that_share_it_do_not_disturb_each_other(tmp_path, monkeypatch):
    """The same response is written, and the cache is pruned, by several at a time."""
    monkeypatch.setenv("GALSCAN_CACHE_GB", "0")
    cache, url = ResponseCache(tmp_path), "http://h/1"

    def work(n: int) -> None:
        for _ in range(50):
            cache.put(url, Response(url, 200, "", b"1" * 1000))
            if n % 2:
                ResponseCache(tmp_path).prune()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not [p for p in files(tmp_path) if p.name.endswith(".tmp")]
