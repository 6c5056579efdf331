"""Columns of the candidates catalog with unit, UCD and description, and its FITS writer.

`astropy.table.Table.write` puts column descriptions and UCDs into a YAML comment that TOPCAT does not read, and needs
the whole table in memory; so header and rows are written here. UCDs are of UCD1+ version 1.6.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.io import fits

from galscan.candidates.table_stream import TableStream, as_ascii, ascii_text, from_frame
from galscan.core import fits_stream
from galscan.core.files import atomic_path
from galscan.core.version import __version__
from galscan.stats.purity import METHOD

if TYPE_CHECKING:
    from astropy.table import QTable

REFERENCE = "arXiv:2506.16233"


class Column(NamedTuple):
    """Metadata of a column; `display` is a FITS TDISP format."""

    name: str
    unit: str
    ucd: str
    comment: str
    display: str


COLUMNS = (
    Column("designation", "", "meta.id;meta.main", "IAU-style designation, truncated", "A19"),
    Column("objid", "", "meta.id;src", "Identifier in the survey's catalogue", "I20"),
    Column("store", "", "meta.dataset", "Cutout store the object is in", "A16"),
    Column("index", "", "meta.number", "Row in that store, from 0", "I12"),
    Column("ra", "deg", "pos.eq.ra;meta.main", "Right ascension, ICRS", "F12.7"),
    Column("dec", "deg", "pos.eq.dec;meta.main", "Declination, ICRS", "F12.7"),
    Column("rank", "", "stat.rank", "Rank by score, 1 is best", "I8"),
    Column("score", "", "stat.value", "Mean logit of the ensemble, or similarity; orders, no probability", "F9.4"),
    Column("score_std", "", "stat.error", "Standard deviation of the logit over members", "F9.4"),
    Column("p_target", "", "stat.probability", "Probability of being a target at survey prevalence", "F8.5"),
    Column("purity", "", "stat.confidenceLevel", "Expected fraction of targets down to this rank", "F8.5"),
    Column("purity_lo", "", "stat.confidenceLevel", "Lower bound of purity", "F8.5"),
    Column("purity_hi", "", "stat.confidenceLevel", "Upper bound of purity", "F8.5"),
    Column("completeness", "", "stat.confidenceLevel", "Expected fraction of all targets down to this rank", "F8.5"),
    Column("ambiguous", "", "stat.confidenceLevel", "Expected fraction of ambiguous ones to this rank", "F8.5"),
    Column("ambiguous_lo", "", "stat.confidenceLevel", "Lower bound of ambiguous", "F8.5"),
    Column("ambiguous_hi", "", "stat.confidenceLevel", "Upper bound of ambiguous", "F8.5"),
    Column("known", "", "meta.code.class", "Known label: target, ambiguous, negative; empty: none", "A9"),
    Column("in_train", "", "meta.code", "True if the model was trained on this object", "L1"),
    Column("duplicate", "", "meta.code", "True if this object has a better rank in another row", "L1"),
    Column("known_name", "", "meta.id.cross", "Nearest object of lists and services; empty if none is known", "A24"),
    Column("known_ref", "", "meta.ref", "Lists with a match, nearest first; services not queried", "A16"),
    Column("known_sep", "arcsec", "pos.angDistance", "Separation from that object", "F8.3"),
    Column("known_type", "", "src.class", "Object type of the nearest match that has one", "A12"),
    Column("grade", "", "meta.code.class", "Median grade; empty if not graded", "A8"),
    Column("votes", "", "meta.number", "Number of graders", "I4"),
    Column("comment", "", "meta.note", "Comments of the graders", "A32"),
    Column("flags", "", "meta.code.qual", "32: stamp beyond the image's edge; 64: upscaled", "I3"),
)

HEADER = {
    "stores": ("SURVEY", "surveys scanned"),
    "target": ("TARGET", "class that was searched for"),
    "model": ("MODELSHA", "SHA-256 of the model"),
    "recipe": ("RECIPSHA", "SHA-256 of the recipe"),
    "fingerprint": ("RUNSHA", "SHA-256 of everything that decides the run"),
    "version": ("CODEVER", "galscan version of the scan"),
    "precision": ("PRECISIO", "arithmetic of the network"),
    "seed": ("SEED", "seed of the random numbers"),
    "scanned": ("NSCANNED", "objects scored"),
    "quarantined": ("NQUARANT", "objects quarantined, not scored"),
    "candidates": ("NRANKED", "candidates ranked by the scan"),
    "prevalence": ("PREVAL", "estimated fraction of targets in the survey"),
    "prevalence_lo": ("PREVALLO", "lower bound"),
    "prevalence_hi": ("PREVALHI", "upper bound"),
    "confidence": ("CONFLEV", "confidence level of all bounds"),
    "purity": ("PURITY", "estimated, graded, or unknown (NaN)"),
}
"""Provenance key -> keyword of the FITS header (8 letters at most), comment."""

_TFORM = {  # NumPy kind and size -> FITS, and the type in the file
    "b1": ("L", "S1"), "u1": ("B", "u1"), "i1": ("I", ">i2"), "i2": ("I", ">i2"), "u2": ("J", ">i4"),
    "i4": ("J", ">i4"), "u4": ("K", ">i8"), "i8": ("K", ">i8"), "f4": ("E", ">f4"), "f8": ("D", ">f8"),
}  # fmt: skip


def describe_columns(names: Iterable[str]) -> list[Column]:
    """Return the metadata of each column of a candidates table; columns not in `COLUMNS` are morphology answers."""
    known = {column.name: column for column in COLUMNS}
    return [known.get(str(name)) or _answer_column(str(name)) for name in names]


def _answer_column(name: str) -> Column:
    """Return the metadata of a morphology column, from its name (`galscan.candidates.morphology`)."""
    endings = {
        "_lo": "Morphology answer, lower 90 % limit",
        "_hi": "Morphology answer, upper 90 % limit",
        "_joint": "Morphology answer, fraction of all volunteers",
        "_concentration": "Effective number of votes of the question",
        "": "Morphology answer, mean over members",
    }
    comment = next(text for end, text in endings.items() if name.endswith(end))
    return Column(name, "", "src.morph.param", comment, "F9.4")


def write_fits(
    table: pd.DataFrame | TableStream,
    path: str | os.PathLike[str],
    provenance: Mapping[str, Any],
    answers: Sequence[str] = (),
    name: str = "CANDIDATES",
) -> Path:
    """Write candidates as a FITS binary table, atomically. Equal input gives equal bytes except for the date.

    A stream is read twice, in pieces. `provenance` has the keys of `galscan.candidates.run.provenance`, of which any
    may be absent; `answers` are the morphology answers in the table. ``SOURCE_DATE_EPOCH`` (seconds) replaces the time
    of writing, for reproducible files.
    """
    rows = table if isinstance(table, TableStream) else from_frame(table)
    widths = {name: max(width, 19 if name == "designation" else 1) for name, width in rows.widths().items()}
    forms, types = {}, {}
    for field in rows.schema:
        width = widths.get(field.name)
        forms[field.name], types[field.name] = (f"{width}A", f"S{width}") if width else _TFORM[kind(field)]
    dtype = np.dtype([*types.items()])
    header = fits_stream.structure(name, forms, dtype.itemsize, rows.count)
    for number, column in enumerate(describe_columns(rows.names), 1):
        form = forms[column.name]
        if column.unit:
            header[f"TUNIT{number}"] = column.unit
        header[f"TDISP{number}"] = f"A{form[:-1]}" if form.endswith("A") else column.display
        header[f"TUCD{number}"] = column.ucd
        header[f"TCOMM{number}"] = column.comment
    header["RADESYS"] = "ICRS"
    header.update(cards(provenance))
    header["NCANDID"] = (rows.count, "candidates in this table")
    method, history = notes_of(provenance, answers)
    header.update({"PURMETH": method} if method else {})
    for line in history:
        header["HISTORY"] = line
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        write_hdus(handle, header, _records(rows, dtype))
    return Path(path)


def notes_of(provenance: Mapping[str, Any], answers: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Return how purity was estimated, '' if it was not, and the lines of HISTORY."""
    method, by = "", provenance.get("ranked_by", "score")
    if by == "score":
        method = METHOD[:66]
        known = "are unknown" if provenance.get("purity") == "unknown" else "per rank"
        history = [f"galscan {__version__}: ranked by score; purity and completeness {known}."]
    else:
        history = [f"galscan {__version__}: ranked by {by}; purity and completeness are not known."]
    if answers:
        history.append(f"Morphology answers: {ascii_text(', '.join(answers))}")
    return method, history + [ascii_text(note) for note in provenance.get("notes", ())]


def as_qtable(rows: TableStream, provenance: Mapping[str, Any], answers: Sequence[str] = ()) -> QTable:
    """Return candidates as `astropy.table.QTable`, in memory, with the columns and metadata of `write_fits`.

    Columns have unit, description, display format and, as ``info.meta["ucd"]``, UCD; ``meta`` has the keywords of the
    FITS header. Text is not restricted to ASCII.
    """
    from astropy.table import Column as AstropyColumn
    from astropy.table import QTable
    from astropy.units import Quantity

    data = pa.Table.from_batches([batch for piece in rows for batch in piece.to_batches()], rows.schema)
    table = QTable()
    for column in describe_columns(rows.names):
        values = data[column.name]
        if rows.is_text(column.name):
            array = np.array(["" if text is None else text for text in values.to_pylist()], dtype=str)
            display = None
        else:
            array, display = values.to_numpy(), _python_format(column.display)
        table[column.name] = Quantity(array, column.unit) if column.unit else AstropyColumn(array)
        info = table[column.name].info
        info.description, info.format, info.meta = column.comment, display, {"ucd": column.ucd}
    method, history = notes_of(provenance, answers)
    facts = {key: value[0] if isinstance(value, tuple) else value for key, value in cards(provenance).items()}
    table.meta.update({"RADESYS": "ICRS"} | facts | {"NCANDID": rows.count})
    table.meta.update(({"PURMETH": method} if method else {}) | {"HISTORY": history})
    return table


def _python_format(display: str) -> str | None:
    """Return a FITS display format for decimals as a format of Python, None for other ones."""
    return f".{display.partition('.')[2]}f" if display.startswith("F") else None


def kind(field: pa.Field) -> str:
    """Return the NumPy kind and size of a column's type: ``f4`` for float32, ``b1`` for bool."""
    dtype = np.dtype(field.type.to_pandas_dtype())
    return f"{dtype.kind}{dtype.itemsize}"


def write_hdus(handle: BinaryIO, header: fits.Header, records: Iterable[np.ndarray]) -> None:
    """Write a FITS file of one table, after a primary header with creator and date."""
    when = _now()
    primary = fits.PrimaryHDU()
    primary.header.update({
        "EXTEND": True, "DATE": (when, "UTC, when this file was written"), "ORIGIN": "galscan",
        "CREATOR": f"galscan {__version__}", "REFERENC": (REFERENCE, "method"),
    })  # fmt: skip
    primary.add_checksum(when=when)
    handle.write(primary.header.tostring(endcard=True, padding=True).encode("ascii"))
    fits_stream.write_table(handle, header, records, when)


def _records(rows: TableStream, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the rows as records of the FITS table."""
    for piece in rows:
        record = np.empty(len(piece), dtype)
        for name in rows.names:
            if rows.is_text(name):
                record[name] = as_ascii(piece[name]).to_pylist()
            elif pa.types.is_boolean(rows.schema.field(name).type):
                record[name] = np.where(piece[name].to_numpy(), b"T", b"F")
            else:
                record[name] = piece[name].to_numpy()
        yield record


def cards(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return header cards: values, with comments where they fit into the card."""
    found: dict[str, Any] = {}
    for key, (keyword, comment) in HEADER.items():
        if (value := _card(provenance.get(key))) is not None:
            found[keyword] = (value, comment) if len(str(value)) + len(comment) < 60 else value
    return found


def _card(value: Any) -> Any:
    """Return a value that a header card can hold, None if there is none; FITS headers have no NaN."""
    if value is None or isinstance(value, bool | int | np.integer):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    text = ascii_text(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return text if len(text) <= 66 else text[:63] + "..."


def _now() -> str:
    """Return the time of writing in UTC, in FITS format."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
