from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from galscan.candidates import table_stream
from galscan.core.errors import InputError
from tests.candidate_tables import candidates


@pytest.fixture(params=["frame", "parquet"])
def table(request, tmp_path, monkeypatch):
    """The same 50 rows from memory and from a file, seven at a time."""
    monkeypatch.setattr(table_stream, "PIECE", 7)
    frame = candidates(50, text=True)
    if request.param == "frame":
        return frame, table_stream.from_frame(frame)
    frame.to_parquet(tmp_path / "c.parquet", index=False, row_group_size=20)
    return frame, table_stream.from_parquet(tmp_path / "c.parquet")


def test_pieces_can_be_read_twice(table):
    frame, found = table
    for _ in range(2):
        pieces = list(found)
        assert max(map(len, pieces)) <= 7 and sum(map(len, pieces)) == found.count == 50
        whole = pa.concat_tables(pieces).to_pandas()
        assert whole["objid"].tolist() == frame["objid"].tolist()
        np.testing.assert_array_equal(whole["ra"], frame["ra"])


@pytest.mark.parametrize("count", [0, 6, 7, 8, 50, 51])
def test_head(table, count):
    found = table[1].head(count)
    ranks = [rank for piece in found for rank in piece["rank"].to_pylist()]
    assert ranks == list(range(1, min(count, 50) + 1)) and found.count == len(ranks)


def test_map(table):
    found = table[1].map(lambda piece: piece.append_column("double", pa.array(piece["rank"].to_numpy() * 2)))
    assert found.schema.field("double").type == pa.int64() and found.count == 50
    assert [v for piece in found.select(["double"]) for v in piece["double"].to_pylist()] == list(range(2, 101, 2))


def test_widths(table):
    assert table[1].widths() == {"designation": 19, "objid": len("=HYPERLINK(0)"), "store": len("sdss")}


def test_text_as_ascii():
    column = pa.chunked_array([pa.array(["plain", None, "é\nx", ""])])
    assert table_stream.as_ascii(column).to_pylist() == ["plain", "", "\\xe9?x", ""]
    assert table_stream.as_ascii(pa.chunked_array([pa.array([], pa.string())])).to_pylist() == []


def test_empty_table():
    found = table_stream.from_frame(candidates().head(0))
    assert found.count == 0 and list(found) == [] and found.is_text("designation")
    assert found.widths() == {"designation": 0, "store": 0}


def test_categories_are_text():
    found = table_stream.from_frame(pd.DataFrame({"store": pd.Categorical(["a", "b", "a"])}))
    assert found.is_text("store") and next(iter(found))["store"].to_pylist() == ["a", "b", "a"]


def test_damaged_file(tmp_path):
    path = tmp_path / "c.parquet"
    candidates().to_parquet(path)
    data = path.read_bytes()
    for damaged in (data[:-30], data[:4] + bytes(596) + data[600:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"c\.parquet"):
            list(table_stream.from_parquet(path))
