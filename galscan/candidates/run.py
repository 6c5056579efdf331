"""Candidates of a finished run: opening, selection by rank or purity, and provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galscan.candidates.table_stream import TableStream, from_parquet
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import read_json
from galscan.scanning.run import check_single_target, is_similarity_list

GRADED = "candidates-graded"


def open_candidates(run: str | os.PathLike[str]) -> tuple[TableStream, dict[str, Any]]:
    """Return the candidates of a finished run, and its run.json; after ``galscan purity``, those with the grades.

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
    if isinstance(info, dict):
        check_single_target(run, info)
    if not isinstance(info, dict) or info.get("status") != "done" or not (run / "candidates.parquet").is_file():
        raise InputError(f"the scan in {run} is not finished; run its scan command again to resume it")
    if (run / f"{GRADED}.parquet").is_file():
        return from_parquet(run / f"{GRADED}.parquet"), info | {"purity": read_json(run / "purity.json")["after"]}
    return from_parquet(run / "candidates.parquet"), info


def select(rows: TableStream, *, top: int | None = None, min_purity: float | None = None) -> TableStream:
    """Return the candidates down to rank `top` and to the largest rank with purity >= `min_purity`.

    Raises
    ------
    InputError
        If an option is out of range.
    """
    keep = rows.count
    if top is not None:
        if top < 1:
            raise InputError(f"--top {top}: at least 1 candidate is needed")
        keep = min(keep, top)
    if min_purity is not None:
        if not 0 <= min_purity <= 1:  # also refuses NaN
            raise InputError(f"--min-purity {min_purity}: purity is a fraction; use 0 to 1")
        pure = start = 0
        for piece in rows.select(["purity"]):
            found = np.flatnonzero(piece["purity"].to_numpy() >= min_purity)
            pure = start + int(found[-1]) + 1 if len(found) else pure
            start += len(piece)
        keep = min(keep, pure)
    return rows.head(keep)


def max_purity(rows: TableStream) -> float:
    """Return the largest purity of any rank; 0 if there is none."""
    return max((float(np.nanmax(piece["purity"].to_numpy())) for piece in rows.select(["purity"])), default=0.0)


def _kind(purity: Mapping[str, Any]) -> str | None:
    """Return how purity was measured; None if the ranking is not by a calibrated score."""
    if purity.get("confidence") is None:
        return None
    return "unknown" if purity.get("unknown") else "graded" if purity.get("graded") else "estimated"


def provenance(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of run.json for a catalogue's header (keys of `columns.write_fits`)."""
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
        "purity": _kind(purity),
        "ranked_by": "similarity to examples" if is_similarity_list(info) else "score",
        "notes": list(purity.get("notes", [])),
    }
