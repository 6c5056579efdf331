"""Parquet; folders and HATS are in tests/strangers/test_tables.py."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core.files import file_digest
from galscan.surveys.table_files.parquet import digest, read_parquet


def test_units_of_fields(tmp_path: Path) -> None:
    field = pa.field("ra", pa.float64(), metadata={"unit": "rad", "ucd": "pos.eq.ra"})
    pq.write_table(pa.table([[1.0]], pa.schema([field])), tmp_path / "t.parquet")
    frame = read_parquet(tmp_path / "t.parquet")
    assert frame.attrs["unit"] == {"ra": "rad"} and frame.attrs["ucd"] == {"ra": "pos.eq.ra"}
    assert digest(tmp_path / "t.parquet") == file_digest(tmp_path / "t.parquet")


def test_integers_with_gaps_stay_integers(tmp_path: Path) -> None:
    pd.DataFrame({"id": pd.array([2**60 + 1, None], "Int64")}).to_parquet(tmp_path / "t.parquet")
    assert read_parquet(tmp_path / "t.parquet")["id"].iloc[0] == 2**60 + 1
