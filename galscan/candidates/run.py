"""Candidates of a finished run: opening, selection by rank or purity, and provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from galscan.candidates.table_stream import TableStream, from_parquet
from galscan.core.errors import InputError
from galscan.scanning.run import Run, open_run
from galscan.scanning.run_info import RunInfo


def open_candidates(run: str | os.PathLike[str]) -> tuple[TableStream, Run]:
    """Return the candidates of a finished run of one target (after ``galscan purity``, with the grades), and the run.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If it is not finished, or has several targets.
    """
    opened = open_run(os.fspath(run)).require_single_target()
    return from_parquet(opened.table), opened


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


def provenance(info: RunInfo, purity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values for a catalogue's header (keys of `columns.write_fits`); `purity` replaces that of the scan."""
    purity = info.purity if purity is None else purity
    prevalence = purity.get("prevalence") or {}
    return {
        "target": info.target,
        "stores": [store.name for store in info.stores] or None,
        "model": info.identity.get("model"),
        "recipe": info.identity.get("recipe"),
        "fingerprint": info.fingerprint,
        "version": info.identity.get("version"),
        "precision": info.precision,
        "seed": info.seed,
        "scanned": info.scanned,
        "quarantined": info.quarantined,
        "candidates": info.candidates,
        "prevalence": prevalence.get("value"),
        "prevalence_lo": prevalence.get("low"),
        "prevalence_hi": prevalence.get("high"),
        "confidence": purity.get("confidence"),
        "purity": _kind(purity),
        "ranked_by": "similarity to examples" if info.is_similarity_list else "score",
        "notes": list(purity.get("notes", [])),
    }
