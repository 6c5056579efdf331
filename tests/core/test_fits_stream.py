"""Streamed FITS tables equal those of astropy, checksums included."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from galscan.core import fits_stream

MODULUS = 2**32 - 1  # of the ones' complement sum
WHEN = "2023-11-14T22:13:20"


@given(st.binary(min_size=0, max_size=40_000), st.integers(0, 30))
def test_sums_are_the_same_in_however_many_pieces(data, pieces):
    data = data.ljust(-(-len(data) // 4) * 4, b"\0")
    cuts = sorted({0, len(data), *(4 * (k * len(data) // 4 // (pieces + 1)) for k in range(pieces + 1))})
    total = 0
    for start, stop in pairwise(cuts):
        total = fits_stream.ones_sum(data[start:stop], total)
    words = [int.from_bytes(data[k : k + 4], "big") for k in range(0, len(data), 4)]
    assert total <= MODULUS and total % MODULUS == sum(words) % MODULUS and (total > 0) == any(words)


@given(st.integers(0, 2**32 - 1))
def test_sixteen_letters_add_up_to_the_number(value):
    text = fits_stream.encode(value)
    assert len(text) == 16 and text.isascii() and text.isalnum()
    data = (text[1:] + text[:1]).encode()  # it was turned by one, to begin at a word in the header
    words = [int.from_bytes(data[k : k + 4], "big") - 0x30303030 for k in range(0, 16, 4)]
    assert sum(words) == value


@given(st.lists(st.integers(0, 900), max_size=6), st.integers(1, 13))
def test_astropy_reads_it_and_agrees_with_both_checksums(lengths, width):
    rng = np.random.default_rng(sum(lengths))
    dtype = np.dtype([("n", ">i8"), ("word", f"S{width}")])
    records = [np.zeros(n, dtype) for n in lengths]
    for record in records:
        record["n"] = rng.integers(-(2**62), 2**62, len(record))
        record["word"] = rng.integers(97, 123, len(record)).astype(np.uint8).view("S1")
    header = fits_stream.structure("T", {"n": "K", "word": f"{width}A"}, dtype.itemsize, sum(lengths))
    handle = io.BytesIO(fits.PrimaryHDU().header.tostring().encode())
    handle.seek(0, io.SEEK_END)
    fits_stream.write_table(handle, header, records, WHEN)
    assert len(handle.getvalue()) % 2880 == 0 and handle.tell() == len(handle.getvalue())
    with fits.open(io.BytesIO(handle.getvalue()), checksum=True) as hdus:
        assert hdus[1].verify_checksum() == hdus[1].verify_datasum() == 1
        assert np.array_equal(hdus[1].data["n"], np.concatenate([np.empty(0, ">i8"), *(r["n"] for r in records)]))


def test_rows_that_the_header_does_not_tell_of_are_no_table():
    header = fits.Header({"XTENSION": "BINTABLE", "NAXIS1": 8, "NAXIS2": 5})
    with pytest.raises(ValueError, match="4 rows, but NAXIS2 is 5"):
        fits_stream.write_table(io.BytesIO(), header, [np.zeros(4, ">i8")], WHEN)
