"""What the page of a scan says of the scan itself, read from the run's own tables: where it looked, what it set aside,
and what became of the targets that were known.

Nothing here needs more memory than a map of the sky, and all of it goes part by part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.labels.rules import parse_rule
from galscan.models import roles
from galscan.models.model import Model
from galscan.reports.page import duration
from galscan.scanning.partitions import of_target
from galscan.stats.purity import ScoreHistogram
from galscan.store import identity
from galscan.store.layout import Store

WHOLE_SKY = 4 * np.pi * (180 / np.pi) ** 2  # square degrees
ROWS, COLUMNS = 800, 2560  # cells of the finest map, of one area each: 0.02 square degrees
COARSER = (1, 2, 4, 8, 16, 32)
ENOUGH = 8  # objects in a cell that has any: then few cells are empty by chance
PARTS = 1000  # read for the map at most, spread over the survey
FATES = CANDIDATE, BELOW, DISCARDED, QUARANTINED, ELSEWHERE = (
    "candidate", "scored below the list", "discarded by the first look", "set aside", "not scanned"
)  # fmt: skip
TAUGHT, HELD, UNSEEN = ROLES = ("trained on", "calibrated or tested on", "never seen by the model")


# Where it looked


@dataclass(frozen=True)
class Footprint:
    """Counts of scanned objects in cells of equal area: rows of sine of declination, columns of right ascension.

    Attributes
    ----------
    counts : ndarray of int, shape (rows, columns)
        From the south pole and from right ascension 0.
    ra : tuple of float, or None
        Where it begins and ends, eastwards, degrees; None all around the sky.
    dec : tuple of float
        Least and greatest, degrees.
    placed : int
        Objects with a position among those that were read.
    """

    counts: np.ndarray
    ra: tuple[float, float] | None
    dec: tuple[float, float]
    placed: int

    @property
    def cell(self) -> float:
        """Area of a cell, square degrees."""
        return float(WHOLE_SKY / self.counts.size)

    @property
    def area(self) -> float | None:
        """Area of the cells that hold something, square degrees; None where objects are too few to tell."""
        used = np.count_nonzero(self.counts)
        return used * self.cell if used and self.placed / used >= ENOUGH else None


def footprint(run: Path) -> Footprint | None:
    """Return where the scored objects are, in the finest cells that few objects leave empty by chance; None unplaced.

    Of a survey in very many parts some are read, evenly spread.
    """
    paths = sorted((run / "scores").glob("part-*.parquet"))
    counts = np.zeros((ROWS, COLUMNS), np.int32)
    limits: list[tuple[float, float]] = []
    for path in paths[:: max(1, -(-len(paths) // PARTS))]:
        table = pq.read_table(path, columns=["ra", "dec"])
        ra, dec = (table[name].to_numpy() for name in ("ra", "dec"))
        good = np.isfinite(ra) & (np.abs(dec) <= 90)
        ra, dec = np.mod(ra[good], 360), dec[good]
        if len(ra):
            row = np.minimum(((np.sin(np.radians(dec)) + 1) / 2 * ROWS).astype(int), ROWS - 1)
            column = np.minimum((ra / 360 * COLUMNS).astype(int), COLUMNS - 1)
            np.add.at(counts, (row, column), 1)
            limits.append((float(dec.min()), float(dec.max())))
    if not limits:
        return None
    dec_limits, placed = (min(low for low, _ in limits), max(high for _, high in limits)), int(counts.sum())
    around = _extent(counts.sum(axis=0) > 0)
    for factor in COARSER:
        coarse = counts.reshape(ROWS // factor, factor, COLUMNS // factor, factor).sum((1, 3))
        found = Footprint(coarse, around, dec_limits, placed)
        if found.area is not None:
            break
    return found


def _extent(used: np.ndarray) -> tuple[float, float] | None:
    """Return where right ascensions begin and end, eastwards: beside the widest gap between them, if it is wide."""
    at = np.flatnonzero(used)
    gaps = np.diff(at, append=at[0] + len(used))
    widest = int(gaps.argmax())
    if gaps[widest] * 360 / len(used) < 20:
        return None
    return float(at[(widest + 1) % len(at)] * 360 / len(used)), float((at[widest] + 1) * 360 / len(used))


# What it set aside


def quarantine(run: Path, reasons: Mapping[str, int], each: int = 4) -> dict[str, pd.DataFrame]:
    """Return a few of the quarantined objects for each reason: store, index, id (text)."""
    found: dict[str, list[pd.DataFrame]] = {}
    missing = {why: min(count, each) for why, count in reasons.items()}
    for path in sorted((run / "quarantine").glob("part-*.parquet")):
        if not any(missing.values()):
            break
        if not pq.read_metadata(path).num_rows:
            continue
        table = _frame(pq.read_table(path, columns=["store", "index", "id", "reason"]))
        for why, some in table.groupby("reason"):
            if missing.get(str(why)):
                taken = some.head(missing[str(why)])
                missing[str(why)] -= len(taken)
                found.setdefault(str(why), []).append(taken.drop(columns="reason"))
    return {why: pd.concat(parts, ignore_index=True) for why, parts in found.items()}


# What became of known targets


def known_targets(
    run: Path,
    frame: pd.DataFrame,
    bundle: Model,
    stores: Sequence[Store],
    histogram: ScoreHistogram,
    targets: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the targets that the labels in the scanned stores tell of, and where each of them went.

    `run` is where the tables of scores are, and `targets` all that the scan looked for.

    Returns
    -------
    DataFrame
        Columns store, index, id (text), role (of `ROLES`), fate (of `FATES`), rank (0 below the list; then `about` is
        the rank its score would have), score, why (it was set aside). What the model was not trained on comes first,
        and then the higher score.
    """
    parts = [some for store in stores if len(some := _labelled_targets(store, bundle))]
    if not parts:
        return pd.DataFrame(columns=["store", "index", "id", "role", "fate", "rank", "about", "score", "why"])
    known = pd.concat(parts, ignore_index=True)
    split = bundle.split_of(known, identity.radius_of(stores))
    known["role"] = np.select([roles.trains(pd.Series(split)), split != ""], [TAUGHT, HELD], UNSEEN)
    known = known.drop(columns=["ra", "dec", "lineage"])
    ranked = frame[["store", "index", "rank", "score"]].astype({"store": str})
    known = known.merge(ranked, on=["store", "index"], how="left")
    known["fate"] = np.where(known["rank"].notna(), CANDIDATE, ELSEWHERE)
    known["why"] = ""
    wanted = known[known["fate"] == ELSEWHERE]
    column = of_target("score", bundle.target, targets)
    for name, columns in (("scores", [column, "stage"]), ("quarantine", ["reason"])):
        for found in _rows_of(run / name, wanted, columns):
            at = wanted.index[pd.MultiIndex.from_frame(wanted[["store", "index"]]).get_indexer(found.index)]
            if name == "quarantine":
                known.loc[at, "fate"], known.loc[at, "why"] = QUARANTINED, found["reason"].to_numpy(object)
            else:
                known.loc[at, "score"] = found[column].to_numpy()
                known.loc[at, "fate"] = np.where(found["stage"] == "full", BELOW, DISCARDED)
    known["rank"] = known["rank"].fillna(0).astype(int)
    known["about"] = [_rank_of(score, histogram, len(frame)) for score in known["score"]]
    known["new"] = known["role"] != TAUGHT
    return known.sort_values(["new", "score", "store", "index"], ascending=[False, False, True, True]).drop(
        columns="new"
    )


def _labelled_targets(store: Store, bundle: Model) -> pd.DataFrame:
    """Return the objects of a store that the model's own rules call targets."""
    schema = next((name for name in bundle.recipe.schemas if name in store.schemas), None)
    if schema is None:
        return pd.DataFrame()
    rules, names = bundle.recipe.schemas[schema], store.schemas[schema]
    try:
        rule = parse_rule(rules.positive, names)
    except InputError:  # labels of another version of the schema
        return pd.DataFrame()
    rows = np.flatnonzero(rule.evaluate({name: store.column(f"labels/{schema}/{name}") for name in rule.names})[0])
    ids = store.column("id")[rows].astype(str) if len(rows) else np.empty(0, str)
    place = {name: store.column(name)[rows] for name in ("ra", "dec")}
    return pd.DataFrame({"store": store.name, "index": rows, "id": ids, "lineage": identity.lineage_of(store)} | place)


def _rows_of(folder: Path, wanted: pd.DataFrame, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Yield from each table of a folder the wanted objects that are in it, by store and index."""
    rows = pa.array(np.unique(wanted["index"]))
    keys = pd.MultiIndex.from_frame(wanted[["store", "index"]])
    for path in sorted(folder.glob("part-*.parquet")) if len(wanted) else ():
        table = _frame(pq.read_table(path, columns=["store", "index", *columns], filters=[("index", "in", rows)]))
        found = table.set_index(["store", "index"])
        if len(found := found[found.index.isin(keys)]):
            yield found


def _rank_of(score: float, histogram: ScoreHistogram, ranked: int) -> int:
    """Return about which rank a score below the list has among all that were scanned; 0 where that is not known."""
    if not np.isfinite(score) or not histogram.total:
        return 0
    above = histogram.centres > score + np.diff(histogram.centres[:2])[0] / 2  # not those of its own bin
    return max(int(histogram.counts[above].sum()), ranked) + 1


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    return frame.astype({name: str for name in ("store", "id", "stage", "reason") if name in frame})


# How long it took


def timing(run: Path, info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how long each phase took and how the scan went, as far as run.json and the ledger tell of it."""
    told = [("in all", duration(info.get("wall_s")))]
    told += [(str(phase), duration(seconds)) for phase, seconds in (info.get("seconds") or {}).items()]
    if rate := info.get("images_per_s"):
        told.append(("rate", f"{rate:,.0f} images/s"))
    if parts := _ledger(run):
        workers = len({part["worker"] for part in parts})
        noun = "worker" if workers == 1 else "workers"
        busy = info.get("busy")
        share = "" if busy is None else f", the networks busy for {busy:.0%} of the scan"
        told.append((noun, f"{workers:,}, for {len(parts):,} parts{share}"))
    return told


def _ledger(run: Path) -> list[dict[str, Any]]:
    """Return the last word on each part; a ledger is for people, so that a damaged one is none."""
    try:
        lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
        return list({line["part"]: line for line in lines if line["worker"]}.values())
    except (OSError, ValueError, KeyError, TypeError):
        return []
