"""Reader of text tables as people have them: CSV and its relatives, with comments, any separator and encoding."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.columns.angles import plain
from galscan.surveys.columns.names import ROLES

EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "--", "<NA>", "\\N", "masked", "..."]  # missing values
HEAD = 1 << 18  # bytes on which the layout is found
SAMPLE = 20  # lines of them
USUAL = {plain(name) for names in ROLES.values() for name in names}
BLANKS = r"\s+"
SEPARATORS = (",", ";", "\t", "|", BLANKS)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass
class _Layout:
    """How the lines of a file are to be read."""

    names: list[str]
    separator: str
    skip: int  # physical lines before the first row
    units: dict[str, str] = field(default_factory=dict)
    decimal: str = "."


def opened(path: Path, member: str | None = None) -> IO[bytes]:
    """Open a file, decompressed, or one member of a zip file."""
    if member is not None:
        with zipfile.ZipFile(path) as archive:
            return io.BytesIO(archive.read(member))
    stream: IO[bytes] = _OPENERS.get(path.suffix.lower(), open)(path, "rb")
    return stream


def read_text(path: Path, member: str | None, separator: str, is_text: Callable[[str], bool]) -> pd.DataFrame:
    """Read a text table; units in the header are in ``attrs["unit"]``.

    Parameters
    ----------
    path : path
        A file, also compressed.
    member : str, optional
        Member of a zip file.
    separator : str
        The usual one of the file's suffix; another is used if only that divides the lines.
    is_text : callable
        Whether the column of a name holds ids or files, which are read as text: a float has too few digits for an id,
        and an object may be called "NA".
    """
    with opened(path, member) as stream:
        head = stream.read(HEAD)
    encoding = _encoding(head, path)
    layout = _layout(head.decode(encoding, "replace"), separator, len(head) == HEAD)
    try:
        frame = _read(path, member, encoding, layout, is_text)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise
        # Latin-1 has a character for each byte; most files that are not UTF-8 are of it or of its relatives.
        frame = _read(path, member, "latin-1", layout, is_text)
    frame.attrs = {"unit": layout.units}
    return frame


def header_of(path: Path, member: str | None, separator: str) -> list[str]:
    """Return the names of the columns of a text table."""
    with opened(path, member) as stream:
        head = stream.read(HEAD)
    return _layout(head.decode(_encoding(head, path), "replace"), separator, len(head) == HEAD).names


def _encoding(head: bytes, path: Path) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in head:
        raise InputError(f"catalog {path} cannot be read (it is binary, not text); check the file")
    return "utf-8-sig"


def _read(
    path: Path, member: str | None, encoding: str, layout: _Layout, is_text: Callable[[str], bool]
) -> pd.DataFrame:
    # Rows with one empty field more than the header, by a separator at their end, are read with a column for it.
    names = [*layout.names, _extra(layout.names)]
    text = [c for c in layout.names if is_text(c)]
    empty = {c: EMPTY for c in names if c not in text}
    stream = io.TextIOWrapper(opened(path, member), encoding=encoding, newline="")
    with stream, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # else fields beyond the header are lost
        frame = pd.read_csv(
            _without_comments(stream, path, member, encoding, layout.skip), header=None, names=names,
            dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=empty, low_memory=False, index_col=False,
            sep=layout.separator, decimal=layout.decimal, skipinitialspace=True,
        )  # fmt: skip
    if frame[names[-1]].notna().any():
        row = int(frame[names[-1]].notna().to_numpy().argmax()) + 1
        raise InputError(f"catalog {path}, row {row} has more fields than the header, {len(layout.names)}; correct it")
    return frame[layout.names]


def _extra(names: list[str]) -> str:
    return "_" * (1 + max(map(len, names)))


def _without_comments(stream: io.TextIOWrapper, path: Path, member: str | None, encoding: str, skip: int) -> Any:
    """Return the stream after `skip` lines; if lines further on begin with #, one without these."""
    for _ in range(skip):
        stream.readline()
    if encoding == "utf-16" or not _has_comment(path, member, skip):
        return stream
    return io.StringIO("".join(line for line in stream if not line.lstrip().startswith("#")))


def _has_comment(path: Path, member: str | None, skip: int) -> bool:
    with opened(path, member) as stream:
        for _ in range(skip):
            stream.readline()
        last = b"\n"
        while block := stream.read(1 << 22):
            if b"\n#" in last + block or b"\r#" in block:
                return True
            last = block[-1:]
    return False


# ------------------------------------------------------------------------------------------------------- the layout


def _layout(text: str, separator: str, cut: bool) -> _Layout:
    """Find header, separator, units and decimal sign in the first lines of a file."""
    lines = text.splitlines()
    if cut and len(lines) > 1:
        lines = lines[:-1]  # the last one may be incomplete
    content = [k for k, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    if not content:
        comments = [line.lstrip("# ") for line in lines if line.strip()]
        if comments:
            raise InputError(f"the catalog has no rows, only the comment '{comments[0][:60]}'; check the file")
        raise pd.errors.EmptyDataError("it is empty")
    sample = [lines[k] for k in content[: SAMPLE + 1]]
    separator = _separator(sample, separator)
    first = _fields(sample[0], separator)
    skip, start = content[0] + 1, 1
    names = _header_comment(lines[: content[0]], first, separator)
    if names is None:
        names = first
    else:
        skip, start = content[0], 0
    rows = [_fields(line, separator) for line in sample[start:]]
    names = _names(names, max((len(row) for row in rows[:1]), default=0))
    layout = _Layout(names, separator, skip)
    # VizieR has the units below the names, and below these lines of dashes.
    for n, row in enumerate(rows[:2]):
        if row and set("".join(row)) == {"-"}:
            layout.skip = content[start + n] + 1
            if n == 1:
                layout.units = {c: unit.strip().strip('"') for c, unit in zip(names, rows[0], strict=False)}
            rows = rows[n + 1 :]
            break
    values = [value for row in rows for value in row]
    if separator != "," and any(map(_DECIMAL_COMMA.fullmatch, values)):
        layout.decimal = "." if any("." in v for v in values if _NUMBER.fullmatch(v)) else ","
    return layout


def _separator(sample: list[str], usual: str) -> str:
    """Return the separator that divides the lines into the same number of fields."""
    for separator in (usual, *(s for s in SEPARATORS if s != usual)):
        counts = [len(_fields(line, separator)) for line in sample]
        if max(counts) < 2:
            continue
        most = counts[1] if len(counts) > 1 else counts[0]
        same = sum(abs(count - most) <= (separator != BLANKS) for count in counts)  # one more by a separator at the end
        if counts[0] >= 2 and (same == len(counts) if separator == BLANKS else same * 2 > len(counts)):
            return separator
    return usual


def _fields(line: str, separator: str) -> list[str]:
    if separator == BLANKS:
        return line.split()
    return [value.strip() for value in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]


def _header_comment(comments: list[str], first: list[str], separator: str) -> list[str] | None:
    """Return the names in a comment that is a header of the first row; None if that row is the header.

    Of several comments with as many fields the one with most usual names is taken, else the last.
    """
    if not any(map(_NUMBER.fullmatch, first)):
        return None
    headers = [_fields(line.lstrip("# \t"), separator) for line in reversed(comments)]
    headers = [names for names in headers if len(names) == len(first) and not any(map(_NUMBER.fullmatch, names))]
    return max(headers, key=lambda names: sum(plain(name) in USUAL for name in names), default=None)


def _names(names: list[str], fields: int) -> list[str]:
    """Return distinct names without the mark of a comment; one field more in the rows may be a nameless index."""
    names = [name.strip() for name in names]
    if names and names[0].startswith("#"):
        names[0] = names[0].lstrip("# ")
    if len(names) > 1 and names[-1] == "" and fields <= len(names):
        names = names[:-1]  # a separator at the end
    seen: dict[str, int] = {}
    distinct = []
    for k, name in enumerate(names):
        name = name or f"Unnamed: {k}"
        seen[name] = seen.get(name, -1) + 1
        distinct.append(f"{name}.{seen[name]}" if seen[name] else name)
    return distinct
