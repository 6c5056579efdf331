"""One shard of a store becomes one part of the scores; this is all that runs on a worker.

Nothing is kept between parts but the network.
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
from galscan.scanning import quantised
from galscan.scanning.partitions import (
    AUDIT,
    AUDITED,
    DISCARDED,
    DISCARDED8,
    NETWORK,
    STAGES,
    TINY,
    Job,
    PartitionReport,
    Predictions,
    columns_of,
    write_part,
)
from galscan.scanning.plan import PIECE, ModelRef, Partition
from galscan.store.layout import CHUNK, Store, open_store
from galscan.surveys.base import UNUSABLE, Flag, reason
from galscan.surveys.resampling import resample

if TYPE_CHECKING:
    from galscan.models.ensemble import Scorer, Scores

# What it discards is called, what it says of images, and below what it discards.
_Look = tuple[str, Callable[[np.ndarray], np.ndarray], np.ndarray]

NONFINITE_SCORE = "non-finite score"
DAMAGED, GONE = "damaged in the store", "missing in the store"
_REASONS = np.array([reason(flags) for flags in range(256)], object)
LARGEST = float(np.finfo(np.float16).max)
RESAMPLERS = 8  # threads that resample images for a GPU, which scores faster than one of them can; one for a CPU


def score_partition(part: Partition, job: Job) -> PartitionReport:
    """Score or quarantine every object of a part, and write its tables.

    Raises
    ------
    GalscanError
        If the model or the store is not the one that was planned.
    StorageError
        If the tables cannot be written.
    """
    from galscan.core import device as devices

    started = time.perf_counter()
    scorer = load_scorer(job)
    store, rows = _open(part, job), slice(part.start, part.stop)
    columns = columns_of(store, job.stores[part.store].name, rows)
    chosen = job.selection.mask(store, rows)
    flags = columns["flags"]
    fit = chosen & ((flags & np.uint8(UNUSABLE)) == 0)
    reasons = _REASONS[flags]
    seen = Predictions.nothing(job, part.count)
    looks: list[_Look] = [(DISCARDED, *_prefilter(job))] if job.prefilters else []
    looks += [(DISCARDED8, _look8(job), np.array(job.int8, np.float32))] if job.int8 else []
    audited = np.random.default_rng([job.seed, part.number]).random(part.count) < AUDIT
    full = batch = devices.batch(job.device, job.batch)
    busy = 0.0
    waiting: list[tuple[np.ndarray, np.ndarray]] = []  # rows and images that passed, until they fill a batch

    def score_waiting() -> None:
        nonlocal batch, busy
        rows, images = (np.concatenate(both) for both in zip(*waiting, strict=True))
        waiting.clear()
        before = time.perf_counter()
        got, batch = _score(scorer, images, batch)
        busy += time.perf_counter() - before
        seen.score[rows], seen.spread[rows], seen.answers[rows] = got.score, got.score_std, got.answers
        if got.embedding is not None:
            seen.embedding[rows] = np.clip(got.embedding, -LARGEST, LARGEST)

    for here, images, readable, dark, constant in _pieces(store, part, chosen, fit, job):
        usable = fit[here]
        for bad, flag, why in (
            (usable & ~readable, Flag.UNREADABLE, DAMAGED),
            # Pixels that are missing are read as zeros; ingest marks what is dark by itself.
            (usable & readable & dark, Flag.MISSING, GONE),
            (usable & readable & constant, Flag.BLANK, reason(Flag.BLANK)),
        ):
            flags[here][bad] |= np.uint8(flag)
            reasons[here][bad] = why
            usable = usable & ~bad
        use = np.flatnonzero(usable)
        rest = use  # what no look put below its cut
        for name, look, cut in looks:
            if not len(rest):
                break
            before = time.perf_counter()
            own = look(images[rest])
            busy += time.perf_counter() - before
            if name == DISCARDED:
                seen.first[here][rest] = own
            below = (own < cut).all(1)  # what has no number for a score is for the full network to see
            again = audited[here][rest]
            seen.stage[here][rest[below & again]] = STAGES.index(AUDITED)
            seen.stage[here][rest[below & ~again]] = STAGES.index(name)
            rest = rest[~below]
        use = use[_looked(seen.stage[here][use])]
        if len(use):
            waiting.append((use + here.start, images[use]))
        if sum(len(rows) for rows, _ in waiting) >= full:
            score_waiting()
    if waiting:
        score_waiting()
    finite = (np.isfinite(seen.score) & np.isfinite(seen.spread)).all(1)
    reasons[(reasons == "") & _looked(seen.stage) & ~finite] = NONFINITE_SCORE
    counts = write_part(part, job, columns, reasons, seen, chosen)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return PartitionReport(part.number, *counts, time.perf_counter() - started, busy, worker)


def quarantine(part: Partition, job: Job, why: str) -> PartitionReport:
    """Quarantine a part whole, without a look at its pictures: whoever looked did not survive it."""
    started = time.perf_counter()
    store, rows = _open(part, job), slice(part.start, part.stop)
    columns = columns_of(store, job.stores[part.store].name, rows)
    reasons = np.full(part.count, why, object)
    counts = write_part(
        part, job, columns, reasons, Predictions.nothing(job, part.count), job.selection.mask(store, rows)
    )
    return PartitionReport(part.number, *counts, time.perf_counter() - started, 0.0, socket.gethostname())


class Sample(NamedTuple):
    """What is said of some pictures: scores of shape (n, targets), those of the full networks where a look is not."""

    first: np.ndarray
    int8: np.ndarray
    full: np.ndarray
    seconds: tuple[float, float] = (0.0, 0.0)
    """Of the networks in 8 bits, and of the full ones."""


def sample_partition(store: int, rows: slice, job: Job) -> Sample:
    """Return what the looks, if there are any, and the full networks say of the usable ones of some pictures.

    Of what may have taught a look nothing is returned: it would flatter it.
    """
    images = usable_pictures(store, rows, job, False if job.prefilters or job.int8 else None)
    if not len(images):
        nothing = np.empty((0, len(job.models)), np.float32)
        return Sample(nothing, nothing, nothing)
    scorer, look8 = load_scorer(job), _look8(job) if job.int8 else None
    before = time.perf_counter()
    full = _score(scorer, images, job.batch)[0].score
    between = time.perf_counter()
    own8 = look8(images) if look8 else full
    seconds = time.perf_counter() - between, between - before
    own = _prefilter(job)[0](images) if job.prefilters else full
    finite = (np.isfinite(full) & np.isfinite(own8) & np.isfinite(own)).all(1)
    return Sample(own[finite], own8[finite], full[finite], seconds)


def usable_pictures(store: int, rows: slice, job: Job, teaching: bool | None) -> np.ndarray:
    """Return the usable ones of some pictures: of those that may teach a look, of those that may not, or of all.

    They have the pixels that the networks take.
    """
    from galscan.models.prefilter import teaches

    opened = open_store(job.stores[store].path)
    images, readable = _read(opened, rows)
    usable = readable & ((opened.column("flags", rows) & np.uint8(UNUSABLE)) == 0) & ~_constant(images)
    usable &= job.selection.mask(opened, rows)
    if teaching is not None:
        usable &= teaches(opened.column("id", rows)) == teaching
    return _resampled(images[usable], job)


def _resampled(images: np.ndarray, job: Job) -> np.ndarray:
    """Return images with the pixels that the networks take."""
    from galscan.core.device import pick

    if job.size in (0, images.shape[1]):
        return images
    return resample(images, job.size, RESAMPLERS if pick(job.device).type == "cuda" else 1)


def _looked(stage: np.ndarray) -> np.ndarray:
    """Return what the full networks look at."""
    return ~np.isin(stage, [STAGES.index(DISCARDED), STAGES.index(DISCARDED8)])


def _prefilter(job: Job) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """Return the first looks of a job as one, and their cuts, loaded once a process."""
    with _loading:
        return _loaded_prefilter(job.prefilters, job.out if job.converted else "", job.device, job.precision)


@lru_cache(maxsize=1)
def _loaded_prefilter(
    paths: tuple[str, ...], converted: str, device: str, precision: str
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    from galscan.models.prefilter import load_prefilter, load_prefilter_scorer

    looks = [load_prefilter(Path(path)) for path in paths]
    seen = load_prefilter_scorer(looks, device, precision, Path(converted, TINY) if converted else None)
    return seen, np.array([look.cut for look in looks], np.float32)


def _open(part: Partition, job: Job) -> Store:
    """Open the store of a part, which must be the one that was planned."""
    ref = job.stores[part.store]
    store = open_store(ref.path)
    if store.content_hash != ref.content_hash:
        raise GalscanError(f"{ref.path} changed while it was scanned; run the same command again to scan it as it is")
    return store


_loading = threading.Lock()


def load_scorer(job: Job) -> Scorer:
    """Return the networks of a job, loaded once a process however many threads ask.

    Raises
    ------
    GalscanError
        If a model on disk is not the planned one.
    """
    with _loading:
        converted = str(Path(job.out, NETWORK)) if job.converted else ""
        return _scorer(job.models, job.device, job.precision, converted, job.embedding > 0)


def _look8(job: Job) -> Callable[[np.ndarray], np.ndarray]:
    """Return the networks in 8 bits as a function from images to scores (n, targets); the full where they cannot be."""
    with _loading:
        scorer = _scorer(job.models, job.device, job.precision, str(Path(job.out, quantised.NETWORK8)), False)
    return lambda images: _score(scorer, images, job.batch)[0].score


def get_ready(job: Job) -> None:
    """Load the networks before the first part, so that its time is not taken for scoring."""
    load_scorer(job)
    if job.int8:
        _look8(job)


@lru_cache(maxsize=2)  # in full, and in 8 bits
def _scorer(models: tuple[ModelRef, ...], device: str, precision: str, converted: str, embeddings: bool) -> Scorer:
    from galscan.models import ensemble
    from galscan.models import model as bundle

    bundles = [bundle.open_model(model.path) for model in models]
    for found, model in zip(bundles, models, strict=True):
        if found.model_hash != model.model_hash:
            raise GalscanError(
                f"the model {model.path} changed while it was used; run the same command again to use the new one"
            )
    return ensemble.load_scorer(bundles, device, precision, Path(converted) if converted else None, embeddings)


class _Piece(NamedTuple):
    """Some rows of a part."""

    here: slice
    """Counted from the part's start."""
    images: np.ndarray
    """With the pixels that the networks take; zero where they were resampled and the row is not fit to be scored."""
    readable: np.ndarray
    """Which of the stored images could be read, shape (n,)."""
    dark: np.ndarray
    """Which of the stored images are zero everywhere."""
    constant: np.ndarray
    """Which of the stored images have one value everywhere, in each band."""


def _pieces(store: Store, part: Partition, chosen: np.ndarray, fit: np.ndarray, job: Job) -> Iterator[_Piece]:
    """Yield a part piece by piece, one read and resampled ahead; what is not `fit` is not resampled.

    Pieces of which nothing is chosen are not read.
    """
    starts = range(part.start, part.stop, PIECE)
    pieces = [slice(start - part.start, min(start + PIECE, part.stop) - part.start) for start in starts]
    pieces = [here for here in pieces if chosen[here].any()]
    if not pieces:
        return

    def read(here: slice) -> _Piece:
        images, readable = _read(store, slice(here.start + part.start, here.stop + part.start))
        dark, constant = ~np.asarray(images.any(axis=(1, 2, 3))), _constant(images)  # before they are resampled
        if job.size and job.size != store.size:
            small = np.zeros((len(images), job.size, job.size, 3), np.uint8)
            wanted = fit[here] & readable
            small[wanted] = _resampled(images[wanted], job)
            images = small
        return _Piece(here, images, readable, dark, constant)

    with ThreadPoolExecutor(1, "galscan-read") as pool:
        ahead = pool.submit(read, pieces[0])
        for k in range(len(pieces)):
            piece = ahead.result()
            if k + 1 < len(pieces):
                ahead = pool.submit(read, pieces[k + 1])
            yield piece


def _read(store: Store, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Read images; chunks that cannot be decoded come back as zeros, and as not readable.

    A failing disk or network raises: those heal, and a survey must not go to quarantine for them.
    """
    try:
        return store.images(rows), np.ones(rows.stop - rows.start, bool)
    except Exception as error:  # the codecs raise ValueError, RuntimeError, ...: the bytes themselves are wrong
        if _heals(error):
            raise
        images = np.zeros((rows.stop - rows.start, store.size, store.size, 3), np.uint8)
        readable = np.zeros(len(images), bool)
        for start in range(rows.start, rows.stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, rows.stop))
            here = slice(chunk.start - rows.start, chunk.stop - rows.start)
            try:
                images[here], readable[here] = store.images(chunk), True
            except Exception as error:
                if _heals(error):
                    raise
        return images, readable


def _heals(error: Exception) -> bool:
    """Tell whether an error is of a disk or a network; zarrs calls damaged data an `OSError` too, without a number."""
    return isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno is not None)


def _constant(images: np.ndarray) -> np.ndarray:
    """Return which images have one value all over in every band, shape (n,).

    The middle row is looked at first: few real images pass, so that the rest is seldom read.
    """
    first = images[:, :1, :1]
    constant = (images[:, images.shape[1] // 2][:, None] == first).all(axis=(1, 2, 3))
    constant[constant] = (images[constant] == first[constant]).all(axis=(1, 2, 3))
    return constant


def _score(scorer: Scorer, images: np.ndarray, batch: int) -> tuple[Scores, int]:
    """Score images in batches, halving the batch when the device has no memory for it; return the batch that went."""
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
        # Outside the handler: the error holds the frames that hold the memory.
        if batch == 1:
            raise GalscanError("the device has no memory for even 1 image; use another device, or fewer workers")
        _free()
        batch //= 2
    score, spread, answers = (np.concatenate(values) for values in zip(*(one[:3] for one in done), strict=True))
    seen = [one.embedding for one in done if one.embedding is not None]
    return Scores(score, spread, answers, np.concatenate(seen) if seen else None), batch


def _free() -> None:
    """Give back what the device's allocator keeps for later, so that a smaller batch finds room."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
