"""Which objects people grade: some of each stratum, drawn at random, so that the grades speak for all that was scanned.

The best are graded one and all; then come three strata of the other candidates, each longer than the one before; what
was scored and is no candidate; and what the first look discarded. Known targets and blank frames are mixed in: they say
how well the graders see, and count for nothing else. The order is random, and neither score nor rank is shown.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from galscan.candidates.graded import Stratum
from galscan.errors import InputError
from galscan.scanning.run import Run, is_like

BEST, SIZE = 100, 200
TAIL_SHARE = 0.3  # of what is left after the best: for what is no candidate
POSITIVES, BLANKS = 6, 4
AT_ONCE, TRIES = 256, 400  # rows drawn from the tables of scores at a time, and how often at most
KINDS = SURVEY, POSITIVE, BLANK = ("survey", "positive", "blank")
_COLUMNS = ["store", "row", "id", "ra", "dec", "stratum", "kind", "rank"]


def strata(candidates: int, others: int, discarded: int, best: int = BEST) -> list[Stratum]:
    """Share out `candidates`, the `others` that were scored in full, and those `discarded` by the first look."""
    best = min(best, candidates)
    found = [Stratum("best", best, 1, best)] if best else []
    if candidates > best:
        edges = np.unique(np.geomspace(best, candidates, 4).round().astype(int))
        edges[0], edges[-1] = best, candidates
        names = ("upper", "middle", "lower")
        found += [
            Stratum(names[k], int(last - first), int(first) + 1, int(last))
            for k, (first, last) in enumerate(pairwise(edges))
        ]
    found += [Stratum("not ranked", others)] if others else []
    return found + ([Stratum("discarded", discarded, discarded=True)] if discarded else [])


def shares(found: list[Stratum], size: int) -> dict[str, int]:
    """Return how many of each stratum to draw: all of the best, and of the others `size` less those, at most."""
    counts = {s.name: min(s.population, size) for s in found[:1]}
    left = size - sum(counts.values())
    ranked = [s for s in found[1:] if s.last]
    tail = [s for s in found[1:] if not s.last]
    for group, part in ((ranked, 1 - TAIL_SHARE if tail else 1.0), (tail, TAIL_SHARE if ranked else 1.0)):
        for s in group:
            counts[s.name] = min(s.population, max(round(left * part / len(group)), 1))
    return counts


def strata_of(run: Run, best: int) -> list[Stratum]:
    """Share out what a scan looked at.

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
    looked, candidates = run.info["first_look"] or {}, len(run.candidates)
    lost = int(looked.get("lost", 0))
    discarded = int(looked.get("discarded", 0)) - lost
    others = int(run.info["scanned"]) - int(looked.get("discarded", 0)) - (candidates - lost)
    return strata(candidates, others, discarded, best)


def draw(run: Run, *, best: int = BEST, size: int = SIZE, seed: int = 0) -> tuple[pd.DataFrame, list[Stratum]]:
    """Draw the sample of a run.

    Parameters
    ----------
    best : int
        How many of the best to grade one and all.
    size : int
        Objects of the survey to grade; the controls come on top.

    Returns
    -------
    items : DataFrame
        Columns store, row, id, ra, dec, stratum, kind, rank, in the order in which they are shown.
    strata : list of Stratum

    Raises
    ------
    InputError
        If a number is out of range, or the scan is of a version that did not keep what is needed.
    """
    if best < 1 or size < best:
        raise InputError(f"--best {best}, --size {size}: grade at least one of the best, and at least as many in all")
    rng = np.random.default_rng(seed)
    frame, found = run.candidates, strata_of(run, best)
    counts = shares(found, size)
    taken = set(zip(frame["store"], frame["index"], strict=True))
    taken |= {(one["store"], one["index"]) for one in run.info.get("like", []) if "store" in one}
    parts = []
    for s in found:
        n = counts[s.name]
        if s.last:
            rows = frame.iloc[s.first - 1 : s.last].iloc[np.sort(rng.permutation(s.population)[:n])]
            drawn = rows.rename(columns={"index": "row", "objid": "id"})[["store", "row", "id", "ra", "dec", "rank"]]
        else:
            drawn = _beyond(run.tables, n, s.discarded, taken, rng).assign(rank=0)
        parts.append(drawn.assign(stratum=s.name, kind=SURVEY))
    shown = {key for part in parts for key in zip(part["store"].astype(str), part["row"], strict=True)}
    for kind, rows in ((POSITIVE, _known(run, shown, rng)), (BLANK, _blank(BLANKS))):
        parts.append(rows.assign(stratum="", kind=kind, rank=0))
    items = pd.concat([p[_COLUMNS].astype({"id": str, "store": str}) for p in parts if len(p)], ignore_index=True)
    return items.iloc[rng.permutation(len(items))].reset_index(drop=True), found


def _beyond(
    out: Path, count: int, discarded: bool, taken: set[tuple[str, int]], rng: np.random.Generator
) -> pd.DataFrame:
    """Draw objects that are no candidates from the tables of scores, each with the same chance."""
    paths = sorted((out / "scores").glob("part-*.parquet"))
    sizes = np.array([pq.read_metadata(path).num_rows for path in paths])
    got: list[pd.DataFrame] = []
    seen: set[tuple[str, int]] = set()
    for _ in range(TRIES if sizes.sum() else 0):
        parts = rng.choice(len(sizes), AT_ONCE, p=sizes / sizes.sum())
        rows = rng.integers(sizes[parts])
        columns = ["store", "index", "id", "ra", "dec", "stage"]
        drawn = {k: pd.read_parquet(paths[k], columns=columns).iloc[rows[parts == k]] for k in np.unique(parts)}
        turn = dict.fromkeys(drawn, 0)
        for k in parts:
            row = drawn[k].iloc[[turn[k]]]
            turn[k] += 1
            key = (str(row["store"].iloc[0]), int(row["index"].iloc[0]))
            if (row["stage"].iloc[0] != "full") == discarded and key not in taken and key not in seen:
                seen.add(key)
                got.append(row.astype({"store": str}).rename(columns={"index": "row"}))
            if len(got) == count:
                return pd.concat(got, ignore_index=True)
    return pd.concat(got, ignore_index=True) if got else pd.DataFrame(columns=_COLUMNS)


def _known(run: Run, shown: set[tuple[str, int]], rng: np.random.Generator) -> pd.DataFrame:
    """Return targets that the model was trained on and that are in the survey: graders should know them.

    Of all that are not shown already, wherever they are ranked: those that the model missed alone would make graders
    look worse than they are. Of a list of what is like some examples, these are what they should know.
    """
    if is_like(run.info):
        inside = [one | {"row": one["index"]} for one in run.info["like"] if "store" in one]
        return pd.DataFrame([inside[k] for k in rng.permutation(len(inside))[:POSITIVES]], columns=_COLUMNS[:5])
    from galscan.classify import crossfit
    from galscan.classify.bundle import open_bundle
    from galscan.store.layout import open_store

    try:
        table = open_bundle(str(run.info["model"])).splits()
    except InputError:  # the model is gone: no controls then
        return pd.DataFrame(columns=_COLUMNS)
    ids = set(table.loc[crossfit.trains(table["split"]) & (table["target"] == 1), "id"])
    rows: list[dict[str, Any]] = []
    for entry in run.info["stores"]:
        store = open_store(entry["path"])
        names = np.array([str(i) for i in store.column("id")], object)
        for row in np.flatnonzero(np.isin(names, list(ids))):
            if (store.name, int(row)) not in shown:
                where = slice(int(row), int(row) + 1)
                ra, dec = (float(store.column(name, where)[0]) for name in ("ra", "dec"))
                rows.append({"store": store.name, "row": int(row), "id": names[row], "ra": ra, "dec": dec})
    chosen = rng.permutation(len(rows))[:POSITIVES]
    return pd.DataFrame([rows[k] for k in chosen], columns=_COLUMNS[:5])


def _blank(count: int) -> pd.DataFrame:
    """Return frames with nothing on them but a little noise; they are drawn where they are shown."""
    nowhere = {"store": "", "row": -1, "ra": np.nan, "dec": np.nan}
    return pd.DataFrame([{"id": f"blank-{k}"} | nowhere for k in range(count)], columns=_COLUMNS[:5])
