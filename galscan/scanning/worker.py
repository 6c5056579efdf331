"""One shard of a store becomes one part of the scores; this is all that runs on a worker.

Nothing is kept between parts but the network. A part is done when its scores file exists; its quarantine file, and
that of its embeddings where they are asked for, were written before, so that a reader who sees the one can count on the
others.

Embeddings have a row for each row of the scores. They are Parquet as everything else of a part, for its checksums and
marks; values of a fixed number of bytes, which are read three times as fast as lists of numbers; and of half precision,
whose three digits are more than two looks at one galaxy have in common, at half the bytes.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from galscan import files
from galscan.errors import GalscanError
from galscan.scanning import quantised
from galscan.scanning.plan import PIECE, ModelRef, Part, Plan, StoreRef
from galscan.scanning.selection import ALL, Selection
from galscan.store.layout import CHUNK, UNUSABLE, Flag, Store, open_store, reason

if TYPE_CHECKING:
    from galscan.classify.scoring import Scorer, Scores

# What it discards is called, what it says of images, and below what it discards.
_Look = tuple[str, Callable[[np.ndarray], np.ndarray], np.ndarray]

NONFINITE_SCORE = "non-finite score"
DAMAGED, GONE = "damaged in the store", "missing in the store"
# Why a whole part is set aside. Whoever scans it again should give its workers more memory, or mend the store.
FATAL, SILENT = "part kills its worker", "part never ends"
# The networks as converted for CPUs.
NETWORK, TINY = "network.xml", "first-look.xml"
# How far an object came. What was discarded has no score, and one in a hundred of it is scored all the same.
STAGES = FULL, AUDITED, DISCARDED, DISCARDED8 = ("full", "audit", "first look", "int8")
AUDIT = 0.01
_REASONS = np.array([reason(flags) for flags in range(256)], object)
EMBEDDING = "embedding"  # the column of embeddings: half precision, little-endian
LARGEST = float(np.finfo(np.float16).max)
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
    first_looks: tuple[str, ...] = ()
    """Files of the first looks, one for each model; none by default."""
    seed: int = 0
    converted: bool = False
    """Whether the run folder holds the networks as OpenVINO likes them (`convert_networks`)."""
    embedding: int = 0
    """Numbers an embedding has; 0 where none is written."""
    int8: tuple[float, ...] = ()
    """Where the networks in 8 bits cut, target by target; nothing where they do not look (`quantised`)."""

    @classmethod
    def of(cls, plan: Plan, first_looks: Sequence[Path] = ()) -> Job:
        """Return the job of a plan."""
        return cls(
            plan.models, plan.stores, str(plan.out), plan.fingerprint, plan.answers,
            plan.device, plan.precision, plan.batch, plan.selection,
            tuple(map(str, first_looks)), plan.seed, (plan.out / NETWORK).is_file(), plan.embedding,
            quantised.cuts(plan.out) if plan.int8 else (),
        )  # fmt: skip

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(model.target for model in self.models)


@dataclass(frozen=True)
class PartReport:
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


def score_part(part: Part, job: Job) -> PartReport:
    """Score or quarantine every object of a part, and write its tables.

    Raises
    ------
    GalscanError
        If the model or the store is not the one that was planned.
    StorageError
        If the tables cannot be written.
    """
    from galscan import device as devices

    started = time.perf_counter()
    scorer = load_scorer(job)
    store, rows = _open(part, job), slice(part.start, part.stop)
    columns = _columns(store, job.stores[part.store].name, rows)
    chosen = job.selection.mask(store, rows)
    flags = store.column("flags", rows)
    reasons = _REASONS[flags]
    score = np.full((part.count, len(job.models)), np.nan, np.float32)
    spread = score.copy()
    answers = np.full((part.count, len(job.answers)), np.nan, np.float32)
    embedding = np.zeros((part.count, job.embedding), np.float16)
    looks: list[_Look] = [(DISCARDED, *_first_look(job))] if job.first_looks else []
    looks += [(DISCARDED8, _look8(job), np.array(job.int8, np.float32))] if job.int8 else []
    first = score.copy()
    audited = np.random.default_rng([job.seed, part.number]).random(part.count) < AUDIT
    stage = np.full(part.count, STAGES.index(FULL), np.int8)
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
        score[rows], spread[rows], answers[rows] = got.score, got.score_std, got.answers
        if got.embedding is not None:
            embedding[rows] = np.clip(got.embedding, -LARGEST, LARGEST)

    for here, images, readable in _pieces(store, part, chosen):  # `here` counts from the start of the part
        usable = chosen[here] & ((flags[here] & np.uint8(UNUSABLE)) == 0)
        for bad, flag, why in (
            (usable & ~readable, Flag.UNREADABLE, DAMAGED),
            # Pixels that are missing are read as zeros; ingest marks what is dark by itself.
            (usable & readable & ~images.any(axis=(1, 2, 3)), Flag.MISSING, GONE),
            (usable & readable & _constant(images), Flag.BLANK, reason(Flag.BLANK)),
        ):
            flags[here][bad] |= np.uint8(flag)
            reasons[here][bad] = why
            usable &= ~bad
        use = np.flatnonzero(usable)
        rest = use  # what no look put below its cut
        for name, look, cut in looks:
            if not len(rest):
                break
            before = time.perf_counter()
            own = look(images[rest])
            busy += time.perf_counter() - before
            if name == DISCARDED:
                first[here][rest] = own
            below = (own < cut).all(1)  # what has no number for a score is for the full network to see
            again = audited[here][rest]
            stage[here][rest[below & again]] = STAGES.index(AUDITED)
            stage[here][rest[below & ~again]] = STAGES.index(name)
            rest = rest[~below]
        use = use[_looked(stage[here][use])]
        if len(use):
            waiting.append((use + here.start, images[use]))
        if sum(len(rows) for rows, _ in waiting) >= full:
            score_waiting()
    if waiting:
        score_waiting()
    finite = (np.isfinite(score) & np.isfinite(spread)).all(1)
    reasons[(reasons == "") & _looked(stage) & ~finite] = NONFINITE_SCORE

    kept = reasons == ""
    marks = {FINGERPRINT: job.fingerprint.encode(), CHOSEN: str(chosen.sum()).encode()}
    _write(
        quarantine_path(job.out, part.number), marks,
        {**columns, "flags": flags, "reason": pa.array(reasons, pa.string())}, chosen & ~kept,
    )  # fmt: skip
    if job.embedding:
        _write(embeddings_path(job.out, part.number), marks, {EMBEDDING: _as_bytes(embedding)}, chosen & kept)
    scored = {**columns, "flags": flags, **_scores(job, score, spread, first, stage, answers)}
    _write(scores_path(job.out, part.number), marks, scored, chosen & kept)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    counts = int((chosen & kept).sum()), int((chosen & ~kept).sum())
    return PartReport(part.number, *counts, time.perf_counter() - started, busy, worker)


def set_aside(part: Part, job: Job, why: str) -> PartReport:
    """Quarantine a part whole, without a look at its pictures: whoever looked did not survive it."""
    started = time.perf_counter()
    store, rows = _open(part, job), slice(part.start, part.stop)
    chosen = job.selection.mask(store, rows)
    columns = _columns(store, job.stores[part.store].name, rows) | {"flags": store.column("flags", rows)}
    marks = {FINGERPRINT: job.fingerprint.encode(), CHOSEN: str(chosen.sum()).encode()}
    reasons = pa.array([why] * part.count, pa.string())
    _write(quarantine_path(job.out, part.number), marks, {**columns, "reason": reasons}, chosen)
    if job.embedding:
        nothing = _as_bytes(np.empty((0, job.embedding), np.float16))
        _write(embeddings_path(job.out, part.number), marks, {EMBEDDING: nothing}, np.zeros(0, bool))
    empty = np.full((part.count, max(len(job.models), len(job.answers))), np.nan, np.float32)
    scored = {**columns, **_scores(job, empty, empty, empty, np.zeros(part.count, np.int8), empty)}
    _write(scores_path(job.out, part.number), marks, scored, np.zeros(part.count, bool))
    return PartReport(part.number, 0, int(chosen.sum()), time.perf_counter() - started, 0.0, socket.gethostname())


class Sample(NamedTuple):
    """What is said of some pictures: scores of shape (n, targets), those of the full networks where a look is not."""

    first: np.ndarray
    int8: np.ndarray
    full: np.ndarray
    seconds: tuple[float, float] = (0.0, 0.0)
    """Of the networks in 8 bits, and of the full ones."""


def sample_part(store: int, rows: slice, job: Job) -> Sample:
    """Return what the looks, if there are any, and the full networks say of the usable ones of some pictures.

    Of what may have taught a look nothing is returned: it would flatter it.
    """
    images = usable_pictures(store, rows, job, False if job.first_looks or job.int8 else None)
    if not len(images):
        nothing = np.empty((0, len(job.models)), np.float32)
        return Sample(nothing, nothing, nothing)
    scorer, look8 = load_scorer(job), _look8(job) if job.int8 else None
    before = time.perf_counter()
    full = _score(scorer, images, job.batch)[0].score
    between = time.perf_counter()
    own8 = look8(images) if look8 else full
    seconds = time.perf_counter() - between, between - before
    own = _first_look(job)[0](images) if job.first_looks else full
    finite = (np.isfinite(full) & np.isfinite(own8) & np.isfinite(own)).all(1)
    return Sample(own[finite], own8[finite], full[finite], seconds)


def usable_pictures(store: int, rows: slice, job: Job, teaching: bool | None) -> np.ndarray:
    """Return the usable ones of some pictures: of those that may teach a look, of those that may not, or of all."""
    from galscan.classify.cascade import teaches

    opened = open_store(job.stores[store].path)
    images, readable = _read(opened, rows)
    usable = readable & ((opened.column("flags", rows) & np.uint8(UNUSABLE)) == 0) & ~_constant(images)
    usable &= job.selection.mask(opened, rows)
    if teaching is not None:
        usable &= teaches(opened.column("id", rows)) == teaching
    return images[usable]


def _scores(
    job: Job, score: np.ndarray, spread: np.ndarray, first: np.ndarray, stage: np.ndarray, answers: np.ndarray
) -> dict[str, Any]:
    """Return the columns that tell what was seen: arrays by target or answer, a row an object."""
    told = {
        of_target(name, target, job.targets): values[:, k]
        for k, target in enumerate(job.targets)
        for name, values in (("score", score), ("score_std", spread), ("first_look", first))
    }
    return told | {"stage": _words(stage)} | {name: answers[:, k] for k, name in enumerate(job.answers)}


def _words(stage: np.ndarray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(stage, list(STAGES))


def _looked(stage: np.ndarray) -> np.ndarray:
    """Return what the full networks look at."""
    return ~np.isin(stage, [STAGES.index(DISCARDED), STAGES.index(DISCARDED8)])


def _first_look(job: Job) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """Return the first looks of a job as one, and their cuts, loaded once a process."""
    with _loading:
        return _loaded_first_look(job.first_looks, job.out if job.converted else "", job.device, job.precision)


@lru_cache(maxsize=1)
def _loaded_first_look(
    paths: tuple[str, ...], converted: str, device: str, precision: str
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    from galscan.classify.cascade import load_first_look, load_looker

    looks = [load_first_look(Path(path)) for path in paths]
    seen = load_looker(looks, device, precision, Path(converted, TINY) if converted else None)
    return seen, np.array([look.cut for look in looks], np.float32)


def _open(part: Part, job: Job) -> Store:
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
    from galscan.classify import bundle, scoring

    bundles = [bundle.open_bundle(model.path) for model in models]
    for found, model in zip(bundles, models, strict=True):
        if found.model_hash != model.model_hash:
            raise GalscanError(
                f"the model {model.path} changed while it was used; run the same command again to use the new one"
            )
    return scoring.load_scorer(bundles, device, precision, Path(converted) if converted else None, embeddings)


def _pieces(store: Store, part: Part, chosen: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows counted from the part's start, images, which of them could be read), one piece read ahead.

    Pieces of which nothing is chosen are not read.
    """
    starts = range(part.start, part.stop, PIECE)
    pieces = [slice(start, min(start + PIECE, part.stop)) for start in starts]
    pieces = [piece for piece in pieces if chosen[piece.start - part.start : piece.stop - part.start].any()]
    if not pieces:
        return
    with ThreadPoolExecutor(1, "galscan-read") as pool:
        ahead = pool.submit(_read, store, pieces[0])
        for k, piece in enumerate(pieces):
            images, readable = ahead.result()
            if k + 1 < len(pieces):
                ahead = pool.submit(_read, store, pieces[k + 1])
            yield slice(piece.start - part.start, piece.stop - part.start), images, readable


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
    from galscan import device
    from galscan.classify.scoring import Scores

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


def _columns(store: Store, name: str, rows: slice) -> dict[str, Any]:
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
    }


def _as_bytes(embedding: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Return embeddings (n, d) as values of 2 d bytes."""
    count, numbers = embedding.shape
    little = np.ascontiguousarray(embedding, "<f2")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * numbers), count, [None, pa.py_buffer(little)])


def _write(path: Path, marks: dict[bytes, bytes], columns: dict[str, Any], mask: np.ndarray) -> None:
    """Write the masked rows; the same rows give the same bytes."""
    table = pa.table(columns).filter(pa.array(mask)).replace_schema_metadata(marks)
    # Embeddings are like noise: to compress them, or to look for repeated or extreme ones, takes time for nothing.
    plain = EMBEDDING in columns
    with files.atomic_path(path) as temporary:
        pq.write_table(
            table, temporary, compression="none" if plain else "zstd", use_dictionary=not plain,
            write_statistics=not plain, write_page_checksum=True,
        )  # fmt: skip
