"""Data of the page of a scan, read from its tables: candidates, coverage, quarantine, known targets and timing.

Tables are read one partition at a time; memory is bounded by that of a sky map.
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

from galscan.candidates.table_stream import from_parquet
from galscan.core.errors import InputError
from galscan.core.files import read_json
from galscan.labels.rules import parse_rule
from galscan.models import roles
from galscan.models.model import Model
from galscan.reports.memory import release
from galscan.reports.page import duration
from galscan.scanning.partitions import of_target
from galscan.scanning.run import GRADED, GRADED_PURITY, Run
from galscan.stats.histogram import ScoreHistogram
from galscan.store import identity
from galscan.store.layout import Store

WHOLE_SKY = 4 * np.pi * (180 / np.pi) ** 2  # square degrees
ROWS, COLUMNS = 800, 2560  # cells of the finest map, of equal area: 0.02 square degrees
FACTORS = (1, 2, 4, 8, 16, 32)  # by which the map is coarsened
MIN_PER_CELL = 8  # mean number of objects in occupied cells, above which few cells are empty by chance
MAX_PARTITIONS = 1000  # read for the map at most, evenly spread over the survey
FATES = CANDIDATE, BELOW, DISCARDED, QUARANTINED, NOT_SCANNED = (
    "candidate", "scored below the list", "rejected by the prefilter", "quarantined", "not scanned"
)  # fmt: skip
TRAINED, HELD_OUT, INDEPENDENT = ROLES = ("trained on", "calibrated or tested on", "in no split of the model")


# Coverage


@dataclass(frozen=True)
class Footprint:
    """Counts of scanned objects in cells of equal area: rows of sine of declination, columns of right ascension.

    Attributes
    ----------
    counts : ndarray of int, shape (rows, columns)
        From the south pole and from right ascension 0.
    ra : tuple of float, or None
        Western and eastern limit, degrees; None if the coverage has no wide gap in right ascension.
    dec : tuple of float
        Minimum and maximum, degrees.
    n_positions : int
        Number of objects with a position in the partitions read.
    """

    counts: np.ndarray
    ra: tuple[float, float] | None
    dec: tuple[float, float]
    n_positions: int

    @property
    def cell(self) -> float:
        """Area of a cell, square degrees."""
        return float(WHOLE_SKY / self.counts.size)

    @property
    def area(self) -> float | None:
        """Area of the occupied cells, square degrees; None with too few objects."""
        occupied = np.count_nonzero(self.counts)
        return occupied * self.cell if occupied and self.n_positions / occupied >= MIN_PER_CELL else None


def footprint(run: Path) -> Footprint | None:
    """Return a map of the scored objects, in the finest cells few of which are empty by chance; None without positions.

    Of more than `MAX_PARTITIONS` partitions an evenly spread sample is read.
    """
    paths = sorted((run / "scores").glob("part-*.parquet"))
    counts = np.zeros((ROWS, COLUMNS), np.int32)
    limits: list[tuple[float, float]] = []
    for path in paths[:: max(1, -(-len(paths) // MAX_PARTITIONS))]:
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
    dec_limits, total = (min(low for low, _ in limits), max(high for _, high in limits)), int(counts.sum())
    ra_limits = _ra_limits(counts.sum(axis=0) > 0)
    for factor in FACTORS:
        coarse = counts.reshape(ROWS // factor, factor, COLUMNS // factor, factor).sum((1, 3))
        result = Footprint(coarse, ra_limits, dec_limits, total)
        if result.area is not None:
            break
    return result


def _ra_limits(occupied: np.ndarray) -> tuple[float, float] | None:
    """Return the limits in right ascension: the edges of the widest gap; None if no gap is wider than 20 degrees."""
    columns = np.flatnonzero(occupied)
    gaps = np.diff(columns, append=columns[0] + len(occupied))
    widest = int(gaps.argmax())
    if gaps[widest] * 360 / len(occupied) < 20:
        return None
    first, last = columns[(widest + 1) % len(columns)], columns[widest]
    return float(first * 360 / len(occupied)), float((last + 1) * 360 / len(occupied))


# Quarantine


def quarantine(run: Path, reasons: Mapping[str, int], each: int = 4) -> dict[str, pd.DataFrame]:
    """Return up to `each` quarantined objects per reason: columns store, index, id (text)."""
    found: dict[str, list[pd.DataFrame]] = {}
    missing = {reason: min(count, each) for reason, count in reasons.items()}
    for path in sorted((run / "quarantine").glob("part-*.parquet")):
        if not any(missing.values()):
            break
        if not pq.read_metadata(path).num_rows:
            continue
        table = _frame(pq.read_table(path, columns=["store", "index", "id", "reason"]))
        for reason, objects in table.groupby("reason"):
            if missing.get(str(reason)):
                examples = objects.head(missing[str(reason)])
                missing[str(reason)] -= len(examples)
                found.setdefault(str(reason), []).append(examples.drop(columns="reason"))
    return {reason: pd.concat(tables, ignore_index=True) for reason, tables in found.items()}


# Known targets


def known_targets(
    run: Path,
    frame: pd.DataFrame,
    model: Model,
    stores: Sequence[Store],
    histogram: ScoreHistogram,
    targets: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the targets known from labels in the scanned stores, and the outcome of the scan for each.

    Parameters
    ----------
    run : path
        Folder of the tables of scores.
    targets : sequence of str
        All targets of the scan.

    Returns
    -------
    DataFrame
        Columns store, index, id (text), role (one of `ROLES`), fate (one of `FATES`), rank (0 below the list; then
        `about` is the approximate rank of its score), score, why (quarantine reason). Objects that the model was not
        trained on come first, sorted by decreasing score.
    """
    labelled = [table for store in stores if len(table := _labelled_targets(store, model))]
    if not labelled:
        return pd.DataFrame(columns=["store", "index", "id", "role", "fate", "rank", "about", "score", "why"])
    known = pd.concat(labelled, ignore_index=True)
    split = model.split_of(known, identity.radius_of(stores))
    known["role"] = np.select([roles.trains(pd.Series(split)), split != ""], [TRAINED, HELD_OUT], INDEPENDENT)
    known = known.drop(columns=["ra", "dec", "lineage"])
    ranked = frame[["store", "index", "rank", "score"]].astype({"store": str})
    known = known.merge(ranked, on=["store", "index"], how="left")
    known["fate"] = np.where(known["rank"].notna(), CANDIDATE, NOT_SCANNED)
    known["why"] = ""
    wanted = known[known["fate"] == NOT_SCANNED]
    column = of_target("score", model.target, targets)
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
    known["new"] = known["role"] != TRAINED
    return known.sort_values(["new", "score", "store", "index"], ascending=[False, False, True, True]).drop(
        columns="new"
    )


def _labelled_targets(store: Store, model: Model) -> pd.DataFrame:
    """Return the objects of a store that are targets by the rules of the model's recipe."""
    schema = next((name for name in model.recipe.schemas if name in store.schemas), None)
    if schema is None:
        return pd.DataFrame()
    rules, names = model.recipe.schemas[schema], store.schemas[schema]
    try:
        rule = parse_rule(rules.positive, names)
    except InputError:  # labels of another version of the schema
        return pd.DataFrame()
    rows = np.flatnonzero(rule.evaluate({name: store.column(f"labels/{schema}/{name}") for name in rule.names})[0])
    ids = store.column("id")[rows].astype(str) if len(rows) else np.empty(0, str)
    position = {name: store.column(name)[rows] for name in ("ra", "dec")}
    return pd.DataFrame(
        {"store": store.name, "index": rows, "id": ids, "lineage": identity.lineage_of(store)} | position
    )


def _rows_of(folder: Path, wanted: pd.DataFrame, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Yield the wanted objects in each table of a folder, indexed by store and index."""
    rows = pa.array(np.unique(wanted["index"]))
    keys = pd.MultiIndex.from_frame(wanted[["store", "index"]])
    for path in sorted(folder.glob("part-*.parquet")) if len(wanted) else ():
        table = _frame(pq.read_table(path, columns=["store", "index", *columns], filters=[("index", "in", rows)]))
        found = table.set_index(["store", "index"])
        if len(found := found[found.index.isin(keys)]):
            yield found


def _rank_of(score: float, histogram: ScoreHistogram, ranked: int) -> int:
    """Return the approximate rank, among all scanned objects, of a score below the list; 0 if unknown."""
    if not np.isfinite(score) or not histogram.total:
        return 0
    above = histogram.centres > score + np.diff(histogram.centres[:2])[0] / 2  # without the bin of the score itself
    return max(int(histogram.counts[above].sum()), ranked) + 1


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    return frame.astype({name: str for name in ("store", "id", "stage", "reason") if name in frame})


# Tables of candidates


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read the given columns of a ranked list, where they exist, in pieces: it may hold a million rows."""
    rows = from_parquet(path)
    rows = rows.select([name for name in columns if name in rows.names])
    categories: dict[str, dict[Any, int]] = {name: {} for name in rows.names if rows.is_text(name)}
    filled = {
        field.name: np.empty(rows.count, np.int32 if field.name in categories else field.type.to_pandas_dtype())
        for field in rows.schema
    }
    at = 0
    for piece in rows:
        for name, values in filled.items():
            column = piece[name].combine_chunks()
            if name in categories:  # few distinct values
                encoded, codes = column.dictionary_encode(), categories[name]
                mapped = np.array(
                    [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()], np.int32
                )
                column = pa.array(mapped[encoded.indices.to_numpy()])
            values[at : at + len(piece)] = column.to_numpy(zero_copy_only=False)
        at += len(piece)
    release(rows.count)
    columns_read = {
        name: pd.Categorical.from_codes(values, pd.Index(list(categories[name]), dtype=object))
        if name in categories
        else values
        for name, values in filled.items()
    }
    return pd.DataFrame(columns_read, copy=False)


def read_rows(path: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Return the rows `first` to `last` (exclusive) of a ranked list, with all columns."""
    rows = from_parquet(path)
    found: list[dict[str, Any]] = []
    at = 0
    for piece in rows.pieces():
        if at >= last:
            break
        found += piece.slice(max(first - at, 0), max(last - max(first, at), 0)).to_pandas().to_dict("records")
        at += len(piece)
    return found


@dataclass(frozen=True)
class Graded:
    """Output of `galscan purity`: path of the table with grades, and the content of purity.json."""

    path: Path
    summary: dict[str, Any]

    @property
    def completeness(self) -> pd.DataFrame:
        return read_columns(self.path, ("completeness",))

    @property
    def limits(self) -> pd.DataFrame:
        """Interval limits of completeness at selected ranks; empty in files of older versions."""
        return pd.DataFrame(self.summary.get("completeness") or {"rank": [], "low": [], "high": []}, dtype=float)

    @property
    def limits_by_scores(self) -> pd.DataFrame | None:
        """The same by the scores alone; None in files of older versions."""
        limits = self.summary.get("completeness_by_scores")
        return None if limits is None else pd.DataFrame(limits, dtype=float)


def read_graded(run: Path, before: pd.DataFrame) -> Graded | None:
    """Return the output of `galscan purity` if it belongs to these candidates, else None."""
    table = run / f"{GRADED}.parquet"
    if not (run / GRADED_PURITY).is_file() or not table.is_file():
        return None
    same = np.array_equal(read_columns(table, ("score",))["score"], before["score"])
    return Graded(table, read_json(run / GRADED_PURITY)) if same else None


# Timing


def timing(run: Run) -> list[tuple[str, str]]:
    """Return the duration of each phase, the rate and the workers, as far as run.json and the ledger record them."""
    phases = {"first look": "prefilter"}
    # The page of a scan is written before its last phases.
    total = "total" if run.info.status == "done" else "total, without this page"
    entries = [(total, duration(run.info.wall_s))]
    entries += [(phases.get(phase, phase), duration(seconds)) for phase, seconds in run.info.seconds.items()]
    if rate := run.info.images_per_s:
        entries.append(("rate", f"{rate:,.0f} images/s"))
    if partitions := _ledger(run.tables):
        workers = len({entry["worker"] for entry in partitions})
        noun = "worker" if workers == 1 else "workers"
        busy = run.info.busy
        busy_text = "" if busy is None else f", networks busy for {busy:.0%} of the scan"
        entries.append((noun, f"{workers:,}, for {len(partitions):,} partitions{busy_text}"))
    return entries


def _ledger(run: Path) -> list[dict[str, Any]]:
    """Return the last ledger entry of each partition; empty if the ledger is damaged, as it is informative only."""
    try:
        lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
        return list({line["part"]: line for line in lines if line["worker"]}.values())
    except (OSError, ValueError, KeyError, TypeError):
        return []
