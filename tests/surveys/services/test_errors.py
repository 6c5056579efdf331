"""Errors of requests: Retry-After, and bodies that were compressed without a request for it."""

from __future__ import annotations

import gzip
import zlib
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.surveys.services.errors import FetchError, RetryableError, decompress, retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("1.5", 1.5), (formatdate(1000 + 60, usegmt=True), 60), (formatdate(10, usegmt=True), 0), ("soon", None),
     ("", None), ("-3", None), ("Thu, 99 Jan", None)],
)  # fmt: skip
def test_retry_after(value, seconds):
    """Dates are taken by the server's clock, which may be wrong."""
    assert retry_after({"Retry-After": value, "Date": formatdate(1000, usegmt=True)}) == seconds


@settings(max_examples=15)
@given(st.binary(max_size=3000), st.integers(0, 3000), st.sampled_from([("gzip", 31), ("deflate", 15)]))
def test_bodies_are_complete_or_refused(body: bytes, limit: int, form: tuple[str, int]) -> None:
    encoding, bits = form
    compressed = zlib.compress(body, wbits=bits)
    if len(body) > limit:
        with pytest.raises(FetchError):
            decompress(compressed, encoding, limit)
    else:
        assert decompress(compressed, encoding, limit) == body
        with pytest.raises(RetryableError):
            decompress(compressed[:-4], encoding, limit)
    assert decompress(body, "identity", limit) == body


def test_gzip_members_and_unknown_encodings() -> None:
    one, two = gzip.compress(b"a" * 50), gzip.compress(b"b" * 50)
    assert decompress(one + two + bytes(8), "gzip", 100) == b"a" * 50 + b"b" * 50
    with pytest.raises(FetchError, match="MB"):
        decompress(one + two, "gzip", 99)
    for damaged in (one + b"rest", b"no gzip"):
        with pytest.raises(RetryableError):
            decompress(damaged, "gzip", 100)
    with pytest.raises(FetchError, match="'br'"):
        decompress(b"x", "br", 100)
