"""Partitions of a scan: the job that they share, and the Parquet tables of each, written and read.

A partition is complete when its scores file exists: its quarantine file, and its embeddings file if requested, are
written before.

Embeddings have one row for each row of the scores. They are Parquet, for its checksums and schema metadata, with
values of fixed byte width, which are read three times as fast as lists of numbers. Half precision halves the size; its
three digits exceed the repeatability of an embedding between two images of one galaxy.
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
from galscan.core.errors import GalscanError, InputError
from galscan.scanning.plan import ModelRef, Partition, Plan, StoreRef
from galscan.scanning.selection import ALL, Selection
from galscan.store.layout import Store

# Why a whole partition is quarantined. Remedies: more memory for the workers, or a repaired store.
FATAL, SILENT = "part kills its worker", "part never ends"
# The networks converted to OpenVINO for CPUs.
NETWORK, PREFILTER_NETWORK = "network.xml", "prefilter.xml"
# The last cascade stage of an object. Discarded objects have no score, but for a random 1 % that are scored in full.
STAGES = FULL, RESCORED, DISCARDED = ("full", "rescored", "prefilter")
RESCORED_FRACTION = 0.01
EMBEDDING = "embedding"  # the column of embeddings: half precision, little-endian
# Keys in the Parquet schema's metadata: fingerprint of the scan, and number of selected objects of the partition.
FINGERPRINT, CHOSEN = b"galscan.fingerprint", b"galscan.chosen"


@dataclass(frozen=True)
class Job:
    """What all partitions of a scan share; small, as it is sent to the workers with each."""

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
    """Files of the prefilters, one for each model; none by default."""
    seed: int = 0
    converted: bool = False
    """Whether the run folder holds the networks converted to OpenVINO (`convert_networks`)."""
    embedding: int = 0
    """Dimension of an embedding; 0 where none is written."""
    size: int = 0
    """Input size of the networks in pixels, to which images of larger stores are resampled; 0: as stored."""

    @classmethod
    def of(cls, plan: Plan, prefilters: Sequence[Path] = ()) -> Job:
        """Return the job of a plan."""
        return cls(
            plan.models, plan.stores, str(plan.out), plan.fingerprint, plan.answers,
            plan.device, plan.precision, plan.batch, plan.selection,
            tuple(map(str, prefilters)), plan.seed, (plan.out / NETWORK).is_file(), plan.embedding,
            plan.size,
        )  # fmt: skip

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(model.target for model in self.models)


@dataclass(frozen=True)
class PartitionReport:
    """Result of one partition; one line of the ledger."""

    part: int
    scored: int
    quarantined: int
    seconds: float
    busy: float
    """Those of the `seconds` that the networks took."""
    worker: str


def of_target(column: str, target: str, targets: Sequence[str]) -> str:
    """Return the name of a column in the score tables; with several targets it ends with the target's name."""
    return f"{column}_{target}" if len(targets) > 1 else column


def scores_path(out: Path | str, partition: int) -> Path:
    """Return the path of a partition's scores."""
    return Path(out, "scores", f"part-{partition:05d}.parquet")


def quarantine_path(out: Path | str, partition: int) -> Path:
    """Return the path of a partition's quarantined objects."""
    return Path(out, "quarantine", f"part-{partition:05d}.parquet")


def embeddings_path(out: Path | str, partition: int) -> Path:
    """Return the path of a partition's embeddings, whose rows match those of its scores."""
    return Path(out, "embeddings", f"part-{partition:05d}.parquet")


@dataclass(frozen=True)
class Predictions:
    """Outputs of the networks for each object of a partition; NaN, or zero for embeddings, where not computed."""

    score: np.ndarray
    """Shape (n, targets), like `spread` and `prefilter`."""
    spread: np.ndarray
    prefilter: np.ndarray
    answers: np.ndarray
    """Shape (n, answers)."""
    embedding: np.ndarray
    """Shape (n, d)."""
    stage: np.ndarray
    """Index in `STAGES`, shape (n,)."""

    @classmethod
    def empty(cls, job: Job, count: int) -> Predictions:
        """Return arrays without predictions."""
        score, spread, prefilter = np.full((3, count, len(job.models)), np.nan, np.float32)
        answers = np.full((count, len(job.answers)), np.nan, np.float32)
        embedding = np.zeros((count, job.embedding), np.float16)
        return cls(score, spread, prefilter, answers, embedding, np.full(count, STAGES.index(FULL), np.int8))

    def columns(self, job: Job) -> dict[str, Any]:
        """Return the last columns of the score table."""
        scores = {
            of_target(name, target, job.targets): values[:, k]
            for k, target in enumerate(job.targets)
            for name, values in (("score", self.score), ("score_std", self.spread), ("first_look", self.prefilter))
        }
        stage = pa.DictionaryArray.from_arrays(self.stage, list(STAGES))
        return scores | {"stage": stage} | {name: self.answers[:, k] for k, name in enumerate(job.answers)}


def write_partition(
    partition: Partition,
    job: Job,
    columns: dict[str, Any],
    reasons: np.ndarray,
    predictions: Predictions,
    selected: np.ndarray,
) -> tuple[int, int]:
    """Write the tables of a partition, scores last; return the numbers of scored and of quarantined objects.

    Parameters
    ----------
    columns
        First columns of both tables (`columns_of`).
    reasons : ndarray of object, shape (n,)
        Why an object is quarantined; "" where it is not.
    selected : ndarray of bool, shape (n,)
        Which objects the scan selects.

    Raises
    ------
    StorageError
        If they cannot be written.
    """
    kept = reasons == ""
    metadata = {FINGERPRINT: job.fingerprint.encode(), CHOSEN: str(selected.sum()).encode()}
    reason = pa.array(reasons, pa.string())
    write_rows(quarantine_path(job.out, partition.number), metadata, {**columns, "reason": reason}, selected & ~kept)
    if job.embedding:
        write_rows(
            embeddings_path(job.out, partition.number),
            metadata,
            {EMBEDDING: as_bytes(predictions.embedding)},
            selected & kept,
        )
    write_rows(
        scores_path(job.out, partition.number), metadata, {**columns, **predictions.columns(job)}, selected & kept
    )
    return int((selected & kept).sum()), int((selected & ~kept).sum())


def columns_of(store: Store, name: str, rows: slice) -> dict[str, Any]:
    """Return the first columns of both tables.

    Raises
    ------
    GalscanError
        If the store has lost the ids of these rows.
    """
    ids = store.column("id", rows)
    count = rows.stop - rows.start
    if count > 1 and (ids == ids.dtype.type()).all():  # Zarr reads missing chunks as zeros
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


def write_rows(path: Path, metadata: dict[bytes, bytes], columns: dict[str, Any], mask: np.ndarray) -> None:
    """Write the rows where `mask` is true; equal rows give equal bytes."""
    table = pa.table(columns).filter(pa.array(mask)).replace_schema_metadata(metadata)
    # Embeddings hardly compress, and their dictionaries and statistics are of no use.
    is_embedding = EMBEDDING in columns
    with files.atomic_path(path) as temporary:
        pq.write_table(
            table, temporary, compression="none" if is_embedding else "zstd", use_dictionary=not is_embedding,
            write_statistics=not is_embedding, write_page_checksum=True,
        )  # fmt: skip


def read_table(path: Path, fingerprint: str, columns: Sequence[str]) -> pa.Table:
    """Read columns of a partition's table, checked to be of the scan with this fingerprint; checksums are verified.

    Raises
    ------
    InputError
        If it is missing, damaged, or of another scan.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        file = None
    if file is None or (file.metadata.metadata or {}).get(FINGERPRINT) != fingerprint.encode():
        raise InputError(f"{path} is missing, or of another scan; run its scan command again")
    with file:
        try:
            table = file.read(list(columns))
            why = ", ".join(f"no column {name}" for name in columns if name not in table.column_names)
        except (OSError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
    if why:
        raise InputError(f"{path} is damaged ({why}); remove it and run its scan command again")
    return table
