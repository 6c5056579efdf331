"""Stratified random sample of a scan for grading.

The strata are ranges of ranks, each about three times as long as the one before, then the objects scored in full that
are not candidates, and those discarded by the prefilter. Each stratum is sampled at random without replacement: its
objects are put into a random order once, and the sample is the first part of it. The number per stratum is
planned by `galscan.stats.allocation`, again after every `BATCH` grades (`galscan.vetting.batches`). Without a model's
expectation, half of the sample are the top candidates.

Objects of known label are in no stratum. Known targets and blank frames are mixed in as controls, which measure the
reliability of the graders and are used for nothing else. Neither score nor rank is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.scanning import known_labels as known
from galscan.scanning.run import Run
from galscan.scanning.run_info import CANDIDATES
from galscan.stats.allocation import BEYOND, MIN_GRADES
from galscan.stats.graded import Stratum
from galscan.stats.purity import AMBIGUOUS
from galscan.store.identity import Objects, lineage_of

SIZE, BATCH, RANK = 200, 50, 1000
BEST = "best"  # name of the optional stratum that is graded completely
PER_DECADE, LEAST = 2, 25  # strata per factor of ten in rank, and minimum size of a stratum
STRATA_BELOW = 3  # strata of the candidates below the wanted rank
TAIL_FRACTION = 0.3  # of the sample besides the best, for objects that are not candidates, without a model's plan
POSITIVES, BLANKS = 6, 4  # numbers of controls
AT_ONCE, TRIES = 256, 400  # rows sampled from the score tables at a time, and maximum number of times
KINDS = SURVEY, POSITIVE, BLANK = ("survey", "positive", "blank")
_COLUMNS = ["store", "row", "id", "ra", "dec", "stratum", "kind", "rank"]


def strata(
    candidates: int, others: int, discarded: int, best: int = 0, rank: int = RANK, known: np.ndarray | None = None
) -> list[Stratum]:
    """Return the strata of a scan.

    Parameters
    ----------
    candidates, others, discarded : int
        Numbers of candidates, of other objects scored in full, and of objects discarded by the prefilter.
    best : int
        The top `best` candidates are a stratum of their own, which is graded completely.
    rank : int
        Purity is wanted down to this rank, which is a boundary of strata.
    known : ndarray, shape (candidates,), optional
        Known labels of the candidates, NaN where unknown; the populations exclude known ones.
    """
    rank, best = min(rank, candidates), min(best, candidates)
    unknown = np.ones(candidates, bool) if known is None else np.isnan(known)
    above = rank / 10 ** (np.arange(40) / PER_DECADE)
    below = np.geomspace(rank, candidates, STRATA_BELOW + 1) if candidates > rank else np.empty(0)
    inner = np.concatenate([above, below]).round().astype(int)
    inner = inner[(inner >= best + LEAST) & (inner <= candidates - LEAST)]
    edges = np.unique(np.concatenate([inner, [0, best, max(rank, best), candidates]]).astype(int))
    found = [
        Stratum(BEST if last == best else f"{first + 1}-{last}", int(unknown[first:last].sum()), first + 1, last)
        for first, last in pairwise(edges.tolist())
    ]
    found += [Stratum("not ranked", others)] if others else []
    return found + ([Stratum("discarded", discarded, discarded=True)] if discarded else [])


def default_counts(found: list[Stratum], size: int) -> dict[str, int]:
    """Return sample sizes by stratum without a model's plan: all of the first, the rest divided among the others."""
    counts = {s.name: min(s.population, size) for s in found[:1]}
    remaining = size - sum(counts.values())
    ranked = [s for s in found[1:] if s.last]
    tail = [s for s in found[1:] if not s.last]
    for group, fraction in ((ranked, 1 - TAIL_FRACTION if tail else 1.0), (tail, TAIL_FRACTION if ranked else 1.0)):
        for s in group:
            counts[s.name] = min(s.population, max(round(remaining * fraction / len(group)), 1))
    return counts


def queue_counts(found: list[Stratum], size: int) -> dict[str, int]:
    """Return the queue length of each stratum that suffices for any plan of `size` grades."""
    ranked = sum(s.population for s in found if s.last)
    tail = max(round(BEYOND * size), size - ranked) + MIN_GRADES
    return {s.name: min(s.population, max(size, MIN_GRADES) if s.last else tail) for s in found}


def known_labels(run: Run) -> np.ndarray | None:
    """Return the known labels of a run's candidates: 1 target, 0 no target (or ambiguous), NaN unknown.

    None if the table has no column ``known``.
    """
    labels = known.read_labels(run.path / CANDIDATES)
    return None if labels is None else np.where(labels == AMBIGUOUS, 0.0, labels)


def strata_of(run: Run, best: int = 0, rank: int = RANK) -> list[Stratum]:
    """Return the strata of a run's scan, without objects of known label."""
    if "first_look" not in run.info.model_fields_set:
        why = "was scanned by a version that did not record the stages of objects"
        raise InputError(f"{run.path} {why}; scan again and grade the new run")
    prefilter, candidates = run.info.first_look or {}, pq.read_metadata(run.path / CANDIDATES).num_rows
    lost = int(prefilter.get("lost", 0))
    discarded = int(prefilter.get("discarded", 0)) - lost
    others = run.info.scanned - int(prefilter.get("discarded", 0)) - (candidates - lost)
    return strata(candidates, max(others - run.info.known_beyond[0], 0), discarded, best, rank, known_labels(run))


def draw(run: Run, found: list[Stratum], counts: Mapping[str, int], *, seed: int = 0) -> pd.DataFrame:
    """Draw a random sample of each stratum, at most as large as `counts`, and the controls.

    The table has the columns store, row, id, ra, dec, stratum, kind and rank, each stratum in random order and the
    controls last. The order depends on seed and stratum only, so that a larger sample begins with the smaller one.
    """
    columns = ["store", "index", "objid", "ra", "dec", "rank"]
    frame = pd.read_parquet(run.path / CANDIDATES, columns=columns)
    label = known_labels(run)
    excluded = set(zip(frame["store"], frame["index"], strict=True)) if any(not s.last for s in found) else set()
    excluded |= {(example["store"], example["index"]) for example in run.info.like or [] if "store" in example}
    samples = []
    for k, s in enumerate(found):
        rng = np.random.default_rng([seed, k])
        if s.last:
            ranks = np.arange(s.first - 1, s.last)
            ranks = ranks if label is None else ranks[np.isnan(label[s.first - 1 : s.last])]
            rows = frame.iloc[rng.permutation(ranks)[: counts[s.name]]]
            sample = rows.rename(columns={"index": "row", "objid": "id"})[["store", "row", "id", "ra", "dec", "rank"]]
        else:
            sample = _not_candidates(run, counts[s.name], s.discarded, excluded, rng).assign(rank=0)
        samples.append(sample.assign(stratum=s.name, kind=SURVEY))
    rng = np.random.default_rng([seed, len(found)])
    shown = {key for sample in samples for key in zip(sample["store"].astype(str), sample["row"], strict=True)}
    for kind, rows in ((POSITIVE, _known_targets(run, shown, rng)), (BLANK, _blank(BLANKS))):
        samples.append(rows.assign(stratum="", kind=kind, rank=0))
    return pd.concat([s[_COLUMNS].astype({"id": str, "store": str}) for s in samples if len(s)], ignore_index=True)


def shuffled(items: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the items in random order, as displayed; the first is no blank frame, which would look like a fault."""
    order = np.random.default_rng(seed).permutation(len(items))
    galaxies = np.flatnonzero(items["kind"].to_numpy()[order] != BLANK)
    if len(galaxies):
        order[[0, galaxies[0]]] = order[[galaxies[0], 0]]
    return items.iloc[order].reset_index(drop=True)


def _not_candidates(
    run: Run, count: int, discarded: bool, excluded: set[tuple[str, int]], rng: np.random.Generator
) -> pd.DataFrame:
    """Draw objects of unknown label that are not candidates from the score tables, with equal probability."""
    paths = sorted((run.tables / "scores").glob("part-*.parquet"))
    sizes = np.array([pq.read_metadata(path).num_rows for path in paths])
    labelled = _labelled(run) if run.info.known_beyond[0] else None
    of_store = run.info.lineages
    sample = None
    for _ in range(TRIES if sizes.sum() and count else 0):
        partitions = rng.choice(len(sizes), AT_ONCE, p=sizes / sizes.sum())
        rows = rng.integers(sizes[partitions])
        columns = ["store", "index", "id", "ra", "dec", "stage"]
        tables = [pd.read_parquet(paths[k], columns=columns).iloc[rows[partitions == k]] for k in np.unique(partitions)]
        table = pd.concat(tables).iloc[np.argsort(np.argsort(partitions, kind="stable"))].astype({"store": str})
        eligible = (table["stage"].to_numpy(object) != "full") == discarded
        if labelled is not None:
            eligible &= labelled.find_in(table.assign(lineage=table["store"].map(of_store))) < 0
        eligible &= [key not in excluded for key in zip(table["store"], table["index"], strict=True)]
        new = table[eligible].drop(columns="stage").rename(columns={"index": "row"})
        sample = pd.concat([sample, new]).drop_duplicates(["store", "row"])[:count]
        if len(sample) == count:
            break
    return pd.DataFrame(columns=_COLUMNS) if sample is None else sample.reset_index(drop=True)


def _labelled(run: Run) -> Objects | None:
    """Return the objects whose label a run's model knows; None if the model is missing."""
    model = run.model_if_unchanged()
    return model.objects(radius=run.info.astrometry) if model is not None else None


def _known_targets(run: Run, shown: set[tuple[str, int]], rng: np.random.Generator) -> pd.DataFrame:
    """Return targets of the model's training set that are in the survey, as controls that graders should recognise.

    They are drawn from all ranks: targets that the model missed are harder, and would make graders seem unreliable.
    For a similarity list the controls are its examples.
    """
    if run.info.like is not None:
        examples = [example | {"row": example["index"]} for example in run.info.like if "store" in example]
        return pd.DataFrame([examples[k] for k in rng.permutation(len(examples))[:POSITIVES]], columns=_COLUMNS[:5])
    if (model := run.model_if_unchanged()) is None:  # without the model there are no such controls
        return pd.DataFrame(columns=_COLUMNS)
    trained = model.objects("train", targets=True)
    used: set[int] = set()  # objects in several stores are shown once
    rows: list[dict[str, Any]] = []
    for store in run.stores().values():
        names, ra, dec = (store.column(name) for name in ("id", "ra", "dec"))
        found = trained.find(ra, dec, lineage_of(store), names)
        for row in np.flatnonzero(found >= 0).tolist():
            if (store.name, row) not in shown and int(found[row]) not in used:
                used.add(int(found[row]))
                position = {"ra": float(ra[row]), "dec": float(dec[row])}
                rows.append({"store": store.name, "row": row, "id": str(names[row])} | position)
    chosen = rng.permutation(len(rows))[:POSITIVES]
    return pd.DataFrame([rows[k] for k in chosen], columns=_COLUMNS[:5])


def _blank(count: int) -> pd.DataFrame:
    """Return entries for blank frames; the server generates their noise."""
    unknown = {"store": "", "row": -1, "ra": np.nan, "dec": np.nan}
    return pd.DataFrame([{"id": f"blank-{k}"} | unknown for k in range(count)], columns=_COLUMNS[:5])
