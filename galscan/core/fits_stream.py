"""Streaming writer of FITS binary tables: `astropy.io.fits` would hold the table in memory, three times for text.

The header precedes the data, but its checksum depends on them, so it is written twice: first as a placeholder, and
again after the last row. Checksums are those of Appendix J of the FITS standard, version 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np
from astropy.io import fits

BLOCK = 2880  # bytes of a FITS block
_PUNCTUATION = [*range(0x3A, 0x41), *range(0x5B, 0x61)]


def structure(name: str, columns: Mapping[str, str], width: int, count: int) -> fits.Header:
    """Return the header of a table of `count` rows of `width` bytes; `columns` maps names to TFORM."""
    header = fits.Header()
    header["XTENSION"] = ("BINTABLE", "binary table extension")
    for keyword, value in (
        ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", width), ("NAXIS2", count), ("PCOUNT", 0), ("GCOUNT", 1),
        ("TFIELDS", len(columns)),
    ):  # fmt: skip
        header[keyword] = value
    for number, (column, form) in enumerate(columns.items(), 1):
        header[f"TTYPE{number}"] = column
        header[f"TFORM{number}"] = form
    header["EXTNAME"] = name
    return header


def write_table(handle: BinaryIO, header: fits.Header, records: Iterable[np.ndarray], when: str) -> None:
    """Write a binary-table extension at the end of `handle`.

    Parameters
    ----------
    header : Header
        Complete except for ``CHECKSUM`` and ``DATASUM``, which are added; ``NAXIS2`` is the number of rows.
    records : iterable of structured ndarray
        The rows in chunks, big-endian, ``NAXIS1`` bytes wide.
    when : str
        Time of writing, for the comment of the checksums.
    """
    header["CHECKSUM"] = ("0" * 16, f"HDU checksum updated {when}")
    header["DATASUM"] = ("0" * 10, f"data unit checksum updated {when}")
    start = handle.tell()
    handle.write(_bytes(header))
    sums, rest, written = 0, b"", 0
    for record in records:
        data = rest + record.tobytes()
        full = len(data) - len(data) % BLOCK
        sums = ones_sum(memoryview(data)[:full], sums)
        handle.write(memoryview(data)[:full])
        rest, written = data[full:], written + len(record)
    if written != header["NAXIS2"]:
        raise ValueError(f"{written} rows, but NAXIS2 is {header['NAXIS2']}")
    if rest:
        rest = rest.ljust(BLOCK, b"\0")
        sums = ones_sum(rest, sums)
        handle.write(rest)
    end = handle.tell()
    header["DATASUM"] = str(sums)
    header["CHECKSUM"] = encode(~ones_sum(_bytes(header), sums) & 0xFFFFFFFF)
    handle.seek(start)
    handle.write(_bytes(header))
    handle.seek(end)


def _bytes(header: fits.Header) -> bytes:
    data: bytes = header.tostring(sep="", endcard=True, padding=True).encode("ascii")
    return data


def ones_sum(data: bytes | memoryview, before: int = 0) -> int:
    """Return the 32-bit ones' complement sum of `data` (a multiple of 4 bytes), added to the sum `before`."""
    total = before + int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def encode(value: int) -> str:
    """Return the ASCII encoding of a 32-bit checksum: 16 letters and digits (FITS standard, Appendix J)."""
    columns = []
    for shift in (24, 16, 8, 0):
        byte = value >> shift & 0xFF
        letters = [byte // 4 + 0x30 + (byte % 4 if k == 0 else 0) for k in range(4)]
        while any(letter in _PUNCTUATION for letter in letters):  # one up, its neighbour down: the sum is unchanged
            for k in (0, 2):
                if letters[k] in _PUNCTUATION or letters[k + 1] in _PUNCTUATION:
                    letters[k] += 1
                    letters[k + 1] -= 1
        columns.append(letters)
    text = "".join(chr(columns[byte][letter]) for letter in range(4) for byte in range(4))
    return text[-1] + text[:-1]
