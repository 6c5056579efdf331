"""Reader of Parquet: a file, a folder of files, or a HATS catalog."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.core.files import file_digest
from galscan.surveys.table_files.astropy_tables import read_astropy_parquet

SUFFIXES = (".parquet", ".pq", ".parq")
MARGINS = ("margin", "index", "association", "map")  # kinds of HATS catalogs that are not tables of objects
NORDER = "Norder="  # folders of the partitions of a HATS catalog
_NULLABLE = {
    pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype(), pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.float32(): pd.Float32Dtype(),
    pa.float64(): pd.Float64Dtype(), pa.string(): pd.StringDtype(), pa.large_string(): pd.StringDtype(),
}  # fmt: skip


def read_parquet(path: Path, without: Sequence[str] = ()) -> pd.DataFrame:
    """Read a Parquet file or a folder of them; an index of pandas becomes a column.

    ``attrs`` has ``unit`` and ``ucd`` by column, where the file has them, and ``positions`` of a HATS catalog. Columns
    of lists and structures are left out, and those named in `without`.

    Raises
    ------
    InputError
        If the folder holds no Parquet, files with different columns, or a HATS catalog of another kind than objects.
    """
    if path.is_file():
        if b"table_meta_yaml" in (pq.read_schema(path).metadata or {}):
            return read_astropy_parquet(path)
        return _frame(_flat(path, without=without))
    files, positions = object_files(path)
    if not files:
        raise InputError(f"folder {path} holds no Parquet file; give a table, or a folder of Parquet or HATS")
    tables: list[pa.Table] = []
    for file in files:
        tables.append(_flat(file, numbered=False, without=without))
        if set(tables[-1].column_names) != set(tables[0].column_names):
            different = sorted(set(tables[-1].column_names) ^ set(tables[0].column_names))[0]
            raise InputError(
                f"{file} and {files[0]} have different columns, as '{different}'; give a folder of one table"
            )
    frame = _frame(pa.concat_tables(tables, promote_options="permissive"))
    if positions and set(positions) <= set(frame.columns):
        frame.attrs["positions"] = positions
    return frame


def object_files(path: Path) -> tuple[list[Path], tuple[str, str] | None]:
    """Return the Parquet files with the objects, of a file, folder or HATS catalog, and its columns of positions."""
    if path.is_file():
        return [path], None
    root, positions = _hats(path)
    return parquet_files(root), positions


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder and below, in a fixed order; hidden files and those of Spark are ignored."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    shown = sorted(f for f in found if not any(p.startswith((".", "_")) for p in f.relative_to(folder).parts))
    # Files beside the partitions of a HATS catalog, as data_thumbnail.parquet, repeat some rows.
    return [f for f in shown if f.relative_to(folder).parts[0].startswith(NORDER)] or shown


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of the Parquet files in a folder."""
    if path.is_file():
        return file_digest(path)
    root = _hats(path)[0]
    lines = (f"{file.relative_to(root)} {file_digest(file)}" for file in parquet_files(root))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _hats(path: Path) -> tuple[Path, tuple[str, str] | None]:
    """Return the folder of the partitions, and the columns of positions that a HATS catalog names.

    Margins and thumbnails repeat rows of the partitions, and are not read. ``path`` is returned for other folders.
    """
    collection = _properties(path / "collection.properties")
    if primary := collection.get("hats_primary_table_url"):
        path = path / primary
    properties = _properties(path / "hats.properties") or _properties(path / "properties")
    if (path / "catalog_info.json").is_file():  # HiPSCat, from which HATS came
        properties = json.loads((path / "catalog_info.json").read_text(encoding="utf-8"))
    kind = str(properties.get("dataproduct_type", properties.get("catalog_type", "object"))).strip().lower()
    if kind in MARGINS:
        raise InputError(f"{path} is a HATS catalog of kind '{kind}'; give the catalog of the objects")
    columns = [properties.get(f"hats_col_{c}") or properties.get(f"{c}_column") for c in ("ra", "dec")]
    parts = path / "dataset" if properties and (path / "dataset").is_dir() else path
    if any(parts.glob(f"{NORDER}*")):
        return parts, (columns[0], columns[1]) if columns[0] and columns[1] else None
    return path, None


def _properties(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in lines if not key.startswith("#")}


def _flat(path: Path, numbered: bool = True, without: Sequence[str] = ()) -> pa.Table:
    """Read the columns of a file that hold one value a row; with its index if it has no name only if `numbered`."""
    schema = pq.read_schema(path)
    names = [field.name for field in schema if not pa.types.is_nested(field.type) and field.name not in without]
    # Not as a data set: a folder "Npix=3" would become a column.
    with pq.ParquetFile(path) as file:
        table = file.read(columns=names)
    for index in (schema.pandas_metadata or {}).get("index_columns", ()):
        # An index of equally spaced numbers is not stored as a column.
        if not isinstance(index, dict):
            continue
        if index["name"] is not None or (numbered and (index["start"] or index["step"] != 1)):
            name = str(index["name"] or "index")
            if name not in table.column_names:
                values = range(index["start"], index["stop"], index["step"])
                table = table.append_column(name, pa.array(values, pa.int64()))
    return table


def _frame(table: pa.Table) -> pd.DataFrame:
    """Return a table of Arrow as a data frame; the columns of an index of pandas are ordinary ones."""
    metadata = {field.name: field.metadata or {} for field in table.schema}
    frame = table.to_pandas(types_mapper=_NULLABLE.get, ignore_metadata=True)
    taken = {str(c) for c in frame.columns}
    frame = frame.rename(columns={old: new for old, new in _index_names(frame) if new not in taken})
    frame.attrs = {
        key: {name: value for name, value in _entries(metadata, key)} for key in ("unit", "ucd")
    }  # fmt: skip
    return frame


def _index_names(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for k in range(len(frame.columns)):
        if (name := str(frame.columns[k])).startswith("__index_level_"):
            yield name, "index" if name == "__index_level_0__" else name


def _entries(metadata: dict[str, Any], key: str) -> Iterator[tuple[str, str]]:
    for name, found in metadata.items():
        if value := found.get(key.encode()) or found.get(f"{key}s".encode()):
            yield name, value.decode("utf-8", "replace").strip()
