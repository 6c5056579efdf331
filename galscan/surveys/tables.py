"""Reading of catalogs: CSV, FITS, VOTable, Parquet; columns found by their usual names and UCDs; exact ids."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, NotFoundError, nearest
from galscan.labels.columns import read_answers
from galscan.labels.schema import load_schema

MAX_ID = 64  # characters
EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "--", "<NA>"]  # missing values in CSV

# Usual column names in lower case. The first of each is unambiguous and takes precedence over the others.
ROLES: dict[str, tuple[str, ...]] = {
    "id": (
        "id", "id_str", "objid", "dr7objid", "dr8objid", "specobjid", "iauname", "object_id", "source_id", "galaxyid",
        "name",
    ),
    "file": ("file", "file_loc", "filename", "file_name", "path"),
    "ra": ("ra", "ra_icrs", "raj2000", "ra_deg", "radeg", "_raj2000"),
    "dec": ("dec", "de_icrs", "dec_icrs", "dej2000", "decj2000", "dec_deg", "dedeg", "_dej2000"),
    "pixel_scale": ("pixel_scale", "pixel_scale_arcsec", "pixel_scale_arcsec_per_pixel", "pixscale", "pixelscale"),
    "radius": ("petror90_r", "petro_r90_r", "petror90", "r90"),
}  # fmt: skip
PREFERRED = {"id": ("id", "id_str"), "file": ("file", "file_loc")}  # id_str and file_loc are those of galaxy-datasets
SUBFOLDER = "subfolder"  # column of the folder of a file, in galaxy-datasets
# UCDs of the roles, best first.
UCDS: dict[str, tuple[str, ...]] = {
    "id": ("meta.id;meta.main", "id_main"),
    "ra": ("pos.eq.ra;meta.main", "pos_eq_ra_main", "pos.eq.ra"),
    "dec": ("pos.eq.dec;meta.main", "pos_eq_dec_main", "pos.eq.dec"),
}
DEGREES = ("", "deg", "degree", "degrees")


def read_table(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read a catalog by its suffix: ``.csv[.gz] .fits[.gz] .vot .xml .votable .parquet``, or a CSV in a ``.zip``.

    Columns that may hold ids or files, and those named in `columns`, are read as text from CSV and as
    exact integers elsewhere, because a float has too few digits for an SDSS objID. UCDs and units of FITS and VOTable
    columns are in ``attrs["ucd"]`` and ``attrs["unit"]``. `InputError` is raised if the file cannot be read or has no
    rows, `NotFoundError` if there is none.
    """
    if not path.is_file():
        raise NotFoundError(f"no catalog at {path}; give a CSV, FITS, VOTable or Parquet file")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if suffix in (".csv", ".zip", ".tsv", ".txt"):
            frame = _read_csv(path, columns, "," if suffix in (".csv", ".zip") else "\t")
        elif suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
        elif suffix in (".fits", ".fit", ".vot", ".xml", ".votable"):
            frame = _read_astropy(path, "fits" if suffix.startswith(".fit") else "votable")
        else:
            raise InputError(f"catalog {path} has an unknown suffix; use .csv, .fits, .vot or .parquet")
    except InputError:
        raise
    except Exception as error:  # each reader raises its own errors for broken files
        why = f"{type(error).__name__}: {_line(error)}"
        raise InputError(f"catalog {path} cannot be read ({why}); check the file") from error
    if frame.empty:
        raise InputError(f"catalog {path} has no rows; give one with at least one object")
    return frame


def _read_csv(path: Path, columns: Mapping[str, str], separator: str) -> pd.DataFrame:
    options: dict[str, Any] = {"encoding": "utf-8-sig", "sep": separator}
    header = pd.read_csv(path, nrows=0, **options).columns
    wanted = {*ROLES["id"], *ROLES["file"], SUBFOLDER, *(c.lower() for c in columns.values())}
    text = [c for c in header if c.lower() in wanted]
    # Not for columns of text: an object may be called "NA" or "null".
    empty = {c: EMPTY for c in header if c not in text}
    dtypes = dict.fromkeys(text, str)
    return pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=empty, low_memory=False, **options)


def _read_astropy(path: Path, form: str) -> pd.DataFrame:
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units and UCDs that astropy does not know do no harm
        return from_astropy(Table.read(path, format=form))


def from_astropy(table: Any) -> pd.DataFrame:
    """Return an astropy table, with its UCDs and units in ``attrs``; columns of arrays are left out."""
    # astropy parses the UCDs of a VOTable; those of FITS are in header keywords.
    ucd = {
        c: str(table[c].meta.get("ucd") or table.meta.get(f"TUCD{k}") or "").lower()
        for k, c in enumerate(table.colnames, 1)
    }
    unit = {c: str(table[c].unit or "").strip() for c in table.colnames}
    table.keep_columns([c for c in table.colnames if table[c].ndim == 1])
    table.convert_bytestring_to_unicode()
    frame = table.to_pandas(index=False)
    frame.attrs = {"ucd": ucd, "unit": unit}
    return frame


def find_column(frame: pd.DataFrame, role: str, columns: Mapping[str, str], where: str) -> str | None:
    """Return the column of `frame` for `role`, or None.

    `InputError` is raised if the column named in `columns` does not exist, or several usual names are present.
    """
    present = [str(c) for c in frame.columns]
    if role in columns:
        if columns[role] not in present:
            raise InputError(f"{where} has no column '{columns[role]}' for {role}{nearest(columns[role], present)}")
        return columns[role]
    lower = {c.lower(): c for c in reversed(present)}
    if (preferred := next((w for w in PREFERRED.get(role, ROLES[role][:1]) if w in lower), None)) is not None:
        return lower[preferred]
    if (by_ucd := _by_ucd(frame, role)) is not None:
        return by_ucd
    found = [lower[name] for name in ROLES[role] if name in lower]
    if len(found) > 1:
        raise InputError(
            f"{where} has several columns that may be the {role}: {', '.join(found)}; "
            f"choose one: --column {role}={found[0]}"
        )
    return found[0] if found else None


def _by_ucd(frame: pd.DataFrame, role: str) -> str | None:
    """Return the column with a UCD of `role`, if there is exactly one; sexagesimal text is not a position."""
    ucds = {c: u for c, u in frame.attrs.get("ucd", {}).items() if c in frame.columns}
    for wanted in UCDS.get(role, ()):
        found = [c for c, ucd in ucds.items() if ucd == wanted]
        if role != "id":
            found = [c for c in found if pd.api.types.is_numeric_dtype(frame[c].dtype)]
        if len(found) == 1:
            return found[0]
    return None


def identifiers(column: pd.Series, where: str) -> np.ndarray:
    """Return ids as int64 if every one is a plain integer, else as fixed-width text.

    `InputError` is raised if an id is empty, longer than 64 characters, repeated, or has lost digits as a float.
    """
    where = f"id column '{column.name}' of {where}"
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.any(np.abs(values) > 2**53) or np.any(values % 1 != 0):  # NaN fails too
            raise InputError(
                f"{where} contains floating-point numbers, so digits may be lost; store it as integers or text"
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
        raise InputError(f"{where} contains {rounded.iloc[0]}: a spreadsheet rounded it; export the ids as text")
    repeated = text[text.duplicated()]
    if len(repeated):
        raise InputError(
            f"{where}: '{repeated.iloc[0]}' occurs more than once ({len(repeated)} duplicate row(s)); "
            "keep one row per object"
        )
    longest = text.iloc[int(text.str.len().to_numpy().argmax())]
    if len(longest) > MAX_ID:
        raise InputError(
            f"{where}: '{longest[:24]}...' has {len(longest)} characters, at most {MAX_ID} are allowed; "
            "choose a shorter id column"
        )
    if text.str.fullmatch(r"0|-?[1-9]\d{0,18}").all():  # "007" stays text
        try:
            return np.array([int(t) for t in text], dtype=np.int64)
        except OverflowError:
            pass
    return np.array(text.tolist(), dtype=np.str_)


def numbers(column: pd.Series, where: str) -> np.ndarray:
    """Return a column as float64, NaN where empty; raise `InputError` if a value is not a number."""
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


def positions(
    frame: pd.DataFrame, ra: str | None, dec: str | None, ids: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension (0 to 360) and declination in degrees, NaN where missing.

    `InputError` is raised if they are not in degrees, or outside the allowed range.
    """
    found = []
    for role, column, limit in (("ra", ra, 360.0), ("dec", dec, 90.0)):
        if column is None:
            found.append(np.full(len(frame), np.nan))
            continue
        unit = frame.attrs.get("unit", {}).get(column, "")
        if unit.lower() not in DEGREES:
            raise InputError(f"column '{column}' of {where} is in '{unit}'; give positions in decimal degrees")
        values = numbers(frame[column], where)
        if len(bad := np.flatnonzero(np.abs(values) > limit)):  # also infinite ones
            first = f"{role} of {ids[bad[0]]} is {values[bad[0]]:g}"
            raise InputError(f"{where}: {first}; it must be within {-limit:g} to {limit:g} degrees")
        found.append(values)
    return found[0] % 360, found[1]


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


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
