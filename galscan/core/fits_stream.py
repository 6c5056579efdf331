"""A FITS binary table written row by row: `astropy.io.fits` would hold it whole, three times over for text.

The header comes first in the file and its checksum covers the data, so it is written twice: once to leave room, and
again when the last row is on disk. Sums are those of Appendix J of the FITS standard, version 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np
from astropy.io import fits

BLOCK = 2880  # bytes; every part of a FITS file is a multiple
_PUNCTUATION = [*range(0x3A, 0x41), *range(0x5B, 0x61)]


def structure(name: str, columns: Mapping[str, str], width: int, count: int) -> fits.Header:
    """Return the header of a table of `count` rows, `width` bytes each; `columns` are names with their TFORM."""
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
        Complete but for ``CHECKSUM`` and ``DATASUM``, which are added; it tells how many rows there are.
    records : iterable of structured ndarray
        The rows in pieces, big-endian, as wide as ``NAXIS1`` says.
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
        whole = len(data) - len(data) % BLOCK
        sums = ones_sum(memoryview(data)[:whole], sums)
        handle.write(memoryview(data)[:whole])
        rest, written = data[whole:], written + len(record)
    if written != header["NAXIS2"]:
        raise ValueError(f"{written} rows where the header says {header['NAXIS2']}")
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
    """Return the 32-bit ones' complement sum of `data` (a multiple of 4 bytes) and of what came `before`."""
    total = before + int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def encode(value: int) -> str:
    """Return 32 bits as the 16 letters and digits that add up to them."""
    columns = []
    for shift in (24, 16, 8, 0):
        byte = value >> shift & 0xFF
        letters = [byte // 4 + 0x30 + (byte % 4 if k == 0 else 0) for k in range(4)]
        while any(letter in _PUNCTUATION for letter in letters):  # one up and its neighbour down: the sum stays
            for k in (0, 2):
                if letters[k] in _PUNCTUATION or letters[k + 1] in _PUNCTUATION:
                    letters[k] += 1
                    letters[k + 1] -= 1
        columns.append(letters)
    text = "".join(chr(columns[byte][letter]) for letter in range(4) for byte in range(4))
    return text[-1] + text[:-1]
