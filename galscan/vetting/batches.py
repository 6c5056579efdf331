"""Adaptive sampling in batches: grades so far decide the allocation of the next batch.

A new grade book holds the objects of every stratum in random order, and the plan: sample size, rank at which purity is
wanted, and the model's expectation for each stratum. When all of the sample is graded, `extend` adds the next batch,
allocated from the grades so far (`galscan.stats.allocation`). As all state is in the book, grading can be resumed at
any time, and equal grades give equal batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.scanning.run import Run
from galscan.stats import allocation
from galscan.stats.graded import prior_fractions
from galscan.vetting import gradebook, planning, sampling
from galscan.vetting.gradebook import GradeBook

DRAWS, DIGITS = 500, 6  # posterior draws of the model's expectation stored in the book, and their significant digits


def begin(run: Run, path: Path, *, best: int | None, size: int, rank: int | None, seed: int) -> None:
    """Draw the sample of a run and write a new grade book; `extend` then adds the first batch.

    `best`, `size` and `rank` are those of `galscan.vet`. Without a model's plan half of the sample are the best.

    Raises
    ------
    InputError
        If a number is out of range, or the scan was made by a version that did not record the stages of objects.
    """
    if size < 1 or (best is not None and not 1 <= best <= size):
        raise InputError(f"--best {best}, --size {size}: the best must be at least 1, and at most the size")
    rank = sampling.RANK if rank is None else rank
    meta = {"fingerprint": run.info.fingerprint, "seed": str(seed)}
    found = sampling.strata_of(run, best or 0, rank)
    prior = _prior(run, found)
    if prior is None:
        found = sampling.strata_of(run, max(size // 2, 1) if best is None else best, rank)
        items = sampling.draw(run, found, sampling.default_counts(found, size), seed=seed)
        gradebook.create(path, sampling.shuffled(items, seed), found, meta)
        return
    plan = {
        "size": size, "batch": sampling.BATCH, "rank": rank, "entire": [sampling.BEST] if best else [],
        "prior": {name: [float(f"{x:.{DIGITS}g}") for x in draws] for name, draws in prior.items()},
    }  # fmt: skip
    queue = sampling.draw(run, found, sampling.queue_counts(found, size), seed=seed)
    gradebook.create(path, queue[:0], found, meta | {gradebook.PLAN: json.dumps(plan)}, queue)


def _prior(run: Run, found: list[sampling.Stratum]) -> dict[str, np.ndarray] | None:
    """Return the model's expectation for each stratum; None without a calibrated model."""
    if run.info.is_similarity_list:
        return None
    try:
        purity, _ = planning.estimate_by_scores(run)
    except InputError:  # the model is missing, or the scan was made by an old version
        return None
    known = sampling.known_labels(run)
    prior = prior_fractions(purity, planning.scores(run), found, run.histogram_discarded, known=known)
    return {name: draws[:: max(len(draws) // DRAWS, 1)][:DRAWS] for name, draws in prior.items()}


def extend(book: GradeBook) -> int:
    """Add the next batch to the sample if all of it is graded; return the number of survey objects added."""
    plan = plan_of(book)
    if plan is None or book.ungraded():
        return 0
    items, queue, strata = book.items(), book.queue(), book.strata()
    survey = items[items["kind"] == sampling.SURVEY]
    size = min(int(plan["batch"]), int(plan["size"]) - len(survey))
    if size <= 0:
        return 0
    verdicts = book.verdicts()
    verdicts = verdicts[verdicts["kind"] == sampling.SURVEY].groupby("stratum")["target"]
    hits, sampled = verdicts.sum().to_dict(), survey.groupby("stratum").size().to_dict()
    queued = queue[queue["kind"] == sampling.SURVEY].groupby("stratum").size().to_dict()
    more = allocation.allocate(
        strata, {name: np.array(draws) for name, draws in plan["prior"].items()},
        {name: (int(hits.get(name, 0)), int(n)) for name, n in sampled.items()}, size, int(plan["rank"]),
        entire=plan["entire"], available={s.name: int(queued.get(s.name, 0)) for s in strata},
        seed=int(book.meta.get("seed", 0)),
    )  # fmt: skip
    done = (len(survey) + size) / int(plan["size"])
    wanted = {(name, sampling.SURVEY): sampled.get(name, 0) + n for name, n in more.items()}
    wanted |= {("", kind): round(done * (queue["kind"] == kind).sum()) for kind in (sampling.POSITIVE, sampling.BLANK)}
    present = items.groupby(["stratum", "kind"]).size().to_dict()
    added = pd.concat(
        [group[present.get(key, 0) : max(wanted[key], 0)] for key, group in queue.groupby(["stratum", "kind"])]
    )
    book.add(sampling.shuffled(added, int(book.meta.get("seed", 0)) + len(items))["number"])
    return int((added["kind"] == sampling.SURVEY).sum())


def plan_of(book: GradeBook) -> Mapping[str, Any] | None:
    """Return the plan of a book, None for a book whose sample was drawn at once; raise `InputError` if damaged."""
    if gradebook.PLAN not in book.meta:
        return None
    try:
        plan = json.loads(book.meta[gradebook.PLAN])
        numbers = np.array([plan["prior"][s.name] for s in book.strata()], float)  # of equal lengths, or an error
        if numbers.ndim != 2 or not ((numbers >= 0) & (numbers <= 1)).all() or not isinstance(plan["entire"], list):
            raise ValueError("invalid prior fractions")
        if not all(type(plan[name]) is int and plan[name] > 0 for name in ("size", "batch", "rank")):
            raise ValueError("size, batch and rank must be positive integers")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{book.path} has a damaged plan ({error!r}); restore it from a copy") from None
    return plan  # type: ignore[no-any-return]


def total_size(book: GradeBook) -> int:
    """Return the total number of objects for a grader, including controls and further batches."""
    items, plan = book.items(), plan_of(book)
    if plan is None:
        return len(items)
    survey = (items["kind"] == sampling.SURVEY).sum()
    queue = book.queue()["kind"]
    reachable = min(int(plan["size"]), int((queue == sampling.SURVEY).sum()))
    return int(max(reachable, survey) + (queue != sampling.SURVEY).sum())
