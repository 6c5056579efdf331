"""Preparation of a scan: memory, disk and time that it needs, network conversion, thresholds of prefilters."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from galscan.core import progress
from galscan.core.errors import GalscanError, InputError
from galscan.core.old_names import existing
from galscan.models.model import PREFILTER_FILE
from galscan.scanning.engine import load_on_workers, window
from galscan.scanning.partitions import NETWORK, PREFILTER_NETWORK, Job
from galscan.scanning.plan import PIECE, Plan, StoreRef
from galscan.scanning.worker import Sample, import_libraries, sample_partition
from galscan.store.layout import CHUNK
from galscan.surveys.resampling import pixels_text

if TYPE_CHECKING:
    from distributed import Client

SAMPLE_FRACTION, SAMPLE = 0.02, (4_000, 10_000)  # of the survey; minimum and maximum number of objects
_WORKER_BYTES = 420 * 2**20  # torch, zarr and dask in one worker process before the first image
CONVERTED = 20_000  # objects, above which converting the networks saves more time than it takes


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


def convert_networks(plan: Plan, out: Path) -> None:
    """Convert the networks to OpenVINO files in `out`, if it is installed and the scan is large enough.

    Raises
    ------
    InputError
        If a model is incomplete.
    """
    if plan.objects < CONVERTED or (out / NETWORK).is_file():
        return
    # These import torch.
    from galscan.models.compiled import convert, has_openvino
    from galscan.models.ensemble import load_ensemble
    from galscan.models.model import open_model
    from galscan.models.prefilter import TinyNets, load_prefilter

    if not has_openvino():
        return
    models = [open_model(model.path) for model in plan.models]
    files, networks = [model.prefilter for model in models], load_ensemble(models, plan.embedding > 0)
    try:
        if all(files):
            filters = [load_prefilter(path) for path in files if path is not None]
            convert(TinyNets([prefilter.network for prefilter in filters]), plan.size, out / PREFILTER_NETWORK)
        convert(networks, plan.size, out / NETWORK)
    except Exception as error:  # OpenVINO raises errors of many classes if its installation does not suit the machine
        print(f"OpenVINO cannot be used ({_first_line(error)}); PyTorch is used instead", file=sys.stderr)


def convert_on_worker(plan: Plan, client: Client) -> None:
    """Convert the networks on a worker, as `convert_networks`, so that this process does not import torch.

    The workers must be processes of this machine. The others import their libraries at the same time.

    Raises
    ------
    InputError
        If a model is incomplete.
    GalscanError
        If the worker was killed.
    """
    from distributed import KilledWorker

    if plan.objects < CONVERTED:
        return
    conversion = client.submit(convert_networks, plan, plan.out, pure=False)
    client.run(import_libraries)
    try:
        conversion.result()
    except KilledWorker:
        raise GalscanError(
            "a worker was killed while it converted the networks, most likely because memory ran out; use fewer "
            "--workers, or another machine"
        ) from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]:.200}"


def prefilters(plan: Plan, client: Client) -> list[Path]:
    """Set the thresholds of the prefilters for this survey, from one random sample of it.

    Returns the files of the prefilters, which are reused if an earlier call wrote them. An object passes if any
    prefilter lets it pass; the pass fraction of all together is written into each file.

    Raises
    ------
    InputError
        If the sample is too small.
    GalscanError
        If it cannot be read.
    """
    from galscan.models.prefilter import load_prefilter, save_prefilter, set_threshold

    paths = [existing(plan.folder(target) / PREFILTER_FILE) for target in plan.targets]
    trained = [existing(Path(model.path) / PREFILTER_FILE) for model in plan.models]
    if all(path.is_file() for path in paths):
        return paths
    random = np.random.default_rng(plan.seed)
    wanted = int(np.clip(plan.objects * SAMPLE_FRACTION, *SAMPLE))
    chunks = [
        (partition.store, slice(start, min(start + CHUNK, partition.stop)))
        for partition in plan.partitions for start in range(partition.start, partition.stop, CHUNK)
    ] if plan.objects < 100 * SAMPLE[1] else _random_chunks(plan, random, 4 * wanted // CHUNK)  # fmt: skip
    job = Job.of(plan, trained)
    load_on_workers(client, job)
    samples: list[Sample] = []
    read = sampled = 0
    order = random.permutation(len(chunks))
    with progress.track("prefilter: sample", wanted, "objects") as advance:
        for start in range(0, len(order), window(client)):
            batch = [chunks[k] for k in order[start : start + window(client)]]
            for sample in client.gather([client.submit(sample_partition, *chunk, job, pure=False) for chunk in batch]):
                samples.append(sample)
                advance(min(len(sample.full), max(wanted - sampled, 0)))  # the last chunks exceed the wanted number
                sampled += len(sample.full)
            read += sum(rows.stop - rows.start for _, rows in batch)
            if sampled >= wanted:
                break
    scores, full = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
    # Half of the objects read are reserved for training prefilters (`may_train_prefilter`), so twice the sampled
    # fraction estimates the fraction that is selected and usable.
    fraction = plan.top / max(plan.objects * 2 * sampled / max(read, 1), 1)
    filters = [
        set_threshold(load_prefilter(path).network, scores[:, k], full[:, k].astype(np.float64), fraction)
        for k, path in enumerate(trained)
    ]
    pass_fraction = float((scores >= [prefilter.cut for prefilter in filters]).any(1).mean())
    for prefilter, path in zip(filters, paths, strict=True):
        save_prefilter(replace(prefilter, passes=pass_fraction), path)
    return paths


def _random_chunks(plan: Plan, random: np.random.Generator, count: int) -> list[tuple[int, slice]]:
    """Return random chunks of a large survey, without a list of all of them."""
    sizes = np.array([partition.count for partition in plan.partitions])
    chunks = []
    for k in random.choice(len(sizes), count, p=sizes / sizes.sum()):
        partition = plan.partitions[k]
        start = partition.start + CHUNK * int(random.integers(-(-partition.count // CHUNK)))
        chunks.append((partition.store, slice(start, min(start + CHUNK, partition.stop))))
    return chunks


def measured_rate(plan: Plan, seconds: float = 3.0) -> float:
    """Score the first objects on one core of this machine for some seconds; return objects per second with reading."""
    from galscan.core.device import one_thread

    with one_thread(), TemporaryDirectory() as folder:
        convert_networks(plan, Path(folder))
        job = replace(Job.of(plan), out=folder, converted=Path(folder, NETWORK).is_file())
        first = plan.partitions[0]
        sample_partition(first.store, slice(first.start, min(first.start + 32, first.stop)), job)  # loads the network
        started, done = time.perf_counter(), 0
        for start in range(first.start, first.stop, CHUNK):
            done += len(sample_partition(first.store, slice(start, min(start + CHUNK, first.stop)), job).full)
            if time.perf_counter() - started > seconds:
                break
        return done / (time.perf_counter() - started)
