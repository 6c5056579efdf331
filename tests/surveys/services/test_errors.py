"""Errors of requests: which are retried, and which are not."""

from __future__ import annotations

import gzip
import zlib
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.surveys.services.errors import FetchError, RetryableError, decompress, retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("1.5", 1.5), (formatdate(1000 + 60, usegmt=True), 60), (formatdate(10, usegmt=True), 0), ("soon", None),
     ("", None), ("-3", None)],
)  # fmt: skip
def test_retry_after_in_all_its_forms(value, seconds):
    """Dates are taken by the server's clock, which may be wrong."""
    assert retry_after({"Retry-After": value, "Date": formatdate(1000, usegmt=True)}) == seconds


@given(st.text())
def test_any_retry_after_is_a_number_or_nothing(value: str) -> None:
    assert (seconds := retry_after({"Retry-After": value})) is None or seconds >= 0


@given(st.binary(max_size=5000), st.integers(0, 5000))
def test_what_is_unpacked_is_whole_or_refused(body: bytes, limit: int) -> None:
    packed = zlib.compress(body, wbits=31)
    if len(body) > limit:
        with pytest.raises(FetchError, match="decompress to more than"):
            decompress(packed, "gzip", limit)
    else:
        assert decompress(packed, "gzip", limit) == body
    assert decompress(body, "identity", limit) == body


def test_what_cannot_be_unpacked() -> None:
    with pytest.raises(FetchError, match="unexpected Content-Encoding 'br'"):
        decompress(b"x", "br", 100)
    with pytest.raises(RetryableError, match="gzipped"):
        decompress(b"no gzip", "gzip", 100)


def test_a_compressed_body_must_end_and_may_have_several_members():
    one, two = gzip.compress(b"a" * 50), gzip.compress(b"b" * 50)
    assert decompress(one + two + bytes(8), "gzip", 100) == b"a" * 50 + b"b" * 50
    with pytest.raises(RetryableError, match="end-of-stream"):
        decompress(one[:-4], "gzip", 100)
    with pytest.raises(FetchError, match="decompress to more than"):
        decompress(one + two, "gzip", 99)
    with pytest.raises(RetryableError, match="gzipped"):
        decompress(one + b"rest", "gzip", 100)
