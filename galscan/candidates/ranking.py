"""Ranked table of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.core.sky import designation
from galscan.stats.purity import Purity
from galscan.store import identity

_FROM_SCAN = ("store", "index", "id", "ra", "dec", "score", "score_std")
ESTIMATES = ("purity", "purity_lo", "purity_hi", "completeness", "ambiguous", "ambiguous_lo", "ambiguous_hi")
_NO_ANSWERS = (*_FROM_SCAN, "known", "lineage", "flags", "first_look", "stage")


def caption(row: Mapping[str, Any]) -> str:
    """Return the rank of a candidate, and its probability or, if unknown, its score."""
    p = row["p_target"]  # None from a Parquet table
    return f"{row['rank']}  {row['score']:.3f}" if p is None or np.isnan(p) else f"{row['rank']}  p={p:.2f}"


def rank(top: pd.DataFrame, purity: Purity | None, in_train: np.ndarray, radius: float = 0.0) -> pd.DataFrame:
    """Build the table of candidates from the top scores of a scan.

    Parameters
    ----------
    top : DataFrame
        Columns store, index, id, ra, dec, score, score_std, optionally known (`galscan.scanning.known_labels`), lineage
        (`galscan.store.identity.lineage_of`; by default the store) and flags, then one per answer; best first.
    purity : Purity or None
        Of the same rows; None if the score is not calibrated.
    in_train : ndarray of bool
        Which rows are in the model's training set.
    radius : float
        Arcsec within which two rows are one object, if larger than `galscan.store.identity.RADIUS`.

    Returns
    -------
    DataFrame
        Columns of `galscan.candidates.columns.COLUMNS` without those from graders and reference lists (``flags``
        only if `top` has it), then the answers. ``objid`` is int64 if every id is an integer, else text.
    """
    ids = top["id"] if "id" in top else pd.Series([], dtype="int64")
    if not len(top):  # nothing was ranked
        top = top.reindex(columns=[*_FROM_SCAN, *(name for name in top if name not in _FROM_SCAN)])
    frame = {
        "designation": designation(top["ra"].to_numpy(np.float64), top["dec"].to_numpy(np.float64)).astype(object),
        "objid": ids.to_numpy(np.int64) if pd.api.types.is_integer_dtype(ids) else ids.astype(str).to_numpy(object),
        "store": top["store"].astype(str).to_numpy(object),
        "index": top["index"].to_numpy(np.int64),
        "ra": top["ra"].to_numpy(np.float64),
        "dec": top["dec"].to_numpy(np.float64),
        "rank": np.arange(1, len(top) + 1, dtype=np.int64),
        "score": top["score"].to_numpy(np.float32),
        "score_std": top["score_std"].to_numpy(np.float32),
        "p_target": np.nan if purity is None else purity.published("probability"),
        **{name: np.nan if purity is None else purity.published(name) for name in ESTIMATES},
        "known": top["known"].to_numpy(object) if "known" in top else np.full(len(top), ""),
        "in_train": np.asarray(in_train, bool),
        "duplicate": duplicates(top, radius),
    }
    if "flags" in top:
        frame["flags"] = top["flags"].to_numpy(np.uint8)
    answers = [name for name in top.columns if name not in _NO_ANSWERS]
    if clashes := sorted({*answers} & {*frame}):
        raise InputError(
            f"rank: the answer '{clashes[0]}' has the name of a column of the table; rename it in the label schema"
        )
    return pd.DataFrame(frame | {name: top[name].to_numpy(np.float32) for name in answers})


def duplicates(top: pd.DataFrame, radius: float = 0.0) -> np.ndarray:
    """Return which rows (bool) repeat an object of better rank, from another store or under another id."""
    lineage = top["lineage"] if "lineage" in top else top["store"].astype(str)
    first = identity.groups(top["ra"], top["dec"], lineage, top["id"], radius=max(radius, identity.RADIUS))
    return np.asarray(first != np.arange(len(top)))
