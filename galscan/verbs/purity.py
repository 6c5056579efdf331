"""``galscan purity``: what a scan's purity and completeness are, now that some of it was graded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan import files
from galscan.candidates import export, graded, table
from galscan.candidates import purity as purities
from galscan.errors import InputError
from galscan.scanning.run import Run, open_one
from galscan.vetting import design, forecast, grades


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
    target = grades.TARGET if target is None else target
    opened = open_one(run)
    forecast.check(opened)
    if draws < 100 or (confidence is not None and not 0 < confidence < 1):
        raise InputError(f"draws={draws}, confidence={confidence}; use at least 100, and a fraction of 0 to 1")
    with grades.GradeBook(opened.path / grades.FILE, str(opened.info["fingerprint"])) as book:
        verdicts, strata = book.verdicts(target), book.strata()
        graders, agreement = book.graders(), book.agreement()
    survey = verdicts[verdicts["kind"] == design.SURVEY]
    if survey.empty:
        raise InputError(f"nothing of {opened.path} is graded yet; grade some of it: galscan vet {opened.path}")
    frame, (before, confidence) = opened.candidates, forecast.by_scores(opened, confidence)
    by_stratum = {
        str(name): (some["rank"].to_numpy(int), some["target"].to_numpy(bool))
        for name, some in survey.groupby("stratum")
    }
    after = graded.combine(
        before, frame["score"].to_numpy(np.float64), strata, by_stratum,
        beyond=purities.ScoreHistogram.from_list(opened.info.get("histogram_discarded", [])), draws=draws,
        confidence=confidence, seed=int(opened.info["seed"]),
    )  # fmt: skip
    told: dict[str, Any] = {
        "run": str(opened.path), "graded": len(survey), "targets": int(survey["target"].sum()),
        "counts_as_target": list(target), "graders": graders, "agreement": agreement,
        "before": purities.summary(before, confidence), "after": purities.summary(after, confidence),
    }  # fmt: skip
    _write(opened, frame, after, verdicts, told)
    from galscan.report_scan import write_scan_report  # Matplotlib is slow to import: not before it is needed

    write_scan_report(opened.path)
    return told | {"text": _text(told, opened.path)}


def _write(run: Run, frame: pd.DataFrame, after: purities.Purity, verdicts: pd.DataFrame, told: dict[str, Any]) -> None:
    new = frame.assign(
        p_target=after.probability, purity=after.purity, purity_lo=after.purity_lo, purity_hi=after.purity_hi,
        completeness=after.completeness, grade="", votes=0, comment="",
    )  # fmt: skip
    ranked = verdicts[verdicts["rank"] > 0]
    rows = ranked["rank"].to_numpy(int) - 1
    for name in ("grade", "votes", "comment"):
        new.loc[new.index[rows], name] = ranked[name].to_numpy()
    info = run.info | {"purity": told["after"]}
    # The report draws the limits of completeness, which have no column.
    some = np.unique(np.geomspace(1, max(len(frame), 1), 200).round().astype(int))[: len(frame)]
    limits = {"rank": some, "low": after.completeness_lo[some - 1], "high": after.completeness_hi[some - 1]}
    drawn = {"completeness": {name: values.tolist() for name, values in limits.items()}}
    files.write_json(run.path / "purity.json", told | drawn)
    table.write_fits(new, run.path / f"{export.GRADED}.fits", export.provenance(info), info.get("answers", ()))
    with files.atomic_path(run.path / f"{export.GRADED}.parquet") as temporary:  # last: with it export believes all
        new.to_parquet(temporary, index=False)


def _text(told: dict[str, Any], path: Path) -> str:
    before, after = told["before"], told["after"]
    counted = ", ".join(told["counts_as_target"])
    lines = [f"{told['graded']:,} objects graded, {told['targets']:,} of them targets ({counted})"]
    lines.append(f"{'':<24}{'by scores alone':<26}with grades")
    rows = [("prevalence", before["prevalence"], after["prevalence"])]
    rows += [(f"purity of the best {rank}", before["at"][rank], entry) for rank, entry in after["at"].items()]
    lines += [f"{name:<24}{_interval(old):<26}{_interval(new)}" for name, old, new in rows]
    lines += grades.in_words(told["graders"], told["agreement"])
    lines += [f"note         {note}" for note in after["notes"]]
    return "\n".join([*lines, *(f"{kind:<12} {path / export.GRADED}.{kind}" for kind in ("fits", "parquet"))])


def _interval(entry: dict[str, float | None]) -> str:
    value, low, high = ("?" if entry[k] is None else f"{entry[k]:.3g}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
