"""Training labels from a graded scan (`galscan train-rare --grades`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from galscan.core.errors import InputError
from galscan.scanning.run import Run, open_run
from galscan.store.identity import Objects
from galscan.training.graded_labels import GradedLabels
from galscan.vetting.gradebook import FILE, TARGET, GradeBook
from galscan.vetting.sampling import SURVEY

NEGATIVE = ("not", "artefact")  # grades that count as no target


def read_labels(run: str | Path) -> GradedLabels:
    """Return the graded labels of a scan's objects: 1 target, 0 no target, NaN uncertain.

    The label is the majority's grade. Objects with conflicting grades (target and no target), or with grade C, are
    uncertain. Controls (known targets and blank frames) are left out. Without a certain grade it is an `InputError`.
    """
    opened = open_run(run).require_single_target()
    with GradeBook(opened.path / FILE, opened.info.fingerprint) as book:
        verdicts, current = book.verdicts(), book.current()
    verdicts = verdicts[verdicts["kind"] == SURVEY]
    grades = current.groupby("item")["grade"].agg(set).reindex(verdicts["item"])
    conflicting = np.array([bool(given & set(TARGET)) and bool(given & set(NEGATIVE)) for given in grades], bool)
    grade = verdicts["grade"].where(~conflicting)
    target = np.select([grade.isin(TARGET), grade.isin(NEGATIVE)], [1.0, 0.0], np.nan)
    if not np.isfinite(target).any():
        raise InputError(
            f"no object of {opened.path} is graded as a target or as no target; grade some: galscan vet {opened.path}"
        )
    table = verdicts[["store", "row", "id"]].assign(target=target).reset_index(drop=True)
    stores = {ref.name: (ref.path, ref.content_hash) for ref in opened.info.stores}
    if unknown := sorted(set(table["store"]) - set(stores)):
        raise InputError(f"{opened.path / FILE} names the store '{unknown[0]:.60}', which is not in that scan")
    # Grades of a similarity list may train a model of any target, and none of its objects is in a held-out set.
    similarity = opened.info.is_similarity_list
    return GradedLabels(
        opened.path, None if similarity else opened.info.target, opened.info.fingerprint, table, stores,
        Objects(None, None, None, []) if similarity else _held_out(opened),
    )  # fmt: skip


def read_all(runs: str | Path | Sequence[str | Path]) -> list[GradedLabels]:
    """Return `read_labels` of each run; raise `InputError` if two of them are the same scan."""
    graded_scans = [read_labels(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    by_fingerprint: dict[str, Path] = {}
    for scan in graded_scans:
        if (first := by_fingerprint.setdefault(scan.fingerprint, scan.run)) is not scan.run:
            raise InputError(
                f"{first} and {scan.run} are the same scan; name it once (galscan vet --import merges grades)"
            )
    return graded_scans


def _held_out(run: Run) -> Objects | None:
    """Return the held-out objects (calibration and test) of a scan's model; None if it is missing or has changed."""
    model = run.model_if_unchanged()
    return model.objects("held_out") if model is not None else None
