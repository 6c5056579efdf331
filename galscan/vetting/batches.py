"""The sample in batches: what is graded so far says where the next grades tell most.

A book is begun with the objects of every stratum in a random order, and the plan: how many to grade in all, for the
purity at which rank, and what the model expects of each stratum. Whenever all of the sample is graded, `extend` takes
the next batch into it, allocated by the grades there are (`galscan.stats.allocation`). It needs nothing but the
book, so it goes on after any interruption, and comes to the same batches from the same grades.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.scanning.run import Run, is_like
from galscan.stats import allocation
from galscan.stats.graded import prior_fractions
from galscan.stats.purity import ScoreHistogram
from galscan.vetting import gradebook, planning, sampling
from galscan.vetting.gradebook import GradeBook

DRAWS, DIGITS = 500, 6  # of what the model expects, as the book keeps it


def begin(run: Run, path: Path, *, best: int | None, size: int, rank: int | None, seed: int) -> None:
    """Draw the sample of a run and write a new grade book; the first batch is `extend`'s.

    Parameters
    ----------
    best : int, optional
        So many of the best are graded one and all; none by default, or half of all where no model plans the sample.
    size : int
        Objects of the survey to grade; the controls come on top.
    rank : int, optional
        The purity down to this rank is wanted; 1,000 by default, or the last.

    Raises
    ------
    InputError
        If a number is out of range, or the scan is of a version that did not keep what is needed.
    """
    if size < 1 or (best is not None and not 1 <= best <= size):
        raise InputError(f"--best {best}, --size {size}: grade at least one of the best, and at least as many in all")
    rank = sampling.RANK if rank is None else rank
    meta = {"fingerprint": str(run.info["fingerprint"]), "seed": str(seed)}
    found = sampling.strata_of(run, best or 0, rank)
    prior = _prior(run, found)
    if prior is None:
        found = sampling.strata_of(run, max(size // 2, 1) if best is None else best, rank)
        items = sampling.draw(run, found, sampling.unplanned(found, size), seed=seed)
        gradebook.create(path, sampling.shuffled(items, seed), found, meta)
        return
    plan = {
        "size": size, "batch": sampling.BATCH, "rank": rank, "entire": [sampling.BEST] if best else [],
        "prior": {name: [float(f"{x:.{DIGITS}g}") for x in draws] for name, draws in prior.items()},
    }  # fmt: skip
    queue = sampling.draw(run, found, sampling.queued(found, size), seed=seed)
    gradebook.create(path, queue[:0], found, meta | {gradebook.PLAN: json.dumps(plan)}, queue)


def _prior(run: Run, found: list[sampling.Stratum]) -> dict[str, np.ndarray] | None:
    """Return what the model expects of each stratum; None where none does."""
    if is_like(run.info):
        return None
    try:
        purity, _ = planning.by_scores(run)
    except InputError:  # the model is gone, or the scan kept too little
        return None
    prior = prior_fractions(
        purity, planning.scores(run), found, ScoreHistogram.from_list(run.info.get("histogram_discarded", [])),
        known=sampling.known_labels(run),
    )  # fmt: skip
    return {name: draws[:: max(len(draws) // DRAWS, 1)][:DRAWS] for name, draws in prior.items()}


def extend(book: GradeBook) -> int:
    """Take the next batch into the sample if all of it is graded; return how many objects of the survey came.

    Raises
    ------
    InputError
        If the book's plan is damaged.
    """
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
    hits, drawn = verdicts.sum().to_dict(), survey.groupby("stratum").size().to_dict()
    ready = queue[queue["kind"] == sampling.SURVEY].groupby("stratum").size().to_dict()
    more = allocation.allocate(
        strata, {name: np.array(draws) for name, draws in plan["prior"].items()},
        {name: (int(hits.get(name, 0)), int(n)) for name, n in drawn.items()}, size, int(plan["rank"]),
        entire=plan["entire"], available={s.name: int(ready.get(s.name, 0)) for s in strata},
        seed=int(book.meta.get("seed", 0)),
    )  # fmt: skip
    done = (len(survey) + size) / int(plan["size"])
    wanted = {(name, sampling.SURVEY): drawn.get(name, 0) + n for name, n in more.items()}
    wanted |= {("", kind): round(done * (queue["kind"] == kind).sum()) for kind in (sampling.POSITIVE, sampling.BLANK)}
    taken = items.groupby(["stratum", "kind"]).size().to_dict()
    chosen = pd.concat(
        [some[taken.get(key, 0) : max(wanted[key], 0)] for key, some in queue.groupby(["stratum", "kind"])]
    )
    book.add(sampling.shuffled(chosen, int(book.meta.get("seed", 0)) + len(items))["number"])
    return int((chosen["kind"] == sampling.SURVEY).sum())


def plan_of(book: GradeBook) -> Mapping[str, Any] | None:
    """Return the plan of a book, None if its whole sample was drawn at once.

    Raises
    ------
    InputError
        If it is damaged.
    """
    if gradebook.PLAN not in book.meta:
        return None
    try:
        plan = json.loads(book.meta[gradebook.PLAN])
        draws = {len(plan["prior"][s.name]) for s in book.strata()}
        numbers = np.array([plan["prior"][s.name] for s in book.strata()], float)
        if len(draws) != 1 or not ((numbers >= 0) & (numbers <= 1)).all() or not isinstance(plan["entire"], list):
            raise ValueError("what the model expects is none")
        if not all(type(plan[name]) is int and plan[name] > 0 for name in ("size", "batch", "rank")):
            raise ValueError("its numbers are none")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{book.path} has a damaged plan ({error!r}); restore it from a copy") from None
    return plan  # type: ignore[no-any-return]


def in_all(book: GradeBook) -> int:
    """Return how many objects a grader is shown in all, controls and what is to come included."""
    items, plan = book.items(), plan_of(book)
    if plan is None:
        return len(items)
    survey = (items["kind"] == sampling.SURVEY).sum()
    queue = book.queue()["kind"]
    reachable = min(int(plan["size"]), int((queue == sampling.SURVEY).sum()))
    return int(max(reachable, survey) + (queue != sampling.SURVEY).sum())
