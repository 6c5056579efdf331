"""``galscan purity``: what a scan's purity and completeness are, now that some of it was graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from galscan.candidates import columns as table
from galscan.candidates.export import formats as export
from galscan.candidates.export import tables
from galscan.candidates.table_stream import TableStream, of_parquet
from galscan.core import files
from galscan.core.errors import InputError
from galscan.core.memory import release
from galscan.scanning.run import Run, open_one
from galscan.stats import graded
from galscan.stats import purity as purities
from galscan.vetting import gradebook, planning, sampling


def purity(
    run: str | Path, *, target: Sequence[str] | None = None, confidence: float | None = None, draws: int = 1000
) -> dict[str, Any]:
    """Estimate purity and completeness again with the grades of `galscan.vet`, and write them beside the old ones.

    ``candidates-graded.fits`` and ``.parquet`` get the new columns, with grade, votes and comment; what the scan wrote
    stays as it is.

    Parameters
    ----------
    run : path
        A finished scan with grades.
    target : sequence of str, optional
        Which grades count as a target; A and B by default.
    confidence : float, optional
        Of the intervals; what the model's recipe says by default.
    draws : int
        From the posterior.

    Returns
    -------
    dict
        JSON-able: purity and prevalence before and after, at a few ranks; ``text`` is the same for people.

    Raises
    ------
    InputError
        If there are no grades, the run is another one, or its model has gone.
    """
    target = gradebook.TARGET if target is None else target
    opened = open_one(run)
    planning.check(opened)
    if draws < 100 or (confidence is not None and not 0 < confidence < 1):
        raise InputError(f"draws={draws}, confidence={confidence}; use at least 100, and a fraction of 0 to 1")
    with gradebook.GradeBook(opened.path / gradebook.FILE, str(opened.info["fingerprint"])) as book:
        verdicts, strata = book.verdicts(target), book.strata()
        graders, agreement = book.graders(), book.agreement()
    survey = verdicts[verdicts["kind"] == sampling.SURVEY]
    if survey.empty:
        raise InputError(f"nothing of {opened.path} is graded yet; grade some of it: galscan vet {opened.path}")
    before, confidence = planning.by_scores(opened, confidence)
    by_scores, limits = purities.summary(before, confidence), {"completeness_by_scores": _limits(before)}
    listed = len(before.purity)
    # Of a long list each of these is large, and the grades change all that they say.
    none = np.empty(0)
    before = replace(
        before, purity_lo=none, purity_hi=none, completeness=none, completeness_lo=none, completeness_hi=none
    )
    release(listed)
    by_stratum = {
        str(name): (some["rank"].to_numpy(int), some["target"].to_numpy(bool))
        for name, some in survey.groupby("stratum")
    }
    after = graded.combine(
        before, planning.scores(opened), strata, by_stratum,
        beyond=purities.ScoreHistogram.from_list(opened.info.get("histogram_discarded", [])),
        known=sampling.known_labels(opened), known_beyond=sampling.known_beyond(opened), draws=draws,
        confidence=confidence, seed=int(opened.info["seed"]),
    )  # fmt: skip
    told: dict[str, Any] = {
        "run": str(opened.path), "graded": len(survey), "targets": int(survey["target"].sum()),
        "counts_as_target": list(target), "graders": graders, "agreement": agreement,
        "before": by_scores, "after": purities.summary(after, confidence) | {"graded": True},
    }  # fmt: skip
    del before
    release(listed)
    _write(opened, after, verdicts, told, limits | {"completeness": _limits(after)})
    del after
    release(listed)  # the report reads what it needs from the tables
    from galscan.reports.scan import write_scan_report  # Matplotlib is slow to import: not before it is needed

    write_scan_report(opened.path)
    return told | {"text": _text(told, opened.path)}


def _limits(purity: purities.Purity) -> dict[str, list[float | None]]:
    """Return the limits of completeness at some ranks: the report draws them, and they have no column."""
    count = len(purity.purity)
    some = np.unique(np.geomspace(1, max(count, 1), 200).round().astype(int))[:count]
    ends = {end: purity.published(f"completeness_{name}")[some - 1] for end, name in (("low", "lo"), ("high", "hi"))}
    return {"rank": some.tolist()} | {
        end: [float(x) if np.isfinite(x) else None for x in values] for end, values in ends.items()
    }


def _write(
    run: Run, after: purities.Purity, verdicts: pd.DataFrame, told: dict[str, Any], drawn: dict[str, Any]
) -> None:
    info = run.info | {"purity": told["after"]}
    new = _graded(of_parquet(run.path / "candidates.parquet"), after, verdicts)
    files.write_json(run.path / "purity.json", told | drawn)
    table.write_fits(new, run.path / f"{export.GRADED}.fits", export.provenance(info), info.get("answers", ()))
    tables.parquet(new, run.path / f"{export.GRADED}.parquet", export.provenance(info))  # last: export believes it


def _graded(rows: TableStream, after: purities.Purity, verdicts: pd.DataFrame) -> TableStream:
    """Return the candidates with the new purity, and what graders said; a piece at a time, as a list may be long."""
    ranked = verdicts[verdicts["rank"] > 0].set_index("rank")
    numbers = {
        "p_target": after.probability, "purity": after.purity, "purity_lo": after.purity_lo,
        "purity_hi": after.purity_hi, "completeness": after.completeness,
        "ambiguous": after.ambiguous, "ambiguous_lo": after.ambiguous_lo, "ambiguous_hi": after.ambiguous_hi,
    }  # fmt: skip

    def change(piece: pa.Table) -> pa.Table:
        rank = piece["rank"].to_numpy()
        said = ranked.reindex(rank)
        columns = {name: pa.array(values[rank - 1]) for name, values in numbers.items()} | {
            "grade": pa.array(said["grade"].fillna("").tolist(), pa.string()),
            "votes": pa.array(said["votes"].fillna(0).to_numpy(np.int64)),
            "comment": pa.array(said["comment"].fillna("").tolist(), pa.string()),
        }
        for name, values in columns.items():
            at = piece.schema.get_field_index(name)
            piece = piece.append_column(name, values) if at < 0 else piece.set_column(at, name, values)
        return piece

    return rows.changed(change)


def _text(told: dict[str, Any], path: Path) -> str:
    before, after = told["before"], told["after"]
    counted = ", ".join(told["counts_as_target"])
    lines = [f"{told['graded']:,} objects graded, {told['targets']:,} of them targets ({counted})"]
    lines.append(f"{'':<24}{'by scores alone':<26}with grades")
    rows = [("prevalence", before["prevalence"], after["prevalence"])]
    rows += [(f"purity of the best {rank}", before["at"][rank], entry) for rank, entry in after["at"].items()]
    unclear = after["ambiguous_at"]
    rows += [(f"ambiguous in these {rank}", before["ambiguous_at"][rank], entry) for rank, entry in unclear.items()]
    lines += [f"{name:<24}{_interval(old):<26}{_interval(new)}" for name, old, new in rows]
    lines += gradebook.in_words(told["graders"], told["agreement"])
    lines += [f"note         {note}" for note in after["notes"]]
    return "\n".join([*lines, *(f"{kind:<12} {path / export.GRADED}.{kind}" for kind in ("fits", "parquet"))])


def _interval(entry: dict[str, float | None]) -> str:
    value, low, high = ("?" if entry[k] is None else f"{entry[k]:.3g}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
