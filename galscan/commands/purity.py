"""``galscan purity``: estimate the purity and completeness of a scan with the grades of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from galscan.candidates import columns as table
from galscan.candidates.export import tables
from galscan.candidates.run import provenance as provenance_of
from galscan.candidates.table_stream import TableStream, from_parquet
from galscan.core import files
from galscan.core.errors import InputError
from galscan.reports.memory import release
from galscan.scanning.run import GRADED, open_run
from galscan.stats import graded
from galscan.stats import purity as purities
from galscan.vetting import gradebook, planning, sampling


def purity(
    run: str | Path, *, target: Sequence[str] | None = None, confidence: float | None = None, draws: int = 1000
) -> dict[str, Any]:
    """Estimate purity and completeness again with the grades of `galscan.vet`, and write them beside the old ones.

    ``candidates-graded.fits`` and ``.parquet`` hold the new estimates, with grade, votes and comment; the files of the
    scan are not changed.

    Parameters
    ----------
    run : path
        Folder of a finished scan with grades.
    target : sequence of str, optional
        Grades that count as a target; default A and B.
    confidence : float, optional
        Confidence level of the intervals; default the recipe's.
    draws : int
        Number of draws from the posterior.

    Returns
    -------
    dict
        JSON-serialisable: purity and prevalence by scores alone and with grades, at a few ranks; ``text`` is the same
        as a table.

    Raises
    ------
    InputError
        If there are no grades, they belong to a different run, or the model is missing.
    """
    target = gradebook.TARGET if target is None else target
    opened = open_run(run).require_single_target()
    planning.check(opened)
    if draws < 100 or (confidence is not None and not 0 < confidence < 1):
        raise InputError(f"draws={draws}, confidence={confidence}; use at least 100, and a fraction of 0 to 1")
    with gradebook.GradeBook(opened.path / gradebook.FILE, opened.info.fingerprint) as book:
        verdicts, strata = book.verdicts(target), book.strata()
        graders, agreement = book.graders(), book.agreement()
    survey = verdicts[verdicts["kind"] == sampling.SURVEY]
    if survey.empty:
        raise InputError(f"nothing of {opened.path} is graded yet; grade some of it: galscan vet {opened.path}")
    before, confidence = planning.estimate_by_scores(opened, confidence)
    by_scores, limits_by_scores = purities.summary(before, confidence), purities.completeness_limits(before)
    n_candidates = len(before.purity)
    # Each of these arrays is large for a long list, and none is used below.
    unused = ("purity_lo", "purity_hi", "completeness", "completeness_lo", "completeness_hi")
    emptied: dict[str, Any] = dict.fromkeys(unused, np.empty(0))
    before = replace(before, **emptied)
    release(n_candidates)
    by_stratum = {
        str(name): (stratum["rank"].to_numpy(int), stratum["target"].to_numpy(bool))
        for name, stratum in survey.groupby("stratum")
    }
    after = graded.combine(
        before, planning.scores(opened), strata, by_stratum,
        beyond=opened.histogram_discarded, known=sampling.known_labels(opened), known_beyond=opened.info.known_beyond,
        draws=draws, confidence=confidence, seed=opened.info.seed,
    )  # fmt: skip
    summary: dict[str, Any] = {
        "run": str(opened.path), "graded": len(survey), "targets": int(survey["target"].sum()),
        "counts_as_target": list(target), "graders": graders, "agreement": agreement,
        "before": by_scores, "after": purities.summary(after, confidence) | {"graded": True},
    }  # fmt: skip
    del before
    release(n_candidates)
    provenance = provenance_of(opened.info, summary["after"])
    new = _graded(from_parquet(opened.path / "candidates.parquet"), after, verdicts)
    limits = {"completeness_by_scores": limits_by_scores, "completeness": purities.completeness_limits(after)}
    files.write_json(opened.path / "purity.json", summary | limits)
    table.write_fits(new, opened.path / f"{GRADED}.fits", provenance, opened.info.answers)
    tables.parquet(new, opened.path / f"{GRADED}.parquet", provenance)  # last: export reads this file
    del after
    release(n_candidates)  # the report reads the tables again
    from galscan.reports.scan import write_scan_report  # imports Matplotlib, which is slow

    write_scan_report(opened.path)
    return summary | {"text": _text(summary, opened.path)}


def _graded(rows: TableStream, after: purities.Purity, verdicts: pd.DataFrame) -> TableStream:
    """Return the candidates with the new purity and the grades, as a stream: a list may be long."""
    ranked = verdicts[verdicts["rank"] > 0].set_index("rank")
    names = ("purity", "purity_lo", "purity_hi", "completeness", "ambiguous", "ambiguous_lo", "ambiguous_hi")
    numbers = {"p_target": after.probability} | {name: getattr(after, name) for name in names}

    def add_columns(piece: pa.Table) -> pa.Table:
        rank = piece["rank"].to_numpy()
        grades = ranked.reindex(rank)
        columns = {name: pa.array(values[rank - 1]) for name, values in numbers.items()} | {
            "grade": pa.array(grades["grade"].fillna("").tolist(), pa.string()),
            "votes": pa.array(grades["votes"].fillna(0).to_numpy(np.int64)),
            "comment": pa.array(grades["comment"].fillna("").tolist(), pa.string()),
        }
        for name, values in columns.items():
            at = piece.schema.get_field_index(name)
            piece = piece.append_column(name, values) if at < 0 else piece.set_column(at, name, values)
        return piece

    return rows.map(add_columns)


def _text(summary: dict[str, Any], path: Path) -> str:
    before, after = summary["before"], summary["after"]
    target_grades = ", ".join(summary["counts_as_target"])
    lines = [f"{summary['graded']:,} objects graded, {summary['targets']:,} of them targets ({target_grades})"]
    lines.append(f"{'':<24}{'by scores alone':<26}with grades")
    rows = [("prevalence", before["prevalence"], after["prevalence"])]
    rows += [(f"purity of the top {rank}", before["at"][rank], entry) for rank, entry in after["at"].items()]
    ambiguous = after["ambiguous_at"]
    rows += [(f"ambiguous in the top {rank}", before["ambiguous_at"][rank], entry) for rank, entry in ambiguous.items()]
    lines += [f"{name:<24}{_interval(old):<26}{_interval(new)}" for name, old, new in rows]
    lines += gradebook.summary_lines(summary["graders"], summary["agreement"])
    lines += [f"note         {note}" for note in after["notes"]]
    return "\n".join([*lines, *(f"{kind:<12} {path / GRADED}.{kind}" for kind in ("fits", "parquet"))])


def _interval(entry: dict[str, float | None]) -> str:
    value, low, high = ("?" if entry[k] is None else f"{entry[k]:.3g}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
