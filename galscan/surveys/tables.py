"""Catalogs as people have them: CSV, FITS, VOTable, Parquet; columns by their usual names; ids kept exact."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.errors import InputError, NotFoundError, nearest

MAX_ID = 64  # characters
EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "--", "<NA>"]  # no value, in CSV

# Usual column names in lower case. The first of each is unambiguous: it wins over the others.
ROLES: dict[str, tuple[str, ...]] = {
    "id": ("id", "objid", "dr7objid", "dr8objid", "specobjid", "iauname", "id_str", "object_id", "source_id", "name"),
    "file": ("file", "filename", "file_name", "file_loc", "path"),
    "ra": ("ra", "ra_icrs", "raj2000", "ra_deg", "radeg", "_raj2000"),
    "dec": ("dec", "de_icrs", "dec_icrs", "dej2000", "decj2000", "dec_deg", "dedeg", "_dej2000"),
    "pixel_scale": ("pixel_scale", "pixel_scale_arcsec", "pixscale", "pixelscale"),
}


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a catalog by its suffix: ``.csv[.gz] .fits[.gz] .vot .xml .votable .parquet``.

    Columns that may hold ids or files, and those named in `columns`, are read as text from CSV and as
    exact integers elsewhere, because a float has too few digits for an SDSS objID.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it cannot be read, or has no rows.
    """
    if not path.is_file():
        raise NotFoundError(f"no catalog at {path}; give a CSV, FITS, VOTable or Parquet file")
    suffix = "".join(s for s in path.suffixes[-2:] if s != ".gz").lower()
    suffix = "." + suffix.rsplit(".", 1)[-1]
    try:
        if suffix in (".csv", ".tsv", ".txt"):
            frame = _read_csv(path, columns, "," if suffix == ".csv" else "\t")
        elif suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
        elif suffix in (".fits", ".fit", ".vot", ".xml", ".votable"):
            frame = _read_astropy(path, "fits" if suffix.startswith(".fit") else "votable")
        else:
            raise InputError(f"catalog {path} has an unknown suffix; use .csv, .fits, .vot or .parquet")
    except InputError:
        raise
    except Exception as error:  # each reader has its own family of errors for a broken file
        why = f"{type(error).__name__}: {_line(error)}"
        raise InputError(f"catalog {path} cannot be read ({why}); check the file") from error
    if frame.empty:
        raise InputError(f"catalog {path} has no rows; give one with at least one object")
    return frame


def _read_csv(path: Path, columns: Mapping[str, str], separator: str) -> pd.DataFrame:
    options: dict[str, Any] = {"encoding": "utf-8-sig", "sep": separator}
    header = pd.read_csv(path, nrows=0, **options).columns
    wanted = {*ROLES["id"], *ROLES["file"], *(c.lower() for c in columns.values())}
    text = [c for c in header if c.lower() in wanted]
    # Empty values are declared for the other columns only: an object may be called "NA" or "null".
    empty = {c: EMPTY for c in header if c not in text}
    kinds = dict.fromkeys(text, str)
    return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=empty, low_memory=False, **options)


def _read_astropy(path: Path, form: str) -> pd.DataFrame:
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units and UCDs that astropy does not know are no concern here
        table = Table.read(path, format=form)
        table.keep_columns([c for c in table.colnames if table[c].ndim == 1])
        table.convert_bytestring_to_unicode()
        return table.to_pandas(index=False)


def find_column(frame: pd.DataFrame, role: str, columns: Mapping[str, str], where: str) -> str | None:
    """Return the column of `frame` that plays `role`, or None.

    Raises
    ------
    InputError
        If the column named in `columns` does not exist, or several usual names are present.
    """
    present = [str(c) for c in frame.columns]
    if role in columns:
        if columns[role] not in present:
            raise InputError(f"{where} has no column '{columns[role]}' for {role}{nearest(columns[role], present)}")
        return columns[role]
    lower = {c.lower(): c for c in reversed(present)}
    found = [lower[name] for name in ROLES[role] if name in lower]
    if len(found) > 1 and found[0].lower() != ROLES[role][0]:
        raise InputError(
            f"{where} has several columns that may be the {role}: {', '.join(found)}; "
            f"choose one: --column {role}={found[0]}"
        )
    return found[0] if found else None


def identifiers(column: pd.Series, where: str) -> np.ndarray:
    """Return ids as int64 if every one is a plain integer, else as fixed-width text.

    Raises
    ------
    InputError
        If an id is empty, longer than 64 characters, repeated, or has lost digits as a float.
    """
    where = f"id column '{column.name}' of {where}"
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.any(np.abs(values) > 2**53) or np.any(values % 1 != 0):  # NaN fails too
            raise InputError(
                f"{where} holds floating-point numbers, so digits are lost or missing; store it as integers or text"
            )
        text = pd.Series(values.astype(np.int64)).astype(str)
    else:
        text = column.astype("string").fillna("").str.strip().reset_index(drop=True)
    if len(empty := np.flatnonzero(text == "")):
        raise InputError(
            f"{where} is empty in {len(empty)} row(s), the first is row {empty[0] + 1}; give every object an id"
        )
    rounded = text[text.str.fullmatch(r"\d\.\d+[eE]\+?\d+")]
    if len(rounded):
        raise InputError(f"{where} holds {rounded.iloc[0]}: a spreadsheet rounded it; export the ids as text")
    repeated = text[text.duplicated()]
    if len(repeated):
        raise InputError(
            f"{where}: '{repeated.iloc[0]}' occurs more than once ({len(repeated)} duplicate row(s)); "
            "keep one row an object"
        )
    longest = text.iloc[int(text.str.len().to_numpy().argmax())]
    if len(longest) > MAX_ID:
        raise InputError(
            f"{where}: '{longest[:24]}...' has {len(longest)} characters, at most {MAX_ID} are kept; "
            "choose a shorter id column"
        )
    if text.str.fullmatch(r"0|-?[1-9]\d{0,18}").all():  # "007" stays text
        try:
            return np.array([int(t) for t in text], dtype=np.int64)
        except OverflowError:
            pass
    return np.array(text.tolist(), dtype=np.str_)


def numbers(column: pd.Series, where: str) -> np.ndarray:
    """Return a column as float64, NaN where empty.

    Raises
    ------
    InputError
        If a value is not a number.
    """
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = column.astype("string").str.strip().replace("", pd.NA)
    values = pd.to_numeric(text, errors="coerce")
    if (bad := values.isna() & text.notna()).any():
        raise InputError(
            f"column '{column.name}' of {where}: '{text[bad].iloc[0]}' is not a number "
            "(positions are in decimal degrees)"
        )
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with nullable numbers as float64 (NaN), which label schemas expect."""
    types = pd.api.types
    nullable = [c for c, t in frame.dtypes.items() if types.is_extension_array_dtype(t) and types.is_numeric_dtype(t)]
    return frame.assign(**{c: frame[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in nullable})


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
