"""What a graded scan teaches the next model (`galscan train-rare --grades`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from galscan.core.errors import InputError
from galscan.models.model import open_model
from galscan.scanning.run import Run, is_like, open_one
from galscan.store.identity import Objects
from galscan.training.graded_labels import GradedLabels
from galscan.vetting.gradebook import FILE, TARGET, GradeBook
from galscan.vetting.sampling import SURVEY

NONE = ("not", "artefact")  # grades that say it is no target


def read_labels(run: str | Path) -> GradedLabels:
    """Return what people said of a scan's objects: 1 for a target, 0 for none, NaN where that is not sure.

    The majority's grade counts; an object of which one says that it is a target and another that it is none is not
    sure, nor is a C. Known targets and blank frames are no labels.

    Raises
    ------
    InputError
        If the scan is not finished, or nothing in it is graded for sure.
    """
    opened = open_one(run)
    with GradeBook(opened.path / FILE, str(opened.info["fingerprint"])) as book:
        verdicts, current = book.verdicts(), book.current()
    verdicts = verdicts[verdicts["kind"] == SURVEY]
    said = current.groupby("item")["grade"].agg(set).reindex(verdicts["item"])
    torn = np.array([bool(all_ & set(TARGET)) and bool(all_ & set(NONE)) for all_ in said], bool)
    grade = verdicts["grade"].where(~torn)
    target = np.select([grade.isin(TARGET), grade.isin(NONE)], [1.0, 0.0], np.nan)
    if not np.isfinite(target).any():
        raise InputError(
            f"nothing of {opened.path} is graded as a target or as none; grade some of it: galscan vet {opened.path}"
        )
    table = verdicts[["store", "row", "id"]].assign(target=target).reset_index(drop=True)
    stores = {str(s["name"]): (str(s["path"]), str(s["content_hash"])) for s in opened.info["stores"]}
    if strange := sorted(set(table["store"]) - set(stores)):
        raise InputError(f"{opened.path / FILE} names the store '{strange[0]:.60}', which that scan did not look at")
    # What is like some examples was graded for whatever it is to teach, and no model of that was judged by any of it.
    like = is_like(opened.info)
    return GradedLabels(
        opened.path, None if like else str(opened.info["target"]), str(opened.info["fingerprint"]), table, stores,
        Objects(None, None, None, []) if like else _held_out(opened),
    )  # fmt: skip


def read_all(runs: str | Path | Sequence[str | Path]) -> list[GradedLabels]:
    """Return `read_labels` of each run.

    Raises
    ------
    InputError
        If two of them are one scan.
    """
    vetted = [read_labels(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    seen: dict[str, Path] = {}
    for one in vetted:
        if one.fingerprint in seen:
            raise InputError(
                f"{seen[one.fingerprint]} and {one.run} are the same scan; name it once (galscan vet --import brings "
                "grades together)"
            )
        seen[one.fingerprint] = one.run
    return vetted


def _held_out(run: Run) -> Objects | None:
    """Return what the model of a scan was calibrated and tested on; None where it is gone or another by now."""
    try:
        bundle = open_model(str(run.info["model"]))
        held_out = bundle.objects("held_out")
    except InputError:
        return None
    return held_out if bundle.model_hash == run.info["identity"]["model"] else None
