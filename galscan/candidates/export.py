"""A run's candidates in the formats astronomers' tools read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import galscan
from galscan.candidates import table
from galscan.errors import ConflictError, InputError, NotFoundError, nearest
from galscan.files import atomic_path, read_json

SUFFIXES = {
    ".fits": "fits",
    ".fit": "fits",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".reg": "ds9",
}
FORMATS = ("fits", "votable", "parquet", "csv", "ds9")


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
) -> Path:
    """Write the candidates of a finished run to `out`, atomically; a file that was there is replaced.

    Parameters
    ----------
    format : {"fits", "votable", "parquet", "csv", "ds9"}, optional
        From the suffix of `out` when not given.
    top : int, optional
        At most so many, best first.
    min_purity : float, optional
        Down to the largest rank whose purity is at least this. With `top`, both hold.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If the run is not finished, the format unknown, or an option out of range.
    ConflictError
        If `out` is a folder, or one of the run's own files.
    """
    run, out = Path(run), Path(out)
    chosen = _format(out, format)
    frame, info = read_run(run)
    frame = select(frame, top=top, min_purity=min_purity)
    if out.is_dir():
        raise ConflictError(f"{out} is a folder; name a file, e.g. {out / 'candidates.fits'}")
    if out.resolve().parent == run.resolve() and (out.name in _OWN):
        raise ConflictError(f"{out} belongs to the run itself; export to another name")
    _WRITERS[chosen](frame, out, info)
    return out


GRADED = "candidates-graded"
_OWN = {
    "run.json", "candidates.parquet", "candidates.fits", "contact.png", "report.html", "ledger.jsonl", "purity.json",
    f"{GRADED}.parquet", f"{GRADED}.fits", "grades.sqlite",
}  # fmt: skip


def read_run(run: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the candidates of a finished run, and its run.json; with the grades, once ``galscan purity`` took them in.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If it is not finished.
    """
    run = Path(run)
    if not (run / "run.json").is_file():
        raise NotFoundError(f"no run at {run} (it has no run.json); make one with: galscan scan")
    info = read_json(run / "run.json")
    if not isinstance(info, dict) or info.get("status") != "done" or not (run / "candidates.parquet").is_file():
        raise InputError(f"the scan in {run} is not finished; run its scan command again, it goes on where it stopped")
    if (run / f"{GRADED}.parquet").is_file():
        return pd.read_parquet(run / f"{GRADED}.parquet"), info | {"purity": read_json(run / "purity.json")["after"]}
    return pd.read_parquet(run / "candidates.parquet"), info


def select(frame: pd.DataFrame, *, top: int | None = None, min_purity: float | None = None) -> pd.DataFrame:
    """Return the candidates down to rank `top` and to the largest rank with purity >= `min_purity`.

    Raises
    ------
    InputError
        If an option is out of range.
    """
    keep = len(frame)
    if top is not None:
        if top < 1:
            raise InputError(f"--top {top}: ask for at least 1 candidate")
        keep = min(keep, top)
    if min_purity is not None:
        if not 0 <= min_purity <= 1:  # also refuses NaN
            raise InputError(f"--min-purity {min_purity}: purity is a fraction; use 0 to 1")
        pure = np.flatnonzero(frame["purity"].to_numpy() >= min_purity)
        keep = min(keep, int(pure[-1]) + 1 if len(pure) else 0)
    return frame.head(keep)


def provenance(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json tells a catalogue's header (keys of `table.write_fits`)."""
    identity, purity = info.get("identity") or {}, info.get("purity") or {}
    prevalence = purity.get("prevalence") or {}
    return {
        "target": info.get("target"),
        "stores": [s.get("name", "") for s in info.get("stores", [])] or None,
        "model": identity.get("model"),
        "recipe": identity.get("recipe"),
        "fingerprint": info.get("fingerprint"),
        "version": identity.get("version"),
        "precision": info.get("precision"),
        "seed": info.get("seed"),
        "scanned": info.get("scanned"),
        "quarantined": info.get("quarantined"),
        "candidates": info.get("candidates"),
        "prevalence": prevalence.get("value"),
        "prevalence_lo": prevalence.get("low"),
        "prevalence_hi": prevalence.get("high"),
        "confidence": purity.get("confidence"),
        "notes": list(purity.get("notes", [])),
    }


def _format(out: Path, name: str | None) -> str:
    if name is None:
        if (chosen := SUFFIXES.get(out.suffix.lower())) is None:
            raise InputError(
                f"{out}: no format has the suffix '{out.suffix}'{nearest(out.suffix, SUFFIXES)}; or give --format"
            )
        return chosen
    if name not in FORMATS:
        raise InputError(f"format '{name}' is unknown{nearest(name, FORMATS)}")
    return name


def _fits(frame: pd.DataFrame, out: Path, info: Mapping[str, Any]) -> None:
    table.write_fits(frame, out, provenance(info), info.get("answers", ()))


def _votable(frame: pd.DataFrame, out: Path, info: Mapping[str, Any]) -> None:
    from astropy.io import votable
    from astropy.io.votable import tree

    document = votable.from_table(table.to_table(frame))
    resource = document.resources[0]
    resource.coordinate_systems.append(tree.CooSys(ID="icrs", system="ICRS"))
    facts = {"creator": f"galscan {galscan.__version__}", "reference": table.REFERENCE} | provenance(info)
    notes = facts.pop("notes")
    for name, value in [*facts.items(), *(("note", note) for note in notes)]:
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            resource.infos.append(tree.Info(name=name, value=text))
    first = resource.tables[0]
    first.name = "CANDIDATES"
    for entry in first.fields:
        if entry.name in ("ra", "dec"):
            entry.ref = "icrs"
    with atomic_path(out) as temporary, open(temporary, "wb") as handle:
        document.to_xml(handle)


def _parquet(frame: pd.DataFrame, out: Path, info: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = pa.Table.from_pandas(frame, preserve_index=False)
    fields = [
        field.with_metadata({"unit": column.unit, "ucd": column.ucd, "description": column.comment})
        for field, column in zip(plain.schema, table.described(frame), strict=True)
    ]
    note = {b"galscan": json.dumps(provenance(info)).encode()}
    described = plain.cast(pa.schema(fields, metadata=(plain.schema.metadata or {}) | note))
    with atomic_path(out) as temporary:
        pq.write_table(described, temporary)


def _csv(frame: pd.DataFrame, out: Path, info: Mapping[str, Any]) -> None:
    safe = frame.copy()
    for name in safe.columns:
        if safe[name].dtype.kind in "OUT" or pd.api.types.is_string_dtype(safe[name]):
            safe[name] = [_harmless(str(value)) for value in safe[name]]
    with atomic_path(out) as temporary:
        safe.to_csv(temporary, index=False, lineterminator="\n")


def _harmless(text: str) -> str:
    """Quote what a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _ds9(frame: pd.DataFrame, out: Path, info: Mapping[str, Any]) -> None:
    lines = ["# Region file format: DS9 version 4.1", f"# galscan {galscan.__version__}: candidates with their ranks"]
    if missing := without_coordinates(frame):
        lines.append(f"# {missing} of {len(frame)} candidates have no coordinates and are left out")
    lines += ['global color=green width=1 font="helvetica 10 normal roman"', "icrs"]
    for row in frame[["ra", "dec", "rank"]].itertuples(index=False):
        if math.isfinite(row.ra) and math.isfinite(row.dec):
            lines.append(f'circle({row.ra:.7f},{row.dec:+.7f},10.0") # text={{{row.rank}}}')
    with atomic_path(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


def without_coordinates(frame: pd.DataFrame) -> int:
    """Count the candidates a region file cannot show."""
    return int((~np.isfinite(frame[["ra", "dec"]].to_numpy(np.float64)).all(axis=1)).sum())


_WRITERS: dict[str, Callable[[pd.DataFrame, Path, Mapping[str, Any]], None]] = {
    "fits": _fits,
    "votable": _votable,
    "parquet": _parquet,
    "csv": _csv,
    "ds9": _ds9,
}
