"""Scoring of one partition on a Dask worker.

Only the loaded networks are kept between partitions.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from galscan.core.errors import GalscanError
from galscan.core.old_names import existing
from galscan.scanning.partitions import (
    DISCARDED,
    NETWORK,
    PREFILTER_NETWORK,
    RESCORED,
    RESCORED_FRACTION,
    STAGES,
    Job,
    PartitionReport,
    Predictions,
    columns_of,
    write_partition,
)
from galscan.scanning.plan import PIECE, ModelRef, Partition
from galscan.store.layout import CHUNK, Store, open_store
from galscan.surveys.base import UNUSABLE, Flag, reason
from galscan.surveys.resampling import resample

if TYPE_CHECKING:
    from galscan.models.ensemble import Scorer, Scores

NONFINITE_SCORE = "non-finite score"
DAMAGED, GONE = "damaged in the store", "missing in the store"
_REASONS = np.array([reason(flags) for flags in range(256)], object)
LARGEST = float(np.finfo(np.float16).max)
RESAMPLERS = 8  # resampling threads where a GPU scores: it is faster than one of them; one thread on a CPU


def score_partition(partition: Partition, job: Job) -> PartitionReport:
    """Score or quarantine every object of a partition, and write its tables.

    Raises
    ------
    GalscanError
        If the model or the store changed since the scan was planned.
    StorageError
        If the tables cannot be written.
    """
    from galscan.core import device as devices

    started = time.perf_counter()
    scorer = load_scorer(job)
    store, rows = _open(partition, job), slice(partition.start, partition.stop)
    columns = columns_of(store, job.stores[partition.store].name, rows)
    selected = job.selection.mask(store, rows)
    flags = columns["flags"]
    fit = selected & ((flags & np.uint8(UNUSABLE)) == 0)
    reasons = _REASONS[flags]
    predictions = Predictions.empty(job, partition.count)
    prefilter, threshold = _prefilter(job) if job.prefilters else (None, None)
    rescored = np.random.default_rng([job.seed, partition.number]).random(partition.count) < RESCORED_FRACTION
    full = batch = devices.batch(job.device, job.batch)
    busy = 0.0
    waiting: list[tuple[np.ndarray, np.ndarray]] = []  # rows and images that passed, until they fill a batch

    def score_waiting() -> None:
        nonlocal batch, busy
        rows, images = (np.concatenate(arrays) for arrays in zip(*waiting, strict=True))
        waiting.clear()
        before = time.perf_counter()
        scores, batch = _score(scorer, images, batch)
        busy += time.perf_counter() - before
        predictions.score[rows] = scores.score
        predictions.spread[rows], predictions.answers[rows] = scores.score_std, scores.answers
        if scores.embedding is not None:
            predictions.embedding[rows] = np.clip(scores.embedding, -LARGEST, LARGEST)

    for piece, images, readable, dark, constant in _pieces(store, partition, selected, fit, job):
        usable = fit[piece]
        for bad, flag, why in (
            (usable & ~readable, Flag.UNREADABLE, DAMAGED),
            # Zarr reads missing chunks as zeros; images that are zero in the survey are flagged at ingest.
            (usable & readable & dark, Flag.MISSING, GONE),
            (usable & readable & constant, Flag.BLANK, reason(Flag.BLANK)),
        ):
            flags[piece][bad] |= np.uint8(flag)
            reasons[piece][bad] = why
            usable = usable & ~bad
        use = np.flatnonzero(usable)
        if prefilter is not None and len(use):
            before = time.perf_counter()
            rough = prefilter(images[use])
            busy += time.perf_counter() - before
            predictions.prefilter[piece][use] = rough
            below = (rough < threshold).all(1)  # False for NaN: such objects go to the full networks
            sampled = rescored[piece][use]
            predictions.stage[piece][use[below & sampled]] = STAGES.index(RESCORED)
            predictions.stage[piece][use[below & ~sampled]] = STAGES.index(DISCARDED)
            use = use[_scored_in_full(predictions.stage[piece][use])]
        if len(use):
            waiting.append((use + piece.start, images[use]))
        if sum(len(rows) for rows, _ in waiting) >= full:
            score_waiting()
    if waiting:
        score_waiting()
    finite = (np.isfinite(predictions.score) & np.isfinite(predictions.spread)).all(1)
    reasons[(reasons == "") & _scored_in_full(predictions.stage) & ~finite] = NONFINITE_SCORE
    counts = write_partition(partition, job, columns, reasons, predictions, selected)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return PartitionReport(partition.number, *counts, time.perf_counter() - started, busy, worker)


def quarantine_partition(partition: Partition, job: Job, why: str) -> PartitionReport:
    """Quarantine all objects of a partition without reading its images, which killed or stalled the workers."""
    started = time.perf_counter()
    store, rows = _open(partition, job), slice(partition.start, partition.stop)
    columns = columns_of(store, job.stores[partition.store].name, rows)
    reasons = np.full(partition.count, why, object)
    counts = write_partition(
        partition, job, columns, reasons, Predictions.empty(job, partition.count), job.selection.mask(store, rows)
    )
    return PartitionReport(partition.number, *counts, time.perf_counter() - started, 0.0, socket.gethostname())


class Sample(NamedTuple):
    """Scores of a sample of images, each of shape (n, targets)."""

    prefilter: np.ndarray
    """Those of the full networks where there is no prefilter."""
    full: np.ndarray


def sample_partition(store: int, rows: slice, job: Job) -> Sample:
    """Score usable images with the prefilter (where the job has one) and the full networks.

    Objects that may have been in a prefilter's training set are left out, as they would bias its threshold.
    """
    images = usable_images(store, rows, job, untrained=bool(job.prefilters))
    if not len(images):
        empty = np.empty((0, len(job.models)), np.float32)
        return Sample(empty, empty)
    full = _score(load_scorer(job), images, job.batch)[0].score
    prefilter = _prefilter(job)[0](images) if job.prefilters else full
    finite = (np.isfinite(full) & np.isfinite(prefilter)).all(1)
    return Sample(prefilter[finite], full[finite])


def usable_images(store: int, rows: slice, job: Job, *, untrained: bool) -> np.ndarray:
    """Return the usable images of some rows, resampled to the size that the networks take.

    With `untrained`, only those that cannot be in a prefilter's training set.
    """
    from galscan.models.prefilter import may_train_prefilter

    opened = open_store(job.stores[store].path)
    images, readable = _read(opened, rows)
    usable = readable & ((opened.column("flags", rows) & np.uint8(UNUSABLE)) == 0) & ~_constant(images)
    usable &= job.selection.mask(opened, rows)
    if untrained:
        usable &= ~may_train_prefilter(opened.column("id", rows))
    return _resampled(images[usable], job)


def _resampled(images: np.ndarray, job: Job) -> np.ndarray:
    """Return images resampled to the size that the networks take."""
    from galscan.core.device import pick

    if job.size in (0, images.shape[1]):
        return images
    return resample(images, job.size, RESAMPLERS if pick(job.device).type == "cuda" else 1)


def _scored_in_full(stage: np.ndarray) -> np.ndarray:
    """Return which objects the full networks score."""
    return stage != STAGES.index(DISCARDED)


def _prefilter(job: Job) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """Return the prefilters of a job as one scoring function, and their thresholds; loaded once per process."""
    with _loading:
        return _loaded_prefilter(job.prefilters, job.out if job.converted else "", job.device, job.precision)


@lru_cache(maxsize=1)
def _loaded_prefilter(
    paths: tuple[str, ...], converted: str, device: str, precision: str
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    from galscan.models.prefilter import load_prefilter, load_prefilter_scorer

    prefilters = [load_prefilter(Path(path)) for path in paths]
    network = existing(Path(converted, PREFILTER_NETWORK)) if converted else None
    scorer = load_prefilter_scorer(prefilters, device, precision, network)
    return scorer, np.array([prefilter.cut for prefilter in prefilters], np.float32)


def _open(partition: Partition, job: Job) -> Store:
    """Open the store of a partition, and check that it has not changed since the scan was planned."""
    ref = job.stores[partition.store]
    return open_store(ref.path, ref.content_hash)


_loading = threading.Lock()


def load_scorer(job: Job) -> Scorer:
    """Return the networks of a job; loaded once per process, also with several threads.

    Raises
    ------
    GalscanError
        If a model on disk changed since the scan was planned.
    """
    with _loading:
        converted = str(Path(job.out, NETWORK)) if job.converted else ""
        return _scorer(job.models, job.device, job.precision, converted, job.embedding > 0)


def import_libraries() -> None:
    """Import what loading the networks needs."""
    import galscan.models.compiled  # noqa: F401  # which imports torch


def load_networks(job: Job) -> None:
    """Load the networks before the first partition, so that loading is not counted as scoring time."""
    load_scorer(job)


@lru_cache(maxsize=1)
def _scorer(models: tuple[ModelRef, ...], device: str, precision: str, converted: str, embeddings: bool) -> Scorer:
    from galscan.models import ensemble
    from galscan.models.model import open_model

    opened = [open_model(ref.path, ref.model_hash) for ref in models]
    return ensemble.load_scorer(opened, device, precision, Path(converted) if converted else None, embeddings)


class _Piece(NamedTuple):
    """A block of rows of a partition, read at once."""

    rows: slice
    """Counted from the partition's start."""
    images: np.ndarray
    """Of the size that the networks take; where resampled, rows not fit for scoring are zero."""
    readable: np.ndarray
    """Which of the stored images could be read, shape (n,)."""
    dark: np.ndarray
    """Which of the stored images are zero everywhere."""
    constant: np.ndarray
    """Which of the stored images are constant in each band."""


def _pieces(store: Store, partition: Partition, selected: np.ndarray, fit: np.ndarray, job: Job) -> Iterator[_Piece]:
    """Yield a partition in pieces; the next one is read and resampled in a thread. Only rows of `fit` are resampled.

    Pieces without selected objects are not read.
    """
    starts = range(partition.start, partition.stop, PIECE)
    pieces = [slice(start - partition.start, min(start + PIECE, partition.stop) - partition.start) for start in starts]
    pieces = [rows for rows in pieces if selected[rows].any()]
    if not pieces:
        return

    def read(rows: slice) -> _Piece:
        images, readable = _read(store, slice(rows.start + partition.start, rows.stop + partition.start))
        dark, constant = ~np.asarray(images.any(axis=(1, 2, 3))), _constant(images)  # before resampling
        if job.size and job.size != store.size:
            small = np.zeros((len(images), job.size, job.size, 3), np.uint8)
            wanted = fit[rows] & readable
            small[wanted] = _resampled(images[wanted], job)
            images = small
        return _Piece(rows, images, readable, dark, constant)

    with ThreadPoolExecutor(1, "galscan-read") as pool:
        ahead = pool.submit(read, pieces[0])
        for k in range(len(pieces)):
            piece = ahead.result()
            if k + 1 < len(pieces):
                ahead = pool.submit(read, pieces[k + 1])
            yield piece


def _read(store: Store, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Read images; chunks that cannot be decoded are returned as zeros and marked unreadable.

    Errors of a disk or a network are raised instead: they may be transient, and must not quarantine good data.
    """
    try:
        return store.images(rows), np.ones(rows.stop - rows.start, bool)
    except Exception as error:  # damaged bytes: the codecs raise ValueError, RuntimeError, ...
        if _is_transient(error):
            raise
        images = np.zeros((rows.stop - rows.start, store.size, store.size, 3), np.uint8)
        readable = np.zeros(len(images), bool)
        for start in range(rows.start, rows.stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, rows.stop))
            local = slice(chunk.start - rows.start, chunk.stop - rows.start)
            try:
                images[local], readable[local] = store.images(chunk), True
            except Exception as error:
                if _is_transient(error):
                    raise
        return images, readable


def _is_transient(error: Exception) -> bool:
    """Tell whether an error comes from a disk or a network; for damaged data zarrs raises `OSError` without errno."""
    return isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno is not None)


def _constant(images: np.ndarray) -> np.ndarray:
    """Return which images are constant in every band, shape (n,).

    The middle row is tested first, as it rules out nearly all real images at little cost.
    """
    first = images[:, :1, :1]
    constant = (images[:, images.shape[1] // 2][:, None] == first).all(axis=(1, 2, 3))
    constant[constant] = (images[constant] == first[constant]).all(axis=(1, 2, 3))
    return constant


def _score(scorer: Scorer, images: np.ndarray, batch: int) -> tuple[Scores, int]:
    """Score images in batches, halved when the device runs out of memory; also return the batch size used."""
    from galscan.core import device
    from galscan.models.ensemble import Scores

    done: list[Scores] = []
    start = 0
    while start < len(images):
        try:
            done.append(scorer(images[start : start + batch]))
            start += batch
            continue
        except RuntimeError as error:
            if not device.is_out_of_memory(error):
                raise
        # Outside the handler: the error's traceback keeps the memory alive.
        if batch == 1:
            raise GalscanError("the device has no memory for a batch of 1 image; use another device, or fewer workers")
        _free()
        batch //= 2
    score, spread, answers = (np.concatenate(values) for values in zip(*(scores[:3] for scores in done), strict=True))
    embeddings = [scores.embedding for scores in done if scores.embedding is not None]
    return Scores(score, spread, answers, np.concatenate(embeddings) if embeddings else None), batch


def _free() -> None:
    """Empty the device allocator's cache, so that a smaller batch fits."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
