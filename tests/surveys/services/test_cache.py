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
    cache = ResponseCache(folder)
    for n in range(count):
        cache.put(f"http://h/{n}", Response(f"http://h/{n}", 200, "image/jpeg", bytes([n]) * 1000))
    return cache


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def age(cache: ResponseCache, url: str, days: float) -> None:
    os.utime(cache._path(url), (time.time() - 86_400 * days,) * 2)


def test_responses_are_cached_for_a_time(tmp_path):
    cache = fill(tmp_path, 3)
    assert cache.get("http://h/1") == Response("http://h/1", 200, "image/jpeg", b"\1" * 1000)
    assert cache.get("http://h/9") is None and cache.get("http://h/1", "form") is None
    age(cache, "http://h/1", 1.1)
    assert cache.get("http://h/1", days=2) is not None and cache.get("http://h/1", days=1) is None


def test_not_found_is_cached_for_a_shorter_time(tmp_path):
    cache, url = ResponseCache(tmp_path), "http://h/none"
    cache.put(url, Response(url, 404, "", b""))
    assert cache.get(url).absent and ResponseCache(tmp_path, absent_days=0).get(url) is None
    age(cache, url, ABSENT_DAYS + 1)
    assert cache.get(url) is None


@pytest.mark.parametrize("damage", [b"", b"{ half", b"[]\nbody", b"{}\n"])
def test_damaged_files_are_ignored(tmp_path, damage):
    cache = fill(tmp_path, 1)
    whole = files(tmp_path)[0].read_bytes()
    for content in (damage, whole[:-1], whole[:-1] + b"x"):
        files(tmp_path)[0].write_bytes(content)
        assert cache.get("http://h/0") is None


def test_urls_do_not_become_paths(tmp_path):
    cache = ResponseCache(tmp_path / "a")
    url = "http://h/../../../../etc/passwd\0%00?x=" + "y" * 5000
    cache.put(url, Response(url, 200, "", b"1"))
    assert cache.get(url).body == b"1" and len(files(tmp_path / "a")) == len(files(tmp_path)) == 1


def test_the_oldest_are_pruned(tmp_path, monkeypatch):
    cache = fill(tmp_path, 10)
    for n in range(10):
        age(cache, f"http://h/{n}", 10 - n)
    assert cache.prune() == 0
    monkeypatch.setenv("GALSCAN_CACHE_GB", "0.000005")
    assert cache.prune() == 7
    assert [n for n in range(10) if cache.get(f"http://h/{n}")] == [7, 8, 9]
    monkeypatch.setenv("GALSCAN_CACHE_GB", "much")
    with pytest.raises(InputError, match="much"):
        cache.prune()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        ResponseCache(tmp_path / "file" / "answers")


def test_concurrent_writes_and_pruning(tmp_path, monkeypatch):
    monkeypatch.setenv("GALSCAN_CACHE_GB", "0")
    cache, url = ResponseCache(tmp_path), "http://h/1"

    def work(n: int) -> None:
        for _ in range(20):
            cache.put(url, Response(url, 200, "", b"1" * 1000))
            if n % 2:
                cache.prune()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert not [p for p in files(tmp_path) if p.name.endswith(".tmp")]
