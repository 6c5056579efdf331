"""Merging of a scan's partitions: completeness checks, and the ranked top list, in bounded memory."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core import progress
from galscan.core.errors import GalscanError
from galscan.scanning import known_labels
from galscan.scanning.known_labels import KnownLabels
from galscan.scanning.partitions import (
    CHOSEN,
    FINGERPRINT,
    FULL,
    RESCORED,
    embeddings_path,
    of_target,
    quarantine_path,
    scores_path,
)
from galscan.scanning.plan import Partition, Plan
from galscan.stats.histogram import ScoreHistogram

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
TARGETED = ("score", "score_std", "first_look")  # columns that exist once per target
ORDER = ["score", "store", "id", "index"]  # score descending; the others break ties in a fixed order


@dataclass(frozen=True)
class Merged:
    """Merged results of a scan for one target: top rows, score histograms, quarantine reasons."""

    top: pd.DataFrame
    """Its column known holds the label the model knows (target, ambiguous, negative), mostly ''."""
    histogram: ScoreHistogram
    """Of all objects without a known label."""
    discarded_histogram: ScoreHistogram
    """Of the discarded objects alone, estimated from those that were rescored."""
    scored: int
    quarantined: int
    reasons: dict[str, int]
    discarded: int
    """Objects below the threshold of the prefilter, including those that were rescored."""
    rescored: int
    lost: int
    """Rescored objects that are in the top list."""
    known_beyond: tuple[int, int] = (0, 0)
    """Objects of known label outside the top list, and how many of them are targets."""


def pending(plan: Plan) -> list[Partition]:
    """Return the partitions not yet complete, and remove temporary files of killed processes."""
    tables = (plan.out / name for name in ("scores", "quarantine", "embeddings"))
    for folder in {plan.out, *map(plan.folder, plan.targets), *tables}:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return [partition for partition in plan.partitions if not _is_complete(plan, partition)]


def _is_complete(plan: Plan, partition: Partition) -> bool:
    """Tell whether a partition's tables are of this plan and hold every selected object, and its embedding, once."""
    found = [_rows(path(plan.out, partition.number), plan.fingerprint) for path in (scores_path, quarantine_path)]
    counts = [rows for rows, _ in filter(None, found)]
    if plan.embedding and _rows(embeddings_path(plan.out, partition.number), plan.fingerprint) != found[0]:
        return False
    return len(counts) == 2 and all(selected == sum(counts) for _, selected in filter(None, found))


def _rows(path: Path, fingerprint: str) -> tuple[int, int] | None:
    """Return a table's rows, and the partition's selected objects; None if it is missing, damaged or of another run."""
    try:
        footer = pq.read_metadata(path)
        metadata = footer.metadata or {}
        return (footer.num_rows, int(metadata[CHOSEN])) if metadata.get(FINGERPRINT) == fingerprint.encode() else None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def merge(plan: Plan, known: Sequence[KnownLabels] = ()) -> list[Merged]:
    """Merge all partitions, for each target, in bounded memory; the result does not depend on their order.

    Parameters
    ----------
    known : sequence of KnownLabels
        Objects of the stores whose label the model of each target knows; by default none.

    Raises
    ------
    GalscanError
        If a partition is missing or damaged, or an object is not in exactly one table.
    """
    known = known or [KnownLabels.none(len(plan.stores))] * len(plan.targets)
    rankings = [_Ranking(plan, target, labels) for target, labels in zip(plan.targets, known, strict=True)]
    reasons: Counter[str] = Counter()
    quarantined = 0
    with progress.track("merge", len(plan.partitions), "partitions") as advance:
        for partition, read in zip(
            plan.partitions,
            _in_order(lambda partition: _read_part(plan, partition, known), plan.partitions),
            strict=True,
        ):
            path, quarantine_reasons, scores, stage, index = read
            reasons.update(quarantine_reasons)
            quarantined += len(quarantine_reasons)
            rows = [
                ranking.count(partition, score, stage, index) for ranking, score in zip(rankings, scores, strict=True)
            ]
            if any(map(len, rows)):
                table = pq.read_table(path)
                for ranking, row in zip(rankings, rows, strict=True):
                    ranking.keep(table, row)
            advance()
    return [ranking.merged(quarantined, dict(sorted(reasons.items()))) for ranking in rankings]


class _Ranking:
    """Running top list and score histograms of one target."""

    def __init__(self, plan: Plan, target: str, known: KnownLabels):
        self.plan, self.known = plan, known
        # With several targets the columns end with the target's name, which the ranking drops.
        self.names = {of_target(name, target, plan.targets): name for name in TARGETED}
        self.other_targets = {
            of_target(name, t, plan.targets) for t in plan.targets for name in TARGETED
        } - self.names.keys()
        self.histogram, self.discarded_histogram = ScoreHistogram(), ScoreHistogram()
        self.rescored: list[np.ndarray] = []
        self.best: list[pd.DataFrame] = []
        self.scored = self.held = self.discarded = self.discarded_unknown = 0
        self.labels = [0, 0]  # objects of known label, and targets among them
        self.floor = -np.inf  # lowest score of the top list so far

    def count(self, partition: Partition, score: np.ndarray, stage: np.ndarray, index: np.ndarray | None) -> np.ndarray:
        """Add the scores and stages of a partition; return the rows that may enter the top list.

        `index` is their rows in the store, None where no label is known.
        """
        labels = np.full(len(score), np.nan) if index is None else self.known.of(partition.store, index)
        unknown = np.isnan(labels)
        self.labels = [self.labels[0] + int((~unknown).sum()), self.labels[1] + int((labels == 1).sum())]
        self.histogram += ScoreHistogram.of(score[(stage == FULL) & unknown])
        rescored = np.isin(stage, [RESCORED, "audit"])  # its name in version 0.1
        self.discarded_histogram += ScoreHistogram.of(score[rescored & unknown])
        self.rescored.append(score[rescored])
        self.discarded += int((stage != FULL).sum())
        self.discarded_unknown += int(((stage != FULL) & unknown).sum())
        self.scored += len(score)
        # Ties with the lowest score are kept until the sort, which breaks them by the other columns of ORDER.
        return np.flatnonzero(score >= self.floor)

    def keep(self, table: pa.Table, rows: np.ndarray) -> None:
        """Add rows of a partition's score table."""
        if len(rows):
            scores = table.drop_columns(sorted(self.other_targets)).rename_columns(self.names)
            self.best.append(scores.take(rows).to_pandas().astype({"store": "str"}))
            self.held += len(rows)
        if self.held > 4 * self.plan.top:
            self.best = [_sort(self.best, self.plan.top)]
            self.held, self.floor = len(self.best[0]), float(self.best[0]["score"].iloc[-1])

    def merged(self, quarantined: int, reasons: dict[str, int]) -> Merged:
        top = _sort(self.best, self.plan.top)
        rescored = np.concatenate(self.rescored) if self.rescored else np.empty(0, np.float32)
        lost = int((rescored >= top["score"].iloc[-1]).sum()) if len(top) else 0
        # The rescored objects are a random sample of all discarded ones.
        discarded_histogram = self.discarded_histogram.scaled_to(self.discarded_unknown)
        labels = self._labels(top)
        ranked = int(np.isfinite(labels).sum()), int((labels == 1).sum())
        return Merged(
            top.assign(known=known_labels.names(labels)), self.histogram + discarded_histogram, discarded_histogram,
            self.scored, quarantined, reasons, self.discarded, len(rescored), lost,
            (self.labels[0] - ranked[0], self.labels[1] - ranked[1]),
        )  # fmt: skip

    def _labels(self, top: pd.DataFrame) -> np.ndarray:
        """Return the known labels of the top list, NaN where none is known."""
        labels = np.full(len(top), np.nan)
        for number, ref in enumerate(self.plan.stores):
            rows = np.flatnonzero(top["store"] == ref.name) if len(top) else np.empty(0, int)
            labels[rows] = self.known.of(number, top["index"].to_numpy()[rows]) if len(rows) else []
        return labels


def _read_part(
    plan: Plan, partition: Partition, known: Sequence[KnownLabels]
) -> tuple[Path, list[str], list[np.ndarray], np.ndarray, np.ndarray | None]:
    """Return the path of a partition's scores, quarantine reasons, scores by target, stages, and rows in the store.

    The rows are None where no object of the partition has a known label.
    """
    (reasons,) = _columns(plan, quarantine_path(plan.out, partition.number), ["reason"])
    path = scores_path(plan.out, partition.number)
    labelled = (
        ["index"] if any(labels.any_in(partition.store, partition.start, partition.stop) for labels in known) else []
    )
    names = [*(of_target("score", t, plan.targets) for t in plan.targets), "stage", *labelled]
    columns = _columns(plan, path, names)
    scores, stage = columns[: len(plan.targets)], columns[len(plan.targets)]
    if not _is_complete(plan, partition):
        raise GalscanError(
            f"{plan.where(partition)}: {path} does not hold every object; remove it and run the same command again"
        )
    return (
        path, reasons.to_pylist(), [score.to_numpy() for score in scores],
        stage.combine_chunks().to_numpy(zero_copy_only=False), columns[-1].to_numpy() if labelled else None,
    )  # fmt: skip


def _in_order(read: Callable[[Partition], T], partitions: Iterable[Partition], threads: int = 8) -> Iterator[T]:
    """Yield ``read(partition)`` in order; threads read ahead, as most of the time is spent waiting for the disk."""
    with ThreadPoolExecutor(threads, "galscan-merge") as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for partition in partitions:
                ahead.append(pool.submit(read, partition))
                if len(ahead) == 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _columns(plan: Plan, path: Path, names: list[str]) -> list[pa.ChunkedArray]:
    """Read columns of a partition's table, and verify their checksums."""
    if _rows(path, plan.fingerprint) is None:
        raise GalscanError(f"{path} is missing or damaged; run the same command again, which writes it again")
    try:
        table = pq.read_table(path, columns=names, page_checksum_verification=True)
        return [table[name] for name in names]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise GalscanError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _sort(frames: list[pd.DataFrame], top: int) -> pd.DataFrame:
    """Return the top rows of all frames, best first."""
    import pandas as pd

    if not frames:
        return pd.DataFrame()
    if len({frame["id"].dtype.kind for frame in frames}) > 1:  # ids are integers in one survey, text in another
        frames = [frame.astype({"id": "str"}) for frame in frames]
    rows = pd.concat(frames, ignore_index=True)
    return rows.sort_values(ORDER, ascending=[False, True, True, True], ignore_index=True).head(top)


def written(plan: Plan) -> int:
    """Return the bytes of the partition tables already written."""
    return sum(path.stat().st_size for path in plan.out.glob("*/part-*.parquet"))


def disk_free(path: Path) -> int:
    """Return the free bytes of the filesystem that `path` (or its nearest existing parent) is on."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
