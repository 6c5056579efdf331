"""Tables of candidates that are read in pieces, as often as needed; the source of every export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.core.errors import InputError, first_line

PIECE = 16_384  # rows held at a time; with four times as many, writing a VOTable takes 1.5 times the memory
_BUFFER = 1 << 20  # bytes read ahead per column, so that a row group of a million rows is not held in memory


@dataclass(frozen=True)
class TableStream:
    """Rows of one schema, in order; `pieces` starts an iterator over tables of at most `PIECE` rows."""

    schema: pa.Schema
    count: int
    pieces: Callable[[], Iterator[pa.Table]]

    def __iter__(self) -> Iterator[pa.Table]:
        return self.pieces()

    @property
    def names(self) -> list[str]:
        return list(self.schema.names)

    def is_text(self, name: str) -> bool:
        kind = self.schema.field(name).type
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def head(self, count: int) -> TableStream:
        """Return the first `count` rows."""
        count = min(count, self.count)

        def pieces() -> Iterator[pa.Table]:
            remaining = count
            for piece in self.pieces() if count else ():
                yield piece.slice(0, remaining)
                remaining -= len(piece)
                if remaining <= 0:
                    return

        return TableStream(self.schema, count, pieces)

    def map(self, change: Callable[[pa.Table], pa.Table]) -> TableStream:
        """Apply a function to every piece; `change` keeps the number of rows, and also receives an empty table."""
        return TableStream(change(self.schema.empty_table()).schema, self.count, lambda: map(change, self.pieces()))

    def select(self, names: list[str]) -> TableStream:
        return self.map(lambda piece: piece.select(names))

    def widths(self) -> dict[str, int]:
        """Return the maximum length in ASCII characters of each text column; reads all rows once."""
        texts = [name for name in self.names if self.is_text(name)]
        widest = dict.fromkeys(texts, 0)
        for piece in self.select(texts) if texts else ():
            for name in texts:
                longest = pc.max(pc.binary_length(as_ascii(piece[name]))).as_py()
                widest[name] = max(widest[name], longest or 0)
        return widest


def from_frame(frame: pd.DataFrame) -> TableStream:
    """Return a stream of a table in memory."""
    schema = _plain(pa.Schema.from_pandas(frame, preserve_index=False))

    def pieces() -> Iterator[pa.Table]:
        for start in range(0, len(frame), PIECE):
            piece = frame.iloc[start : start + PIECE]
            yield pa.Table.from_pandas(piece, schema=schema, preserve_index=False)

    return TableStream(schema, len(frame), pieces)


def from_parquet(path: Path) -> TableStream:
    """Return a stream of a Parquet file, which holds one piece in memory; it may be found damaged while iterating."""

    def pieces() -> Iterator[pa.Table]:
        with _opened(path) as file:
            for batch in file.iter_batches(batch_size=PIECE):
                yield pa.Table.from_batches([batch]).cast(schema)

    with _opened(path) as file:
        schema = _plain(file.schema_arrow)
        return TableStream(schema, file.metadata.num_rows, pieces)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; raise an `InputError` if it cannot be read, now or in the block."""
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path} is damaged ({first_line(error)}); remove it and run the command that wrote it again"
        ) from error


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with text in place of dictionary and null types."""
    for k, field in enumerate(schema):
        if pa.types.is_null(field.type) or pa.types.is_dictionary(field.type):
            schema = schema.set(k, field.with_type(pa.string()))
    return schema


def as_ascii(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text as printable ASCII, as FITS requires; null becomes ''."""
    column = pc.fill_null(column.cast(pa.string()), "")
    if pc.any(pc.match_substring_regex(column, "[^ -~]")).as_py():
        column = pa.chunked_array([pa.array([ascii_text(text) for text in column.to_pylist()], pa.string())])
    return column


def ascii_text(text: str) -> str:
    """Return `text` as printable ASCII, with other characters escaped or replaced by '?'."""
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def has_position(piece: pa.Table) -> np.ndarray:
    """Return which rows have a position, bool of shape (n,)."""
    ra, dec = (piece[name].to_numpy() for name in ("ra", "dec"))
    return np.asarray(np.isfinite(ra) & np.isfinite(dec))
