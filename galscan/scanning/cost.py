"""Memory, disk space and time that a planned scan needs, with checks against what is available."""

from __future__ import annotations

from galscan.core.errors import InputError
from galscan.scanning.plan import PIECE, Plan, StoreRef
from galscan.surveys.resampling import pixels_text

_WORKER_BYTES = 420 * 2**20  # torch, zarr and dask in one worker process before the first image


def worker_memory(plan: Plan) -> int:
    """Estimate the memory of one worker process in bytes: libraries, image pieces, and one batch in the network."""
    pixels = plan.size * plan.size
    stored = max(plan.stored(store) for store in plan.stores) ** 2
    pieces = 3 * PIECE * stored * 3  # one scored, one read ahead, one being decoded
    pieces += 3 * PIECE * pixels * 3 if stored > pixels else 0  # and resampled
    activations = min(plan.batch, PIECE) * pixels * 4 * (3 + 64)  # float32 input, and about 64 channels at a time
    return _WORKER_BYTES + pieces + activations


def output_bytes(plan: Plan) -> int:
    """Return an upper bound of the run folder's bytes: scores and embedding of each object, tables of candidates."""
    row = _row_bytes(plan)
    return plan.objects * (row + 2 * plan.embedding) + min(plan.top, plan.objects) * 2 * (row + 60) + 2**20


def _row_bytes(plan: Plan) -> int:
    # index, id, position, stage, prefilter score, score and its standard deviation, morphology
    return 8 + 20 + 16 + 1 + 12 * len(plan.models) + 4 * len(plan.answers)


def check_fit(plan: Plan, workers: int | None, memory: int, free: int) -> None:
    """Check that a scan fits into memory and disk.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; None on a remote cluster.
    memory, free : int
        Available bytes of memory on this machine, and of the disk of the run folder.

    Raises
    ------
    InputError
        With the number of workers or objects that would fit.
    """
    per_worker = worker_memory(plan)
    if workers is not None and workers * per_worker > memory:
        fitting = memory // per_worker
        raise InputError(
            f"{workers} workers need {size_text(workers * per_worker)} of memory, {size_text(memory)} are available; "
            + (f"use --workers {fitting}" if fitting else f"one needs {size_text(per_worker)}: use another machine")
        )
    # Tables compress to a third of their bytes at best; embeddings are not compressed.
    per_object = _row_bytes(plan) / 3 + 2 * plan.embedding
    needed = int(plan.objects * per_object)
    if free < needed:
        raise InputError(
            f"{plan.out} needs at least {size_text(needed)}, {size_text(free)} are free there; choose another --out, "
            f"or --limit {max(int(free / per_object), 1):,}"
        )


def describe(plan: Plan, workers: str, rate: float | None = None) -> str:
    """Return a description of the plan for ``--dry-run``.

    Parameters
    ----------
    workers : str
        Description of the workers (`galscan.scanning.cluster.describe`).
    rate : float, optional
        Measured objects per second; the time is unknown without it.
    """
    lines = [
        *(("target", f"{model.target}, model {model.path} ({model.model_hash[:12]})") for model in plan.models),
        *(
            ("store", f"{store.name}: {store.count:,} objects, {_pixels(plan, store)}, {store.path}")
            for store in plan.stores
        ),
        (
            "objects",
            f"{plan.objects:,} cutouts of {plan.size} px in {len(plan.partitions):,} partitions; "
            f"{plan.selection.text()}",
        ),
        ("to read", f"{size_text(plan.bytes)} of pixels, uncompressed"),
        ("device", f"{plan.device}, {plan.precision}, batches of {plan.batch}"),
        ("prefilter", "a small network discards objects that are surely no candidates" if plan.cascade else "none"),
        *([("int8", "8-bit networks discard further such objects, if that saves time")] if plan.int8 else []),
        *(
            [("embeddings", f"{plan.embedding} numbers per object, {size_text(2 * plan.embedding * plan.objects)}")]
            if plan.embedding
            else []
        ),
        ("workers", f"{workers}, about {size_text(worker_memory(plan))} of memory each"),
        ("output", f"{plan.out}, at most {size_text(output_bytes(plan))}"),
        ("ranked", f"the top {min(plan.top, plan.objects):,}"),
        ("time", _time(plan, rate)),
        ("fingerprint", plan.fingerprint[:16]),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _pixels(plan: Plan, store: StoreRef) -> str:
    return pixels_text(plan.stored(store), plan.size)


def _time(plan: Plan, rate: float | None) -> str:
    if not rate:
        return "unknown until it runs; rate and remaining time are shown after the first partition"
    seconds = plan.objects / rate
    duration = (
        f"{seconds:,.0f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
        if seconds < 7200
        else (f"{seconds / 3600:,.1f} h")
    )
    return f"about {duration} at {rate:,.0f} objects/s" + (", less what the prefilter saves" if plan.cascade else "")


def size_text(count: float) -> str:
    """Return a number of bytes as text, in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
