"""One shard of a store becomes one part of the scores; this is all that runs on a worker.

Nothing is kept between parts but the network. A part is done when its scores file exists; its quarantine file
was written before, so that a reader who sees the one can count on the other.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from galscan import files
from galscan.errors import GalscanError
from galscan.scanning.plan import PIECE, Part, Plan, StoreRef
from galscan.store.layout import CHUNK, UNUSABLE, Flag, Store, open_store, reason

if TYPE_CHECKING:
    from galscan.classify.bundle import Scorer, Scores

NONFINITE_SCORE = "non-finite score"
DAMAGED = "damaged in the store"
FINGERPRINT = b"galscan.fingerprint"  # key in the Parquet schema's metadata


@dataclass(frozen=True)
class Job:
    """What all parts of a scan have in common, small enough to travel with each."""

    model: str
    model_hash: str
    stores: tuple[StoreRef, ...]
    out: str
    fingerprint: str
    answers: tuple[str, ...]
    device: str
    precision: str
    batch: int

    @classmethod
    def of(cls, plan: Plan) -> Job:
        """Return the job of a plan."""
        return cls(
            plan.model, plan.model_hash, plan.stores, str(plan.out), plan.fingerprint, plan.answers,
            plan.device, plan.precision, plan.batch,
        )  # fmt: skip


@dataclass(frozen=True)
class PartReport:
    """What came of one part; goes into the ledger."""

    part: int
    scored: int
    quarantined: int
    seconds: float
    worker: str


def scores_path(out: Path | str, part: int) -> Path:
    """Return where the scores of a part are."""
    return Path(out, "scores", f"part-{part:05d}.parquet")


def quarantine_path(out: Path | str, part: int) -> Path:
    """Return where the quarantined objects of a part are."""
    return Path(out, "quarantine", f"part-{part:05d}.parquet")


def score_part(part: Part, job: Job) -> PartReport:
    """Score or quarantine every object of a part, and write both tables.

    Raises
    ------
    GalscanError
        If the model or the store is not the one that was planned.
    StorageError
        If the tables cannot be written.
    """
    started = time.perf_counter()
    scorer = load_scorer(job)
    ref = job.stores[part.store]
    store = open_store(ref.path)
    if store.content_hash != ref.content_hash:
        raise GalscanError(f"{ref.path} changed while it was scanned; run the same command again to scan it as it is")

    rows = slice(part.start, part.stop)
    flags = store.column("flags", rows)
    reasons = np.array([reason(int(flag)) for flag in flags], dtype=object)
    score = np.full(part.count, np.nan, np.float32)
    spread = score.copy()
    answers = np.full((part.count, len(job.answers)), np.nan, np.float32)
    batch = job.batch
    for here, images, readable in _pieces(store, part):  # `here` counts from the start of the part
        usable = (flags[here] & np.uint8(UNUSABLE)) == 0
        for bad, flag, why in (
            (usable & ~readable, Flag.UNREADABLE, DAMAGED),
            (usable & readable & _constant(images), Flag.BLANK, reason(Flag.BLANK)),
        ):
            flags[here][bad] |= np.uint8(flag)
            reasons[here][bad] = why
            usable &= ~bad
        use = np.flatnonzero(usable)
        if len(use):
            got, batch = _score(scorer, images[use], batch)
            score[here][use], spread[here][use], answers[here][use] = got.score, got.score_std, got.answers
    reasons[(reasons == "") & ~(np.isfinite(score) & np.isfinite(spread))] = NONFINITE_SCORE

    kept = reasons == ""
    columns = _columns(store, ref.name, rows)
    _write(
        quarantine_path(job.out, part.number), job.fingerprint,
        {**columns, "flags": flags, "reason": pa.array(reasons, pa.string())}, ~kept,
    )  # fmt: skip
    morphology = {name: answers[:, k] for k, name in enumerate(job.answers)}
    scored = {**columns, "flags": flags, "score": score, "score_std": spread, **morphology}
    _write(scores_path(job.out, part.number), job.fingerprint, scored, kept)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return PartReport(part.number, int(kept.sum()), int((~kept).sum()), time.perf_counter() - started, worker)


_loading = threading.Lock()


def load_scorer(job: Job) -> Scorer:
    """Return the network of a job, loaded once a process however many threads ask.

    Raises
    ------
    GalscanError
        If the model on disk is not the planned one.
    """
    with _loading:
        return _scorer(job.model, job.model_hash, job.device, job.precision)


def get_ready(job: Job) -> None:
    """Load the network before the first part, so that its time is not taken for scoring."""
    load_scorer(job)


@lru_cache(maxsize=1)
def _scorer(model: str, model_hash: str, device: str, precision: str) -> Scorer:
    from galscan.classify.bundle import open_bundle

    bundle = open_bundle(model)
    if bundle.model_hash != model_hash:
        raise GalscanError(
            f"the model {model} changed while it was used; run the same command again to use the new one"
        )
    return bundle.scorer(device, precision)


def _pieces(store: Store, part: Part) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows counted from the part's start, images, which of them could be read), one piece read ahead."""
    starts = range(part.start, part.stop, PIECE)
    pieces = [slice(start, min(start + PIECE, part.stop)) for start in starts]
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
    except OSError:
        raise
    except Exception:  # the codecs raise ValueError, RuntimeError, ...: the bytes themselves are wrong
        images = np.zeros((rows.stop - rows.start, store.size, store.size, 3), np.uint8)
        readable = np.zeros(len(images), bool)
        for start in range(rows.start, rows.stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, rows.stop))
            here = slice(chunk.start - rows.start, chunk.stop - rows.start)
            try:
                images[here], readable[here] = store.images(chunk), True
            except OSError:
                raise
            except Exception:
                continue
        return images, readable


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
    from galscan.classify.bundle import Scores

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
    return Scores(*(np.concatenate(values) for values in zip(*done, strict=True))), batch


def _free() -> None:
    """Give back what the device's allocator keeps for later, so that a smaller batch finds room."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _columns(store: Store, name: str, rows: slice) -> dict[str, Any]:
    """Return the columns both tables begin with."""
    ids = store.column("id", rows)
    count = rows.stop - rows.start
    return {
        "store": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [name]),
        "index": np.arange(rows.start, rows.stop),
        "id": ids if np.issubdtype(ids.dtype, np.integer) else pa.array([str(i) for i in ids], pa.string()),
        "ra": store.column("ra", rows),
        "dec": store.column("dec", rows),
    }


def _write(path: Path, fingerprint: str, columns: dict[str, Any], mask: np.ndarray) -> None:
    """Write the masked rows; the same rows give the same bytes."""
    table = pa.table(columns).filter(pa.array(mask)).replace_schema_metadata({FINGERPRINT: fingerprint.encode()})
    with files.atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
