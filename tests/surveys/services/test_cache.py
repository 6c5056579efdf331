"""The cache: what is there is right, what is damaged is not there, and it does not grow for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from galscan.core.errors import InputError, StorageError
from galscan.surveys.services.cache import Response, ResponseCache


def fill(folder: Path, count: int) -> ResponseCache:
    answers = ResponseCache(folder)
    for n in range(count):
        answers.keep(f"http://h/{n}", Response(f"http://h/{n}", 200, "image/jpeg", bytes([n]) * 1000))
    return answers


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_what_was_kept_comes_back(tmp_path):
    answers = fill(tmp_path, 3)
    assert answers.recall("http://h/1") == Response("http://h/1", 200, "image/jpeg", b"\1" * 1000)
    assert answers.recall("http://h/9") is None


@pytest.mark.parametrize("damage", [b"", b"{ half", b"[]\nbody", b"{}\n"])
def test_a_damaged_file_is_no_answer(tmp_path, damage):
    answers = fill(tmp_path, 1)
    whole = files(tmp_path)[0].read_bytes()
    for torn in (damage, whole[:-1], whole[:-1] + b"x"):
        files(tmp_path)[0].write_bytes(torn)
        assert answers.recall("http://h/0") is None


def test_addresses_do_not_become_paths(tmp_path):
    answers = ResponseCache(tmp_path / "a")
    url = "http://h/../../../../etc/passwd\0%00?x=" + "y" * 5000
    answers.keep(url, Response(url, 200, "", b"1"))
    assert answers.recall(url).body == b"1" and len(files(tmp_path / "a")) == len(files(tmp_path)) == 1


def test_the_oldest_go(tmp_path, monkeypatch):
    answers = fill(tmp_path, 10)
    for n in range(10):
        os.utime(answers._place(f"http://h/{n}"), (n, n))
    assert answers.prune() == 0
    monkeypatch.setenv("GALSCAN_CACHE_GB", "0.000005")
    assert answers.prune() == 7
    assert [n for n in range(10) if answers.recall(f"http://h/{n}")] == [7, 8, 9]
    monkeypatch.setenv("GALSCAN_CACHE_GB", "much")
    with pytest.raises(InputError, match="GALSCAN_CACHE_GB is 'much'"):
        answers.prune()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        ResponseCache(tmp_path / "file" / "answers")


def test_an_old_answer_is_none_to_who_wants_a_new_one(tmp_path):
    answers = fill(tmp_path, 1)
    os.utime(answers._place("http://h/0"), (time.time() - 90_000,) * 2)
    assert answers.recall("http://h/0") == answers.recall("http://h/0", days=2) is not None
    assert answers.recall("http://h/0", days=1) is None and answers.recall("http://h/0", "form") is None
