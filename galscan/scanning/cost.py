"""What a planned scan needs and takes: memory, disk, time; refused where it cannot fit, and told to people."""

from __future__ import annotations

from galscan.core.errors import InputError
from galscan.scanning.plan import PIECE, Plan, StoreRef
from galscan.surveys.resampling import pixels_text

_WORKER_BYTES = 420 * 2**20  # torch, zarr and dask in one worker process before the first image


def worker_memory(plan: Plan) -> int:
    """Estimate the bytes one worker process needs: libraries, the pieces in flight and one batch in the network."""
    pixels = plan.size * plan.size
    stored = max(plan.stored(store) for store in plan.stores) ** 2
    pieces = 3 * PIECE * stored * 3  # one scored, one read ahead, one being decoded
    pieces += 3 * PIECE * pixels * 3 if stored > pixels else 0  # and resampled
    activations = min(plan.batch, PIECE) * pixels * 4 * (3 + 64)  # float32 input, and about 64 channels alive at once
    return _WORKER_BYTES + pieces + activations


def output_bytes(plan: Plan) -> int:
    """Bound the bytes the run folder will take: a row of scores an object, its embedding, the tables of candidates."""
    row = _row_bytes(plan)
    return plan.objects * (row + 2 * plan.embedding) + min(plan.top, plan.objects) * 2 * (row + 60) + 2**20


def _row_bytes(plan: Plan) -> int:
    # index, id, position, first look's stage, its score, score and spread, morphology
    return 8 + 20 + 16 + 1 + 12 * len(plan.models) + 4 * len(plan.answers)


def check_fit(plan: Plan, workers: int | None, memory: int, free: int) -> None:
    """Refuse a scan that cannot fit.

    Parameters
    ----------
    workers : int, optional
        Processes on this machine; None where others do the work.
    memory, free : int
        Bytes of memory to be had on this machine, and of disk where the run will be.

    Raises
    ------
    InputError
        With the number that would fit.
    """
    each = worker_memory(plan)
    if workers is not None and workers * each > memory:
        room = memory // each
        raise InputError(
            f"{workers} workers need {size_text(workers * each)} of memory, {size_text(memory)} are to be had; "
            + (f"use --workers {room}" if room else f"one alone needs {size_text(each)}: use another machine")
        )
    # Tables are compressed, a third of their bytes is what they take at least; embeddings are not.
    one = _row_bytes(plan) / 3 + 2 * plan.embedding
    least = int(plan.objects * one)
    if free < least:
        raise InputError(
            f"{plan.out} needs {size_text(least)} or more, {size_text(free)} are free there; choose another --out, or "
            f"--limit {max(int(free / one), 1):,}"
        )


def describe(plan: Plan, workers: str, rate: float | None = None) -> str:
    """Return the plan in words, for ``--dry-run``; `workers` says who will do it, `rate` how many objects a second."""
    lines = [
        *(("target", f"{model.target}, model {model.path} ({model.model_hash[:12]})") for model in plan.models),
        *(
            ("store", f"{store.name}: {store.count:,} objects, {_pixels(plan, store)}, {store.path}")
            for store in plan.stores
        ),
        (
            "objects",
            f"{plan.objects:,} cutouts of {plan.size} px in {len(plan.parts):,} parts; {plan.selection.text()}",
        ),
        ("to read", f"{size_text(plan.bytes)} of pixels, uncompressed"),
        ("device", f"{plan.device}, {plan.precision}, batches of {plan.batch}"),
        ("first look", "a tiny network discards what surely is no candidate" if plan.cascade else "none"),
        *([("int8", "networks in 8 bits discard what surely is none, if they pay")] if plan.int8 else []),
        *(
            [("embeddings", f"{plan.embedding} numbers an object, {size_text(2 * plan.embedding * plan.objects)}")]
            if plan.embedding
            else []
        ),
        ("workers", f"{workers}, about {size_text(worker_memory(plan))} of memory each"),
        ("output", f"{plan.out}, at most {size_text(output_bytes(plan))}"),
        ("ranked", f"the best {min(plan.top, plan.objects):,}"),
        ("time", _time(plan, rate)),
        ("fingerprint", plan.fingerprint[:16]),
    ]
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _pixels(plan: Plan, store: StoreRef) -> str:
    return pixels_text(plan.stored(store), plan.size)


def _time(plan: Plan, rate: float | None) -> str:
    if not rate:
        return "unknown until it runs; the rate and the time left are shown from the first part on"
    seconds = plan.objects / rate
    words = (
        f"{seconds:,.0f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
        if seconds < 7200
        else (f"{seconds / 3600:,.1f} h")
    )
    return f"about {words} at {rate:,.0f} objects/s" + (", less what the first look saves" if plan.cascade else "")


def size_text(count: float) -> str:
    """Return bytes in words, in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
