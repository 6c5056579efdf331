"""Which objects people grade: some of each stratum, drawn at random, so that the grades speak for all that was scanned.

Candidates are split into strata of ranks, each some three times as long as the one before; then come what was scored in
full and is no candidate, and what the prefilter discarded. Within a stratum the sample is a simple random one without
replacement: its objects are put into a random order once, and more of it are the next ones. How many of
each stratum are graded is planned by `galscan.stats.allocation`, again after every `BATCH` grades
(`galscan.vetting.batches`); where no model says what to expect, half of the sample are the best, one and all.

Objects whose label was known before are in no stratum: there is nothing to learn from them. Known targets and blank
frames are mixed in: they say how well the graders see, and count for nothing else. Neither score nor rank is shown.
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
from galscan.scanning.run import CANDIDATES, Run, astrometry, is_like, lineages
from galscan.stats.allocation import BEYOND, FEW
from galscan.stats.graded import Stratum
from galscan.stats.purity import AMBIGUOUS
from galscan.store.identity import Objects

SIZE, BATCH, RANK = 200, 50, 1000
BEST = "best"  # the stratum that is graded one and all, where one is wanted
PER_DECADE, LEAST = 2, 25  # strata of ranks in each factor of ten, down to so many
PARTS_BELOW = 3  # strata of the candidates below the wanted rank
TAIL_FRACTION = 0.3  # of what is left after the best: for what is no candidate, where no model plans it
POSITIVES, BLANKS = 6, 4
AT_ONCE, TRIES = 256, 400  # rows drawn from the tables of scores at a time, and how often at most
KINDS = SURVEY, POSITIVE, BLANK = ("survey", "positive", "blank")
_COLUMNS = ["store", "row", "id", "ra", "dec", "stratum", "kind", "rank"]


def strata(
    candidates: int, others: int, discarded: int, best: int = 0, rank: int = RANK, known: np.ndarray | None = None
) -> list[Stratum]:
    """Split `candidates`, the `others` that were scored in full, and those `discarded` by the prefilter.

    Parameters
    ----------
    best : int
        So many of the best are a stratum of their own, which is graded one and all.
    rank : int
        Purity is wanted down to here: no stratum lies on both sides of it.
    known : ndarray, shape (candidates,), optional
        NaN where a candidate has no known label; only those are in the populations.
    """
    rank, best = min(rank, candidates), min(best, candidates)
    free = np.ones(candidates, bool) if known is None else np.isnan(known)
    above = rank / 10 ** (np.arange(40) / PER_DECADE)
    below = np.geomspace(rank, candidates, PARTS_BELOW + 1) if candidates > rank else np.empty(0)
    inner = np.concatenate([above, below]).round().astype(int)
    inner = inner[(inner >= best + LEAST) & (inner <= candidates - LEAST)]
    edges = np.unique(np.concatenate([inner, [0, best, max(rank, best), candidates]]).astype(int))
    found = [
        Stratum(BEST if last == best else f"{first + 1}-{last}", int(free[first:last].sum()), int(first) + 1, int(last))
        for first, last in pairwise(edges)
    ]
    found += [Stratum("not ranked", others)] if others else []
    return found + ([Stratum("discarded", discarded, discarded=True)] if discarded else [])


def unplanned(found: list[Stratum], size: int) -> dict[str, int]:
    """Return how many of each stratum to draw where no model plans it: all of the best, then some of each other one."""
    counts = {s.name: min(s.population, size) for s in found[:1]}
    left = size - sum(counts.values())
    ranked = [s for s in found[1:] if s.last]
    tail = [s for s in found[1:] if not s.last]
    for group, part in ((ranked, 1 - TAIL_FRACTION if tail else 1.0), (tail, TAIL_FRACTION if ranked else 1.0)):
        for s in group:
            counts[s.name] = min(s.population, max(round(left * part / len(group)), 1))
    return counts


def queued(found: list[Stratum], size: int) -> dict[str, int]:
    """Return how many of each stratum to put into an order, so that any plan for `size` grades finds enough."""
    ranked = sum(s.population for s in found if s.last)
    tail = max(round(BEYOND * size), size - ranked) + FEW
    return {s.name: min(s.population, max(size, FEW) if s.last else tail) for s in found}


def known_labels(run: Run) -> np.ndarray | None:
    """Return the labels that were known before of a run's candidates: 1 target, 0 none, NaN unknown; None without any.

    They are what the column ``known`` says, where the table has it. An ambiguous object is no target.
    """
    labels = known.read_labels(run.path / CANDIDATES)
    return None if labels is None else np.where(labels == AMBIGUOUS, 0.0, labels)


def known_beyond(run: Run) -> tuple[int, int]:
    """Return how many objects of known label are no candidates, and how many of them are targets."""
    objects, targets = run.info.get("known_beyond", (0, 0))
    return int(objects), int(targets)


def strata_of(run: Run, best: int = 0, rank: int = RANK) -> list[Stratum]:
    """Split what a scan looked at; objects of known label are in no stratum.

    Raises
    ------
    InputError
        If the scan is of a version that did not keep what is needed.
    """
    if "first_look" not in run.info:
        raise InputError(
            f"{run.path} was scanned by a version that did not keep how far each object came; scan it again, and grade"
            " that"
        )
    looked, candidates = run.info["first_look"] or {}, pq.read_metadata(run.path / CANDIDATES).num_rows
    lost = int(looked.get("lost", 0))
    discarded = int(looked.get("discarded", 0)) - lost
    others = int(run.info["scanned"]) - int(looked.get("discarded", 0)) - (candidates - lost)
    return strata(candidates, max(others - known_beyond(run)[0], 0), discarded, best, rank, known_labels(run))


def draw(run: Run, found: list[Stratum], counts: Mapping[str, int], *, seed: int = 0) -> pd.DataFrame:
    """Draw so many of each stratum, and the controls.

    Of another count the order is the same, as far as it goes: it depends on the seed and the stratum alone.

    Parameters
    ----------
    found : list of Stratum
        As `strata_of` gives them.
    counts : mapping
        How many of each, at most; fewer where the tables of scores hold too few.

    Returns
    -------
    DataFrame
        Columns store, row, id, ra, dec, stratum, kind, rank; within each stratum in random order, controls last.
    """
    columns = ["store", "index", "objid", "ra", "dec", "rank"]
    frame = pd.read_parquet(run.path / CANDIDATES, columns=columns)
    label = known_labels(run)
    taken = set(zip(frame["store"], frame["index"], strict=True)) if any(not s.last for s in found) else set()
    taken |= {(one["store"], one["index"]) for one in run.info.get("like", []) if "store" in one}
    parts = []
    for k, s in enumerate(found):
        rng = np.random.default_rng([seed, k])
        if s.last:
            free = np.arange(s.first - 1, s.last)
            free = free if label is None else free[np.isnan(label[s.first - 1 : s.last])]
            rows = frame.iloc[rng.permutation(free)[: counts[s.name]]]
            drawn = rows.rename(columns={"index": "row", "objid": "id"})[["store", "row", "id", "ra", "dec", "rank"]]
        else:
            drawn = _beyond(run, counts[s.name], s.discarded, taken, rng).assign(rank=0)
        parts.append(drawn.assign(stratum=s.name, kind=SURVEY))
    rng = np.random.default_rng([seed, len(found)])
    shown = {key for part in parts for key in zip(part["store"].astype(str), part["row"], strict=True)}
    for kind, rows in ((POSITIVE, _known(run, shown, rng)), (BLANK, _blank(BLANKS))):
        parts.append(rows.assign(stratum="", kind=kind, rank=0))
    return pd.concat([p[_COLUMNS].astype({"id": str, "store": str}) for p in parts if len(p)], ignore_index=True)


def shuffled(items: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return them in a random order, as they are shown."""
    return items.iloc[np.random.default_rng(seed).permutation(len(items))].reset_index(drop=True)


def _beyond(
    run: Run, count: int, discarded: bool, taken: set[tuple[str, int]], rng: np.random.Generator
) -> pd.DataFrame:
    """Draw objects that are no candidates from the tables of scores, each of unknown label with the same chance."""
    paths = sorted((run.tables / "scores").glob("part-*.parquet"))
    sizes = np.array([pq.read_metadata(path).num_rows for path in paths])
    labelled = _labelled(run) if known_beyond(run)[0] else None
    of_store = lineages(run.info)
    got: list[pd.DataFrame] = []
    seen: set[tuple[str, int]] = set()
    for _ in range(TRIES if sizes.sum() and count else 0):
        parts = rng.choice(len(sizes), AT_ONCE, p=sizes / sizes.sum())
        rows = rng.integers(sizes[parts])
        columns = ["store", "index", "id", "ra", "dec", "stage"]
        drawn = [pd.read_parquet(paths[k], columns=columns).iloc[rows[parts == k]] for k in np.unique(parts)]
        table = pd.concat(drawn).iloc[np.argsort(np.argsort(parts, kind="stable"))].astype({"store": str})
        fits = (table["stage"].to_numpy(object) != "full") == discarded
        if labelled is not None:
            fits &= labelled.find_in(table.assign(lineage=table["store"].map(of_store))) < 0
        for place in np.flatnonzero(fits):
            row = table.iloc[[place]]
            key = (str(row["store"].iloc[0]), int(row["index"].iloc[0]))
            if key not in taken and key not in seen:
                seen.add(key)
                got.append(row.drop(columns="stage").rename(columns={"index": "row"}))
            if len(got) == count:
                return pd.concat(got, ignore_index=True)
    return pd.concat(got, ignore_index=True) if got else pd.DataFrame(columns=_COLUMNS)


def _labelled(run: Run) -> Objects | None:
    """Return the objects whose label the model of a run knows; None where the model is gone."""
    from galscan.models.model import open_model

    try:
        return open_model(str(run.info["model"])).objects(radius=astrometry(run.info))
    except InputError:
        return None


def _known(run: Run, shown: set[tuple[str, int]], rng: np.random.Generator) -> pd.DataFrame:
    """Return targets that the model was trained on and that are in the survey: graders should know them.

    Of all that are not shown already, wherever they are ranked: those that the model missed alone would make graders
    look worse than they are. Of a list of what is like some examples, these are what they should know.
    """
    if is_like(run.info):
        inside = [one | {"row": one["index"]} for one in run.info["like"] if "store" in one]
        return pd.DataFrame([inside[k] for k in rng.permutation(len(inside))[:POSITIVES]], columns=_COLUMNS[:5])
    from galscan.models.model import open_model
    from galscan.store.identity import lineage_of
    from galscan.store.layout import open_store

    try:
        trained = open_model(str(run.info["model"])).objects("train", targets=True)
    except InputError:  # the model is gone: no controls then
        return pd.DataFrame(columns=_COLUMNS)
    seen: set[int] = set()  # what several stores have is shown once
    rows: list[dict[str, Any]] = []
    for entry in run.info["stores"]:
        store = open_store(entry["path"])
        names, ra, dec = (store.column(name) for name in ("id", "ra", "dec"))
        found = trained.find(ra, dec, lineage_of(store), names)
        for row in np.flatnonzero(found >= 0).tolist():
            if (store.name, row) not in shown and int(found[row]) not in seen:
                seen.add(int(found[row]))
                place = {"ra": float(ra[row]), "dec": float(dec[row])}
                rows.append({"store": store.name, "row": row, "id": str(names[row])} | place)
    chosen = rng.permutation(len(rows))[:POSITIVES]
    return pd.DataFrame([rows[k] for k in chosen], columns=_COLUMNS[:5])


def _blank(count: int) -> pd.DataFrame:
    """Return frames with nothing on them but a little noise; they are drawn where they are shown."""
    nowhere = {"store": "", "row": -1, "ra": np.nan, "dec": np.nan}
    return pd.DataFrame([{"id": f"blank-{k}"} | nowhere for k in range(count)], columns=_COLUMNS[:5])
