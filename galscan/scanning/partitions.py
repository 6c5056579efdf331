"""A part of a scan: the job that all have in common, and the tables each leaves.

A part is done when its scores file exists; its quarantine file, and that of its embeddings where they are asked for,
were written before, so that a reader who sees the one can count on the others.

Embeddings have a row for each row of the scores. They are Parquet as everything else of a part, for its checksums and
marks; values of a fixed number of bytes, which are read three times as fast as lists of numbers; and of half precision,
whose three digits are more than two looks at one galaxy have in common, at half the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core import files
from galscan.core.errors import GalscanError
from galscan.scanning import quantised
from galscan.scanning.plan import ModelRef, Partition, Plan, StoreRef
from galscan.scanning.selection import ALL, Selection
from galscan.store.layout import Store

# Why a whole part is set aside. Whoever scans it again should give its workers more memory, or mend the store.
FATAL, SILENT = "part kills its worker", "part never ends"
# The networks as converted for CPUs.
NETWORK, TINY = "network.xml", "first-look.xml"
# How far an object came. What was discarded has no score, and one in a hundred of it is scored all the same.
STAGES = FULL, AUDITED, DISCARDED, DISCARDED8 = ("full", "audit", "first look", "int8")
AUDIT = 0.01
EMBEDDING = "embedding"  # the column of embeddings: half precision, little-endian
# Keys in the Parquet schema's metadata: of which scan, and how many objects of the part were chosen.
FINGERPRINT, CHOSEN = b"galscan.fingerprint", b"galscan.chosen"


@dataclass(frozen=True)
class Job:
    """What all parts of a scan have in common, small enough to travel with each."""

    models: tuple[ModelRef, ...]
    stores: tuple[StoreRef, ...]
    out: str
    fingerprint: str
    answers: tuple[str, ...]
    device: str
    precision: str
    batch: int
    selection: Selection = ALL
    prefilters: tuple[str, ...] = ()
    """Files of the first looks, one for each model; none by default."""
    seed: int = 0
    converted: bool = False
    """Whether the run folder holds the networks as OpenVINO likes them (`convert_networks`)."""
    embedding: int = 0
    """Numbers an embedding has; 0 where none is written."""
    int8: tuple[float, ...] = ()
    """Where the networks in 8 bits cut, target by target; nothing where they do not look (`quantised`)."""
    size: int = 0
    """Pixels on a side that the networks take, to which images of larger stores are resampled; 0: as stored."""

    @classmethod
    def of(cls, plan: Plan, prefilters: Sequence[Path] = ()) -> Job:
        """Return the job of a plan."""
        return cls(
            plan.models, plan.stores, str(plan.out), plan.fingerprint, plan.answers,
            plan.device, plan.precision, plan.batch, plan.selection,
            tuple(map(str, prefilters)), plan.seed, (plan.out / NETWORK).is_file(), plan.embedding,
            quantised.cuts(plan.out) if plan.int8 else (), plan.size,
        )  # fmt: skip

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(model.target for model in self.models)


@dataclass(frozen=True)
class PartitionReport:
    """What came of one part; goes into the ledger."""

    part: int
    scored: int
    quarantined: int
    seconds: float
    busy: float
    """Seconds of these in the networks."""
    worker: str


def of_target(column: str, target: str, targets: Sequence[str]) -> str:
    """Return the name of a column in the tables of scores: that of its target where there are several targets."""
    return f"{column}_{target}" if len(targets) > 1 else column


def scores_path(out: Path | str, part: int) -> Path:
    """Return where the scores of a part are."""
    return Path(out, "scores", f"part-{part:05d}.parquet")


def quarantine_path(out: Path | str, part: int) -> Path:
    """Return where the quarantined objects of a part are."""
    return Path(out, "quarantine", f"part-{part:05d}.parquet")


def embeddings_path(out: Path | str, part: int) -> Path:
    """Return where the embeddings of a part are: row by row those of its scores."""
    return Path(out, "embeddings", f"part-{part:05d}.parquet")


@dataclass(frozen=True)
class Predictions:
    """What the networks saw of each object of a part: NaN and zeros, until they have looked."""

    score: np.ndarray
    """By target, as its spread and the first look's, shape (n, targets)."""
    spread: np.ndarray
    first: np.ndarray
    answers: np.ndarray
    """Shape (n, answers)."""
    embedding: np.ndarray
    """Shape (n, d)."""
    stage: np.ndarray
    """Which of `STAGES`, shape (n,)."""

    @classmethod
    def nothing(cls, job: Job, count: int) -> Predictions:
        """Return what is seen before anybody looks."""
        score, spread, first = np.full((3, count, len(job.models)), np.nan, np.float32)
        answers = np.full((count, len(job.answers)), np.nan, np.float32)
        embedding = np.zeros((count, job.embedding), np.float16)
        return cls(score, spread, first, answers, embedding, np.full(count, STAGES.index(FULL), np.int8))

    def columns(self, job: Job) -> dict[str, Any]:
        """Return the columns that the table of scores ends with."""
        told = {
            of_target(name, target, job.targets): values[:, k]
            for k, target in enumerate(job.targets)
            for name, values in (("score", self.score), ("score_std", self.spread), ("first_look", self.first))
        }
        stage = pa.DictionaryArray.from_arrays(self.stage, list(STAGES))
        return told | {"stage": stage} | {name: self.answers[:, k] for k, name in enumerate(job.answers)}


def write_part(
    part: Partition, job: Job, columns: dict[str, Any], reasons: np.ndarray, seen: Predictions, chosen: np.ndarray
) -> tuple[int, int]:
    """Write the tables of a part, scores last, and return how many objects are in scores and in quarantine.

    Parameters
    ----------
    columns
        What both tables begin with (`columns_of`).
    reasons : ndarray of object, shape (n,)
        Why an object is quarantined; "" where it is not.
    chosen : ndarray of bool, shape (n,)
        Which objects the scan is of.

    Raises
    ------
    StorageError
        If they cannot be written.
    """
    kept = reasons == ""
    marks = {FINGERPRINT: job.fingerprint.encode(), CHOSEN: str(chosen.sum()).encode()}
    reason = pa.array(reasons, pa.string())
    write_rows(quarantine_path(job.out, part.number), marks, {**columns, "reason": reason}, chosen & ~kept)
    if job.embedding:
        write_rows(embeddings_path(job.out, part.number), marks, {EMBEDDING: as_bytes(seen.embedding)}, chosen & kept)
    write_rows(scores_path(job.out, part.number), marks, {**columns, **seen.columns(job)}, chosen & kept)
    return int((chosen & kept).sum()), int((chosen & ~kept).sum())


def columns_of(store: Store, name: str, rows: slice) -> dict[str, Any]:
    """Return the columns both tables begin with; without ids there are none."""
    ids = store.column("id", rows)
    count = rows.stop - rows.start
    if count > 1 and (ids == ids.dtype.type()).all():  # what is missing is read as zeros
        raise GalscanError(
            f"{store.path} has lost the ids of rows {rows.start:,} to {rows.stop - 1:,}; restore the files below "
            f"{store.path}/id, or ingest the survey again"
        )
    return {
        "store": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [name]),
        "index": np.arange(rows.start, rows.stop),
        "id": ids if np.issubdtype(ids.dtype, np.integer) else pa.array([str(i) for i in ids], pa.string()),
        "ra": store.column("ra", rows),
        "dec": store.column("dec", rows),
        "flags": store.column("flags", rows),
    }


def as_bytes(embedding: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Return embeddings (n, d) as values of 2 d bytes."""
    count, numbers = embedding.shape
    little = np.ascontiguousarray(embedding, "<f2")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * numbers), count, [None, pa.py_buffer(little)])


def write_rows(path: Path, marks: dict[bytes, bytes], columns: dict[str, Any], mask: np.ndarray) -> None:
    """Write the masked rows; the same rows give the same bytes."""
    table = pa.table(columns).filter(pa.array(mask)).replace_schema_metadata(marks)
    # Embeddings are like noise: to compress them, or to look for repeated or extreme ones, takes time for nothing.
    plain = EMBEDDING in columns
    with files.atomic_path(path) as temporary:
        pq.write_table(
            table, temporary, compression="none" if plain else "zstd", use_dictionary=not plain,
            write_statistics=not plain, write_page_checksum=True,
        )  # fmt: skip
