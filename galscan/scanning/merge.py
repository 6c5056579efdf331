"""What the parts left on disk: which of them are whole, and the best of all, merged at bounded memory."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core import progress
from galscan.core.errors import GalscanError
from galscan.scanning import known_labels
from galscan.scanning.known_labels import KnownLabels
from galscan.scanning.partitions import (
    AUDITED,
    CHOSEN,
    FINGERPRINT,
    FULL,
    embeddings_path,
    of_target,
    quarantine_path,
    scores_path,
)
from galscan.scanning.plan import Partition, Plan
from galscan.stats.purity import ScoreHistogram

T = TypeVar("T")
TARGETED = ("score", "score_std", "first_look")  # columns that each target has one of
ORDER = ["score", "store", "id", "index"]  # best first; the rest only so that ties have one order


@dataclass(frozen=True)
class Merged:
    """A scan for one target, merged: the best rows, the histogram of scores, and why objects were quarantined."""

    top: pd.DataFrame
    """With the column known: the label the model knows, in words; '' for most."""
    histogram: ScoreHistogram
    """Of all but the objects of known label."""
    beyond: ScoreHistogram
    """Of what the first look discarded alone, as the audited have it."""
    scored: int
    quarantined: int
    reasons: dict[str, int]
    discarded: int
    """By the first look, those that were audited included."""
    audited: int
    lost: int
    """Of the audited, those that are among the best."""
    known_beyond: tuple[int, int] = (0, 0)
    """Objects of known label that are not among the best, and targets among them."""


def pending(plan: Plan) -> list[Partition]:
    """Return the parts still to do; whatever a killed process left half-written is removed."""
    for folder in ("scores", "quarantine", "embeddings"):
        for leftover in Path(plan.out, folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return [part for part in plan.parts if not _done(plan, part)]


def _done(plan: Plan, part: Partition) -> bool:
    """Tell whether a part's tables are whole, of this plan, hold every chosen object once, and every embedding."""
    found = [_rows(path(plan.out, part.number), plan.fingerprint) for path in (scores_path, quarantine_path)]
    counts = [rows for rows, _ in filter(None, found)]
    if plan.embedding and _rows(embeddings_path(plan.out, part.number), plan.fingerprint) != found[0]:
        return False
    return len(counts) == 2 and all(chosen == sum(counts) for _, chosen in filter(None, found))


def _rows(path: Path, fingerprint: str) -> tuple[int, int] | None:
    """Return the rows of a table and how many were chosen, or None if it is missing, damaged or of another run."""
    try:
        footer = pq.read_metadata(path)
        marks = footer.metadata or {}
        return (footer.num_rows, int(marks[CHOSEN])) if marks.get(FINGERPRINT) == fingerprint.encode() else None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def merge(plan: Plan, known: Sequence[KnownLabels] = ()) -> list[Merged]:
    """Merge all parts, for each target: bounded memory, and the same result in whatever order they were done.

    Parameters
    ----------
    known : sequence of KnownLabels
        What the model of each target knows of the stores; by default nothing.

    Raises
    ------
    GalscanError
        If a part is missing or damaged, or an object is not in exactly one table.
    """
    known = known or [KnownLabels.none(len(plan.stores))] * len(plan.targets)
    lists = [_List(plan, target, labels) for target, labels in zip(plan.targets, known, strict=True)]
    reasons: Counter[str] = Counter()
    set_apart = 0
    with progress.track("merge", len(plan.parts), "parts") as advance:
        for part, read in zip(
            plan.parts, _in_order(lambda part: _read_part(plan, part, known), plan.parts), strict=True
        ):
            path, why, scores, stage, index = read
            reasons.update(why)
            set_apart += len(why)
            rows = [best.count(part, score, stage, index) for best, score in zip(lists, scores, strict=True)]
            if any(map(len, rows)):
                table = pq.read_table(path)
                for best, some in zip(lists, rows, strict=True):
                    best.keep(table, some)
            advance()
    return [best.merged(set_apart, dict(sorted(reasons.items()))) for best in lists]


class _List:
    """The best of one target so far, and the histogram of its scores."""

    def __init__(self, plan: Plan, target: str, known: KnownLabels):
        self.plan, self.known = plan, known
        # Of several targets, each has its own score in the tables; in its list it is called as if it were alone.
        self.names = {of_target(name, target, plan.targets): name for name in TARGETED}
        self.others = {of_target(name, t, plan.targets) for t in plan.targets for name in TARGETED} - self.names.keys()
        self.histogram, self.beyond = ScoreHistogram.empty(), ScoreHistogram.empty()
        self.audited: list[np.ndarray] = []
        self.best: list[pd.DataFrame] = []
        self.scored = self.held = self.discarded = self.discarded_unknown = 0
        self.labels = [0, 0]  # objects of known label, and targets among them
        self.floor = -np.inf  # the score of the last of the best so far

    def count(self, part: Partition, score: np.ndarray, stage: np.ndarray, index: np.ndarray | None) -> np.ndarray:
        """Take in the scores of a part, and how far each object came; return the rows that may be among the best.

        `index` is their rows in the store, None where no label is known.
        """
        labels = np.full(len(score), np.nan) if index is None else self.known.of(part.store, index)
        free = np.isnan(labels)
        self.labels = [self.labels[0] + int((~free).sum()), self.labels[1] + int((labels == 1).sum())]
        self.histogram.add(score[(stage == FULL) & free])
        self.beyond.add(score[(stage == AUDITED) & free])
        self.audited.append(score[stage == AUDITED])
        self.discarded += int((stage != FULL).sum())
        self.discarded_unknown += int(((stage != FULL) & free).sum())
        self.scored += len(score)
        # Ties with the last of the best are kept until the sort, which decides them by name.
        return np.flatnonzero(score >= self.floor)

    def keep(self, table: pa.Table, rows: np.ndarray) -> None:
        """Take in some rows of a part."""
        if len(rows):
            own = table.drop_columns(sorted(self.others)).rename_columns(self.names)
            self.best.append(own.take(rows).to_pandas().astype({"store": "str"}))
            self.held += len(rows)
        if self.held > 4 * self.plan.top:
            self.best = [_sort(self.best, self.plan.top)]
            self.held, self.floor = len(self.best[0]), float(self.best[0]["score"].iloc[-1])

    def merged(self, quarantined: int, reasons: dict[str, int]) -> Merged:
        top = _sort(self.best, self.plan.top)
        looked = np.concatenate(self.audited) if self.audited else np.empty(0, np.float32)
        lost = int((looked >= top["score"].iloc[-1]).sum()) if len(top) else 0
        # The audited stand for all that were discarded.
        beyond = self.beyond.standing_for(self.discarded_unknown)
        labels = self._labels(top)
        ranked = int(np.isfinite(labels).sum()), int((labels == 1).sum())
        return Merged(
            top.assign(known=known_labels.names(labels)), self.histogram + beyond, beyond, self.scored, quarantined,
            reasons, self.discarded, len(looked), lost, (self.labels[0] - ranked[0], self.labels[1] - ranked[1]),
        )  # fmt: skip

    def _labels(self, top: pd.DataFrame) -> np.ndarray:
        """Return the known labels of the best."""
        labels = np.full(len(top), np.nan)
        for number, ref in enumerate(self.plan.stores):
            here = np.flatnonzero(top["store"] == ref.name) if len(top) else np.empty(0, int)
            labels[here] = self.known.of(number, top["index"].to_numpy()[here]) if len(here) else []
        return labels


def _read_part(
    plan: Plan, part: Partition, known: Sequence[KnownLabels]
) -> tuple[Path, list[str], list[np.ndarray], np.ndarray, np.ndarray | None]:
    """Return where the scores of a part are, why objects were quarantined, scores by target, how far each object came.

    Last are their rows in the store, where some have a known label.
    """
    (why,) = _columns(plan, quarantine_path(plan.out, part.number), ["reason"])
    path = scores_path(plan.out, part.number)
    labelled = ["index"] if any(labels.any_in(part.store, part.start, part.stop) for labels in known) else []
    names = [*(of_target("score", t, plan.targets) for t in plan.targets), "stage", *labelled]
    columns = _columns(plan, path, names)
    scores, stage = columns[: len(plan.targets)], columns[len(plan.targets)]
    if not _done(plan, part):
        raise GalscanError(
            f"{plan.where(part)}: {path} does not hold every object; remove it and run the same command again"
        )
    return (
        path, why.to_pylist(), [score.to_numpy() for score in scores],
        stage.combine_chunks().to_numpy(zero_copy_only=False), columns[-1].to_numpy() if labelled else None,
    )  # fmt: skip


def _in_order(read: Callable[[Partition], T], parts: Iterable[Partition], threads: int = 8) -> Iterator[T]:
    """Yield what `read` returns of each part, in their order, a few read ahead: waiting for the disk is most of it."""
    with ThreadPoolExecutor(threads, "galscan-merge") as pool:
        ahead: deque[Future[T]] = deque()
        rest = iter(parts)
        try:
            for part in rest:
                ahead.append(pool.submit(read, part))
                if len(ahead) == 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _columns(plan: Plan, path: Path, names: list[str]) -> list[pa.ChunkedArray]:
    """Read columns of a part, with their checksums verified."""
    if _rows(path, plan.fingerprint) is None:
        raise GalscanError(f"{path} is missing or damaged; run the same command again, it will be done again")
    try:
        table = pq.read_table(path, columns=names, page_checksum_verification=True)
        return [table[name] for name in names]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise GalscanError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _sort(frames: list[pd.DataFrame], top: int) -> pd.DataFrame:
    """Return the best `top` rows of some frames, best first."""
    if not frames:
        return pd.DataFrame()
    if len({frame["id"].dtype.kind for frame in frames}) > 1:  # one survey numbers its objects, another names them
        frames = [frame.astype({"id": "str"}) for frame in frames]
    whole = pd.concat(frames, ignore_index=True)
    return whole.sort_values(ORDER, ascending=[False, True, True, True], ignore_index=True).head(top)


def written(plan: Plan) -> int:
    """Return the bytes of the parts that are there already."""
    return sum(path.stat().st_size for path in plan.out.glob("*/part-*.parquet"))


def disk_free(path: Path) -> int:
    """Return the free bytes of the filesystem that `path` (or its nearest existing parent) is on."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
