"""Reading of a table file: its format is found from its first bytes, else from its suffix."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.table_files import astropy_tables, parquet, text
from galscan.surveys.table_files.choice import Listed, choose_table

COMPRESSED = (".gz", ".bz2", ".xz")
SEPARATORS = {".csv": ",", ".zip": ",", ".tsv": "\t", ".txt": "\t", ".dat": r"\s+", ".cat": r"\s+", ".asc": r"\s+",
              ".ascii": r"\s+", ".tbl": r"\s+", ".mrt": r"\s+"}  # fmt: skip
FITS = (".fits", ".fit", ".fts", ".ldac")
VOTABLE = (".vot", ".xml", ".votable")
ASCII = {".ecsv": "ascii.ecsv", ".ipac": "ascii.ipac"}


def read_file(
    path: Path, is_text: Callable[[str], bool], suits: Callable[[Sequence[str]], int], table: str | None = None
) -> pd.DataFrame:
    """Read a table: text in many forms, FITS, VOTable, ECSV, IPAC, Parquet, a folder of Parquet, or a HATS catalog.

    Parameters
    ----------
    path : path
        The file, also compressed, or the folder.
    is_text : callable
        Whether the column of a name is read as text, of CSV and its relatives.
    suits : callable
        How well columns suit a table of objects, to choose one of several.
    table : str, optional
        Name or number of the table, of a file with several.

    Returns
    -------
    DataFrame
        ``attrs`` has dictionaries by column: ``unit``, ``ucd`` and ``system`` (the coordinate system, if it is neither
        ICRS nor FK5); and ``positions``, the columns of right ascension and declination if the file says which.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it cannot be read, has no rows, or several tables.
    """
    if not path.exists():
        raise NotFoundError(f"no catalog at {path}; give a CSV, FITS, VOTable or Parquet file")
    try:
        frame = _read(path, is_text, partial(choose_table, path, table, suits))
    except InputError:
        raise
    except Exception as error:  # each reader raises its own errors for broken files
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
        raise InputError(f"catalog {path} cannot be read ({why}); check the file") from error
    if frame.empty:
        raise InputError(f"catalog {path} has no rows; give one with at least one object")
    frame.attrs = {"unit": {}, "ucd": {}, "system": {}} | frame.attrs
    return frame


def _read(path: Path, is_text: Callable[[str], bool], choose: Callable[[Sequence[Listed]], int]) -> pd.DataFrame:
    if path.is_dir():
        return parquet.read_parquet(path)
    compressed = path.suffix.lower() in COMPRESSED
    suffix = Path(path.stem if compressed else path.name).suffix.lower()
    form = _form(path, suffix)
    if form == "fits":
        return astropy_tables.read_fits(path, choose)
    if form == "votable":
        return astropy_tables.read_votable(path, choose)
    if form == "parquet":
        return parquet.read_parquet(path)
    if form.startswith("ascii."):
        return astropy_tables.read_ascii(path, form)
    member = None
    if form == "zip":
        members = _members(path)
        listed = [Listed(m, k, text.header_of(path, m, ","), 1) for k, m in enumerate(members, 1)]
        member = members[choose(listed)]
        suffix = Path(member).suffix.lower()
    return text.read_text(path, member, SEPARATORS.get(suffix, ","), is_text)


def _form(path: Path, suffix: str) -> str:
    """Return the format of a file."""
    head = b""
    if path.stat().st_size:
        try:
            with text.opened(path) as stream:
                head = stream.read(4096)
        except OSError:  # not compressed, for all its suffix
            head = b""
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if head.startswith(b"SIMPLE  ="):
        return "fits"
    if head.startswith(b"PAR1"):
        return "parquet"
    if suffix == ".zip":
        return "zip"
    if start.startswith(b"# %ECSV"):
        return "ascii.ecsv"
    if start[:1] in (b"\\", b"|") and re.search(rb"^\|.*\|\s*$", head, re.MULTILINE):
        return "ascii.ipac"
    if re.match(rb"#\s+1\s+[A-Za-z]", start):
        return "ascii.sextractor"
    if b"Byte-by-byte Description of file" in head:
        return "ascii.mrt"
    if start[:200].lower().startswith((b"<?xml", b"<votable")) or b"<votable" in start[:2000].lower():
        return "votable"
    if suffix in FITS:
        return "fits"
    if suffix in VOTABLE:
        return "votable"
    if suffix in parquet.SUFFIXES:
        return "parquet"
    if suffix in ASCII:
        return ASCII[suffix]
    if suffix in SEPARATORS:
        return "text"
    raise InputError(f"catalog {path} has an unknown suffix; use .csv, .fits, .vot or .parquet")


def _members(path: Path) -> list[str]:
    """Return the text tables in a zip file."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/")]
    names = [n for n in names if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))]
    tables = [n for n in names if Path(n.lower()).suffix in SEPARATORS]
    if not tables:
        raise InputError(f"catalog {path} holds no CSV file; extract the table, or give another file")
    return tables
