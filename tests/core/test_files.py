from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core import files
from galscan.core.errors import InputError, NotFoundError, StorageError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "Input/output"),
    ],
)
def test_a_failed_write_leaves_nothing_and_says_why(tmp_path, number, words):
    path = tmp_path / "file"
    with pytest.raises(StorageError, match=words) as error, files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert str(path) in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="run the same command again"):
        files.write_json(tmp_path / "a.json", {"a": 1})
    assert os.listdir(tmp_path) == []


def test_a_place_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        files.write_text(tmp_path / "file" / "below", "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(value=json_values)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


def test_json_that_is_none(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="not valid JSON"):
        files.read_json(tmp_path / "bad.json")
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6))
def test_digest_does_not_see_the_order(value):
    backwards = dict(reversed(value.items()))
    assert files.digest(value) == files.digest(backwards)
    key = next(iter(value))
    assert files.digest(value) != files.digest(value | {key: value[key] + 1})


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.dumps(files.digest({}))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("[Errno 28] No space left on device"), "the disk is full"),  # astropy: the number is in the words only
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),  # safetensors
        (OSError("something else"), "something else"),
    ],
)
def test_writers_that_tell_the_reason_in_words_only(tmp_path, error, words):
    with pytest.raises(StorageError, match=words), files.storage_errors(tmp_path):
        raise error


@pytest.mark.parametrize("error", [NotFoundError("gone"), ValueError("a bug")])
def test_what_is_no_failure_of_writing_passes_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, files.storage_errors(tmp_path):
        raise error
    assert caught.value is error
