"""The one door to catalogs: reading, columns by their usual names and UCDs, ids, labels.

Names of columns, positions, ids and angles are in `galscan.surveys.columns`, readers of files in
`galscan.surveys.table_files`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.labels.columns import read_answers
from galscan.labels.schema import load_schema
from galscan.surveys.columns import angles
from galscan.surveys.columns.angles import plain
from galscan.surveys.columns.names import COMPOSITE_IDS, PREFERRED, ROLES, SUBFOLDER, by_ucd, columns_of, find_pairs
from galscan.surveys.columns.positions import named_column, position_columns
from galscan.surveys.table_files import parquet
from galscan.surveys.table_files.reading import read_file

ANGLES = ("ra", "dec", "radius", "pixel_scale")


@dataclass(frozen=True)
class Catalog:
    """A table file, and what the user says about it.

    Attributes
    ----------
    path : path, optional
        None for the usual file of a folder of images.
    table : str, optional
        Name or number of the table, of a file with several.
    position_unit : str, optional
        Unit of the positions, as ``hour,deg`` or ``rad``; it takes precedence over that of the file.
    """

    path: str | os.PathLike[str] | None = None
    table: str | None = None
    position_unit: str | None = None

    def __post_init__(self) -> None:
        if self.position_unit is not None:
            angles.parse_position_unit(self.position_unit)

    @classmethod
    def of(cls, catalog: Catalog | str | os.PathLike[str] | None) -> Catalog:
        """Return a catalog of a path, or `catalog` itself; its path is absolute."""
        given = catalog if isinstance(catalog, Catalog) else cls(catalog)
        path = Path(given.path).expanduser().absolute() if given.path is not None else None
        return cls(path, given.table, given.position_unit)

    def at(self, path: Path) -> Catalog:
        """Return the same of another file."""
        return Catalog(path, self.table, self.position_unit)

    def describe(self) -> dict[str, str]:
        """Return what is not in the file, for the provenance of a store."""
        given = {"catalog_table": self.table, "position_unit": self.position_unit}
        return {key: value for key, value in given.items() if value is not None}


def read_table(catalog: Catalog | Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a catalog; see `galscan.surveys.table_files.reading.read_file` for the formats.

    Columns that may hold ids or files, and those named in `columns`, are read as text from CSV and as exact integers
    elsewhere, because a float has too few digits for an SDSS objID. ``A+B`` as the column of the id joins columns;
    OBJID of the Legacy Surveys is joined with RELEASE and BRICKID.
    """
    catalog = Catalog.of(catalog)
    parts = [part for name in columns.values() for part in (name, *name.split("+"))]
    text = {plain(c) for c in (*ROLES["id"], *ROLES["file"], SUBFOLDER, *sum(COMPOSITE_IDS, ()))}
    wanted = {c.lower() for c in parts}
    numeric = {plain(c) for c in sum((ROLES[role] for role in ANGLES), ())}
    numeric |= {plain(columns[role]) for role in ANGLES if role in columns}

    def is_text(name: str) -> bool:
        return plain(name) not in numeric and (plain(name) in text or name.lower() in wanted)

    def suits(names: Sequence[str]) -> int:
        named = [name for name in columns.values() if not set(name.split("+")) <= {*names} and name not in names]
        if named:
            return 0
        keys = {plain(name) for name in names}
        return 1 + 2 * bool(find_pairs(names)) + bool(keys & {plain(c) for c in ROLES["id"]})

    assert catalog.path is not None
    frame = read_file(Path(catalog.path), is_text, suits, catalog.table)
    if catalog.position_unit is not None:
        frame.attrs["position_unit"] = angles.parse_position_unit(catalog.position_unit)
    return _with_joined_id(frame, columns.get("id"), str(catalog.path))


def digest(path: Path) -> str:
    """Return the SHA-256 of a catalog, a file or a folder."""
    return parquet.digest(path)


def _with_joined_id(frame: pd.DataFrame, named: str | None, where: str) -> pd.DataFrame:
    """Add the column of an id that is several columns."""
    present = {str(c).lower(): str(c) for c in reversed(frame.columns)}
    if named is not None:
        parts = named.split("+")
        if named in frame.columns or len(parts) == 1:
            return frame
        if absent := [part for part in parts if part not in frame.columns]:
            raise InputError(f"{where} has no column '{absent[0]}' for id{nearest(absent[0], map(str, frame.columns))}")
    else:
        if any(name in present for name in PREFERRED["id"]):
            return frame
        found = next((names for names in COMPOSITE_IDS if set(names) <= present.keys()), None)
        if found is None:
            return frame
        parts = [present[name] for name in found]
    texts = [_integers_as_text(frame[part]) for part in parts]
    joined = texts[0].str.cat(texts[1:], sep="-")
    name = "+".join(parts)
    attrs = frame.attrs | {"id": name}
    frame = frame.assign(**{name: joined.fillna("")})
    frame.attrs = attrs
    return frame


def _integers_as_text(column: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(np.float64, na_value=np.nan)
        if (values[np.isfinite(values)] % 1 == 0).all():
            column = pd.Series(pd.array(values, dtype="Float64"), index=column.index).astype("Int64")
    return column.astype("string").str.strip()


def find_column(frame: pd.DataFrame, role: str, columns: Mapping[str, str], where: str) -> str | None:
    """Return the column of `frame` for `role`, or None.

    `InputError` is raised if the column named in `columns` does not exist, or several usual names are present; of the
    positions also if one coordinate has a column and the other has none.
    """
    present = [str(c) for c in frame.columns]
    if role in columns:
        return named_column(frame, role, columns, where)
    if role in ("ra", "dec"):
        return position_columns(frame, columns, where)[role == "dec"]
    if role == "id" and "id" in frame.attrs:
        return str(frame.attrs["id"])
    lower = {c.strip().lower(): c for c in reversed(present)}
    if (preferred := next((w for w in PREFERRED.get(role, ROLES[role][:1]) if w in lower), None)) is not None:
        return lower[preferred]
    if (with_ucd := by_ucd(frame, role)) is not None:
        return with_ucd
    found = columns_of(ROLES[role], present)
    if len(found) > 1:
        raise InputError(
            f"{where} has several columns that may be the {role}: {', '.join(found)}; "
            f"choose one: --column {role}={found[0]}"
        )
    return found[0] if found else None


def read_labels(frame: pd.DataFrame, names: Sequence[str]) -> tuple[dict[str, list[str]], pd.DataFrame]:
    """Return the answers of each schema in `names`, and their columns ``<schema>/<answer>`` (float32, NaN = not asked).

    `InputError` is raised if a schema is unknown, or the catalog has none of its answers.
    """
    numeric, extension = pd.api.types.is_numeric_dtype, pd.api.types.is_extension_array_dtype
    nullable = [c for c, dtype in frame.dtypes.items() if extension(dtype) and numeric(dtype)]
    frame = frame.assign(**{c: frame[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in nullable})
    schemas, columns = {}, []
    for name in dict.fromkeys(names):
        schema = load_schema(name)
        answers = read_answers(schema, frame).astype(np.float32).reset_index(drop=True)
        schemas[schema.name] = list(answers.columns)
        columns.append(answers.add_prefix(f"{schema.name}/"))
    return schemas, pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(len(frame)))
