"""The catalogue's columns with unit, UCD and meaning, and the FITS file astronomers open.

`astropy.table.Table.write` hides column descriptions and UCDs in a YAML comment that TOPCAT does not read,
so the header is written here. UCDs are of UCD1+ version 1.6.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.table import QTable, Table

import galscan
from galscan.candidates.purity import METHOD
from galscan.files import atomic_path

REFERENCE = "arXiv:2506.16233"


class Column(NamedTuple):
    """What is said about one column; `display` is a FITS TDISP format."""

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
    Column("score", "", "stat.value", "Mean logit of the ensemble; orders, no probability", "F9.4"),
    Column("score_std", "", "stat.error", "Standard deviation of the logit over members", "F9.4"),
    Column("p_target", "", "stat.probability", "Probability of being a target at survey prevalence", "F8.5"),
    Column("purity", "", "stat.confidenceLevel", "Expected fraction of targets down to this rank", "F8.5"),
    Column("purity_lo", "", "stat.confidenceLevel", "Lower bound of purity", "F8.5"),
    Column("purity_hi", "", "stat.confidenceLevel", "Upper bound of purity", "F8.5"),
    Column("completeness", "", "stat.confidenceLevel", "Expected fraction of all targets down to this rank", "F8.5"),
    Column("in_train", "", "meta.code", "True if the model was trained on this object", "L1"),
    Column("grade", "", "meta.code.class", "Median grade people gave; empty if none did", "A8"),
    Column("votes", "", "meta.number", "People who graded it", "I4"),
    Column("comment", "", "meta.note", "What graders wrote", "A32"),
    Column("flags", "", "meta.code.qual", "32: stamp beyond the image's edge; 64: upscaled", "I3"),
)

_CARDS = {  # provenance key -> keyword (8 letters at most), comment
    "stores": ("SURVEY", "surveys scanned"),
    "target": ("TARGET", "what was looked for"),
    "model": ("MODELSHA", "SHA-256 of the model"),
    "recipe": ("RECIPSHA", "SHA-256 of the recipe"),
    "fingerprint": ("RUNSHA", "SHA-256 of everything that decides the run"),
    "version": ("CODEVER", "galscan version of the scan"),
    "precision": ("PRECISIO", "arithmetic of the network"),
    "seed": ("SEED", "seed of the random numbers"),
    "scanned": ("NSCANNED", "objects scored"),
    "quarantined": ("NQUARANT", "objects set aside, not scored"),
    "candidates": ("NRANKED", "candidates ranked by the scan"),
    "prevalence": ("PREVAL", "estimated fraction of targets in the survey"),
    "prevalence_lo": ("PREVALLO", "lower bound"),
    "prevalence_hi": ("PREVALHI", "upper bound"),
    "confidence": ("CONFLEV", "confidence level of all bounds"),
}


def described(frame: pd.DataFrame) -> list[Column]:
    """Return what is said about each column of a candidates table; unknown ones are morphology answers."""
    known = {column.name: column for column in COLUMNS}
    return [
        known.get(str(name)) or Column(str(name), "", "src.morph.param", "Morphology answer, mean over members", "F9.4")
        for name in frame.columns
    ]


def to_table(frame: pd.DataFrame) -> QTable:
    """Return a candidates table as an astropy table with units, UCDs and descriptions (text as ASCII)."""
    table = QTable()
    for column in described(frame):
        values = frame[column.name].to_numpy()
        if values.dtype == object or values.dtype.kind in "UT":
            # FITS knows ASCII only; a width of at least one keeps an empty table valid.
            words = [_ascii(value) for value in values]
            width = 19 if column.name == "designation" else max([1, *map(len, words)])
            values = np.array(words, dtype=f"<U{width}")
        table[column.name] = values
        info = table[column.name].info
        info.description, info.meta = column.comment, {"ucd": column.ucd}
        if column.unit:
            info.unit = column.unit
    return table


def _ascii(value: Any) -> str:
    text = "" if value is None or value is pd.NA or value != value else str(value)
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def write_fits(
    frame: pd.DataFrame, path: str | os.PathLike[str], provenance: Mapping[str, Any], answers: Sequence[str] = ()
) -> Path:
    """Write candidates as a FITS binary table, atomically. Equal input gives equal bytes but for the date.

    Parameters
    ----------
    frame : DataFrame
        As `rank.rank` makes it; may be empty.
    provenance : mapping
        Keys of the header cards (target, stores, model, recipe, fingerprint, version, seed, scanned, quarantined,
        candidates, prevalence, prevalence_lo, prevalence_hi, confidence, notes); any may be absent.
    answers : sequence of str
        Morphology answers in the table, for the header.

    Notes
    -----
    ``SOURCE_DATE_EPOCH`` (seconds) replaces the time of writing, for reproducible files.
    """
    hdu = fits.table_to_hdu(Table(to_table(frame), copy=False))
    for number, column in enumerate(described(frame), 1):
        text = frame[column.name].dtype.kind in "OUT" or hdu.columns[number - 1].format.endswith("A")
        hdu.header[f"TUCD{number}"] = column.ucd
        hdu.header[f"TCOMM{number}"] = column.comment
        hdu.header[f"TDISP{number}"] = f"A{_text_width(hdu, number)}" if text else column.display
    header = hdu.header
    header["EXTNAME"] = "CANDIDATES"
    header["RADESYS"] = "ICRS"
    for key, (keyword, comment) in _CARDS.items():
        if (value := _card(provenance.get(key))) is not None:
            fits_beside = len(str(value)) + len(comment) < 60
            header[keyword] = (value, comment) if fits_beside else value
    header["NCANDID"] = (len(frame), "candidates in this table")
    header["PURMETH"] = METHOD[:66]
    header["HISTORY"] = f"galscan {galscan.__version__}: ranked by score; purity and completeness per rank."
    if answers:
        header["HISTORY"] = f"Morphology answers: {_ascii(', '.join(answers))}"
    for note in provenance.get("notes", ()):
        header["HISTORY"] = _ascii(note)

    when = _now()
    primary = fits.PrimaryHDU()
    primary.header["DATE"] = (when, "UTC, when this file was written")
    primary.header["ORIGIN"] = "galscan"
    primary.header["CREATOR"] = f"galscan {galscan.__version__}"
    primary.header["REFERENC"] = (REFERENCE, "method")
    hdus = fits.HDUList([primary, hdu])
    hdus.update_extend()  # before the checksums: it changes the primary header
    for part in hdus:
        part.add_checksum(when=when)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        hdus.writeto(handle)
    return Path(path)


def _text_width(hdu: fits.BinTableHDU, number: int) -> int:
    return int(hdu.columns[number - 1].format.rstrip("A") or 1)


def _card(value: Any) -> Any:
    """Return a value a header card can hold, or None for none; FITS has no NaN."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    text = _ascii(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
    return text if len(text) <= 66 else text[:63] + "..."


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
