"""The scan itself: a bounded window of parts in flight, and the merge of what they left on disk.

There is never one graph of all parts: the scheduler knows a few parts a worker, whatever the survey's size.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future as Reading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan import files, progress
from galscan.candidates.purity import ScoreHistogram
from galscan.classify.bundle import FIRST_LOOK
from galscan.errors import GalscanError, Interrupted
from galscan.scanning.plan import Part, Plan
from galscan.scanning.worker import (
    AUDIT,
    AUDITED,
    CHOSEN,
    FATAL,
    FINGERPRINT,
    FULL,
    NETWORK,
    SILENT,
    TINY,
    Job,
    PartReport,
    get_ready,
    quarantine_path,
    sample_part,
    score_part,
    scores_path,
    set_aside,
)
from galscan.store.layout import CHUNK

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
SAMPLE_SHARE, SAMPLE = 0.02, (4_000, 20_000)  # of the survey, and at least and at most so many objects
CONVERTED = 20_000  # objects, from which on to convert the networks takes less time than it saves
TICK = 1.0  # seconds between looks at the clock
# Workers are woken when no part has ended for so many seconds, for 20 times the longest, and for so many an object.
PATIENCE, SLOWEST = 300.0, 0.1
STRIKES = 3
ORDER = ["score", "store", "id", "index"]  # best first; the rest only so that ties have one order


@dataclass(frozen=True)
class Progress:
    """What one process did: objects scored and quarantined, and the seconds from ready workers to the last part."""

    scored: int = 0
    quarantined: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Merged:
    """A whole scan, merged: the best rows, the histogram of all scores, and why objects were set aside."""

    top: pd.DataFrame
    histogram: ScoreHistogram
    beyond: ScoreHistogram
    """Of what the first look discarded alone, as the audited have it."""
    scored: int
    quarantined: int
    reasons: dict[str, int]
    discarded: int
    """By the first look, those that were audited included."""
    audited: int
    lost: int
    """Of the audited, those that are among the best."""


def pending(plan: Plan) -> list[Part]:
    """Return the parts still to do; whatever a killed process left half-written is removed."""
    for folder in ("scores", "quarantine"):
        for leftover in Path(plan.out, folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return [part for part in plan.parts if not _done(plan, part)]


def _done(plan: Plan, part: Part) -> bool:
    """Tell whether both tables of a part are whole, of this plan, and hold every chosen object once."""
    found = [_rows(path(plan.out, part.number), plan.fingerprint) for path in (scores_path, quarantine_path)]
    counts = [rows for rows, _ in filter(None, found)]
    return len(counts) == 2 and all(chosen == sum(counts) for _, chosen in filter(None, found))


def _rows(path: Path, fingerprint: str) -> tuple[int, int] | None:
    """Return the rows of a table and how many were chosen, or None if it is missing, damaged or of another run."""
    try:
        footer = pq.read_metadata(path)
        marks = footer.metadata or {}
        return (footer.num_rows, int(marks[CHOSEN])) if marks.get(FINGERPRINT) == fingerprint.encode() else None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def convert_networks(plan: Plan, out: Path) -> None:
    """Convert the networks into `out`, where that pays its seconds: on a CPU with OpenVINO.

    Raises
    ------
    InputError
        If the model is not whole.
    """
    from galscan.classify.bundle import open_bundle
    from galscan.classify.cascade import load_first_look
    from galscan.classify.compiled import convert, has_openvino

    if plan.objects < CONVERTED or (out / NETWORK).is_file() or not has_openvino():
        return
    bundle = open_bundle(plan.model)
    if (look := bundle.first_look) is not None:
        convert(load_first_look(look).network, plan.size, out / TINY)
    convert(bundle.ensemble(), plan.size, out / NETWORK)


def first_look(plan: Plan, client: Client) -> Path:
    """Cut the model's first look for this survey, by a random sample of it; return the file, an earlier call's again.

    Raises
    ------
    InputError
        If the sample is too small.
    GalscanError
        If it cannot be read.
    """
    from galscan.classify.cascade import load_first_look, save_first_look, set_cut

    path, taught = plan.out / FIRST_LOOK, Path(plan.model) / FIRST_LOOK
    if path.is_file():
        return path
    random = np.random.default_rng(plan.seed)
    wanted = int(np.clip(plan.objects * SAMPLE_SHARE, *SAMPLE))
    chunks = [
        (part.store, slice(start, min(start + CHUNK, part.stop)))
        for part in plan.parts for start in range(part.start, part.stop, CHUNK)
    ] if plan.objects < 100 * SAMPLE[1] else _drawn_chunks(plan, random, 4 * wanted // CHUNK)  # fmt: skip
    job = Job.of(plan, taught)
    _make_ready(client, job)
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    read = got = 0
    order = random.permutation(len(chunks))
    with progress.track("first look: sample", wanted, "objects") as advance:
        for start in range(0, len(order), _window(client)):
            some = [chunks[k] for k in order[start : start + _window(client)]]
            for both in client.gather([client.submit(sample_part, *chunk, job, pure=False) for chunk in some]):
                scores.append(both)
                got += len(both[0])
                advance(len(both[0]))
            read += sum(rows.stop - rows.start for _, rows in some)
            if got >= wanted:
                break
    own, full = (np.concatenate(values) for values in zip(*scores, strict=True))
    # Half of what is read may set the cut (`cascade.teaches`); of the rest, the share that is chosen and can be scored.
    share = plan.top / max(plan.objects * 2 * got / max(read, 1), 1)
    look = set_cut(load_first_look(taught).network, own, full.astype(np.float64), share)
    save_first_look(look, path)
    return path


def _drawn_chunks(plan: Plan, random: np.random.Generator, count: int) -> list[tuple[int, slice]]:
    """Return random chunks of a survey so large that not even a list of all is wanted."""
    sizes = np.array([part.count for part in plan.parts])
    drawn = []
    for k in random.choice(len(sizes), count, p=sizes / sizes.sum()):
        part = plan.parts[k]
        start = part.start + CHUNK * int(random.integers(-(-part.count // CHUNK)))
        drawn.append((part.store, slice(start, min(start + CHUNK, part.stop))))
    return drawn


def measured_rate(plan: Plan, seconds: float = 3.0) -> float:
    """Score the first objects here, on one core, for some seconds; return how many a second, reading included."""
    from galscan.device import one_thread

    with one_thread(), TemporaryDirectory() as folder:
        convert_networks(plan, Path(folder))
        job, part = replace(Job.of(plan), out=folder, converted=Path(folder, NETWORK).is_file()), plan.parts[0]
        sample_part(part.store, slice(part.start, min(part.start + 32, part.stop)), job)  # loads the network
        started, done = time.perf_counter(), 0
        for start in range(part.start, part.stop, CHUNK):
            done += len(sample_part(part.store, slice(start, min(start + CHUNK, part.stop)), job)[1])
            if time.perf_counter() - started > seconds:
                break
        return done / (time.perf_counter() - started)


def run_scan(plan: Plan, client: Client, parts: Iterable[Part], look: Path | None = None) -> Progress:
    """Score `parts` on the workers of `client`; a part that is done stays done whatever happens later.

    A part that kills every worker that tries it is quarantined whole. Workers that are silent for too long are
    started anew.

    Raises
    ------
    GalscanError
        If a part cannot be done: a broken store, a lost cluster.
    StorageError
        If the run folder cannot be written.
    """
    parts = list(parts)
    job = Job.of(plan, look)
    waiting = deque(parts)
    suspects: list[Part] = []
    tried: set[int] = set()
    flying: dict[str, tuple[Part, Future]] = {}
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    strikes: Counter[int] = Counter()
    scored = quarantined = 0
    longest, last = 0.0, time.perf_counter()

    def launch(room: int) -> None:
        for part in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
            future = client.submit(score_part, part, job, pure=False)
            flying[str(future.key)] = part, future
            future.add_done_callback(finished.put)

    _make_ready(client, job)
    started = time.perf_counter()
    todo = sum(part.count for part in parts)
    ledger_path = plan.out / "ledger.jsonl"
    tracked = progress.track("scan", plan.objects, "objects", done=plan.objects - todo)
    with tracked as advance, open(ledger_path, "a", encoding="utf-8") as ledger:
        try:
            launch(_window(client))
            while flying or suspects:
                if not flying:  # a worker that dies takes what it was given with it: who is to blame shows alone
                    waiting.append(suspects.pop())
                    tried.add(waiting[0].number)
                    launch(1)
                try:
                    future = finished.get(timeout=TICK)
                except queue.Empty:
                    slowest = SLOWEST * max(part.count for part, _ in flying.values())
                    if time.perf_counter() - last > max(PATIENCE, slowest, 20 * longest):
                        _wake(client, flying, strikes)
                        last = time.perf_counter()
                    continue
                part, _ = flying.pop(str(future.key))
                if _is_fatal(future) and part.number not in tried:
                    suspects.append(part)
                    launch(_window(client) - len(flying))
                    continue
                report = _report(plan, part, future, job, strikes[part.number])
                scored += report.scored
                quarantined += report.quarantined
                longest, last = max(longest, report.seconds), time.perf_counter()
                with files.storage_errors(ledger_path):
                    ledger.write(json.dumps(asdict(report)) + "\n")
                    ledger.flush()
                advance(part.count)
                launch(_window(client) - len(flying))
        except BaseException:
            client.cancel([future for _, future in flying.values()], force=True)
            raise
    return Progress(scored, quarantined, time.perf_counter() - started)


def _make_ready(client: Client, job: Job) -> None:
    """Load the network on every worker; what is wrong with model or device is said once, before any part."""
    for answer in client.run(get_ready, job, on_error="return").values():
        if isinstance(answer, GalscanError):
            raise answer
        # Anything else (a worker that dies of it) will meet a part again, and be reported with it.


def _window(client: Client) -> int:
    """Return how many parts may be in flight: enough that no worker waits, few enough for any scheduler."""
    return 2 * sum(client.nthreads().values()) + 2


def _wake(client: Client, flying: Mapping[str, tuple[Part, Future]], strikes: Counter[int]) -> None:
    """Start the workers anew that have been silent for too long; a part at which that happens thrice is given up.

    The scheduler is asked, and no worker: one that is stuck may not answer. Of what a worker was given it is at the
    part that was launched first.
    """
    order = list(flying)
    stuck = []
    for worker, keys in client.processing().items():
        at = min((order.index(str(key)) for key in keys if str(key) in flying), default=None)
        if at is None:
            continue
        part, future = flying[order[at]]
        stuck.append(worker)
        strikes[part.number] += 1
        if strikes[part.number] == STRIKES:
            future.cancel(force=True)
    if stuck:
        client.restart_workers(stuck, timeout=60, raise_for_error=False)


def _is_fatal(future: Future) -> bool:
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _report(plan: Plan, part: Part, future: Future, job: Job, strikes: int) -> PartReport:
    """Return what a part reported, set it aside if it is fatal, or raise its failure as one line that names it."""
    kept = "the finished parts are kept, run the same command again to go on"
    if future.status == "finished":
        return future.result()  # type: ignore[no-any-return]
    if strikes >= STRIKES:
        return set_aside(part, job, SILENT)
    if future.status != "error":
        raise GalscanError(f"the cluster was lost at {plan.where(part)}; {kept}")
    if _is_fatal(future):
        return set_aside(part, job, FATAL)
    error = future.exception()
    if isinstance(error, GalscanError):
        raise type(error)(f"{error} ({plan.where(part)}; {kept})") from error
    message = (str(error).strip().splitlines() or ["no message"])[0]
    raise GalscanError(f"{plan.where(part)} failed with {type(error).__name__}: {message}; {kept}") from error


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C and a polite kill into `Interrupted`, after everything inside has been closed."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the finished parts are kept, run the same command again to go on") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def merge(plan: Plan) -> Merged:
    """Merge all parts: bounded memory, and the same result in whatever order they were done.

    Raises
    ------
    GalscanError
        If a part is missing or damaged, or an object is not in exactly one table.
    """
    histogram, beyond = ScoreHistogram.empty(), ScoreHistogram.empty()
    reasons: Counter[str] = Counter()
    best: list[pd.DataFrame] = []
    scored = set_apart = held = discarded = 0
    audited: list[np.ndarray] = []
    floor = -np.inf  # the score of the last of the best so far
    with progress.track("merge", len(plan.parts), "parts") as advance:
        for path, why, score, stage in _in_order(lambda part: _read_part(plan, part), plan.parts):
            reasons.update(why)
            set_apart += len(why)
            histogram.add(score[stage == FULL])
            # Each of the audited stands for all that were discarded like it.
            beyond.add(score[stage == AUDITED], round(1 / AUDIT))
            audited.append(score[stage == AUDITED])
            discarded += int((stage != FULL).sum())
            scored += len(score)
            # Ties with the last of the best are kept until the sort, which decides them by name.
            keep = np.flatnonzero(score >= floor)
            if len(keep):
                best.append(_frame(pq.read_table(path).take(keep)))
                held += len(keep)
            if held > 4 * plan.top:
                best = [_sort(best, plan.top)]
                held, floor = len(best[0]), float(best[0]["score"].iloc[-1])
            advance()
    top, looked = _sort(best, plan.top), np.concatenate(audited) if audited else np.empty(0, np.float32)
    lost = int((looked >= top["score"].iloc[-1]).sum()) if len(top) else 0
    return Merged(
        top, histogram + beyond, beyond, scored, set_apart, dict(sorted(reasons.items())), discarded, len(looked), lost
    )


def _read_part(plan: Plan, part: Part) -> tuple[Path, list[str], np.ndarray, np.ndarray]:
    """Return where the scores of a part are, why objects were set aside, the scores, and how far each object came."""
    why = _column(plan, part, quarantine_path(plan.out, part.number), "reason").to_pylist()
    path = scores_path(plan.out, part.number)
    score = _column(plan, part, path, "score").to_numpy()
    stage = _column(plan, part, path, "stage").combine_chunks().to_numpy(zero_copy_only=False)
    if not _done(plan, part):
        raise GalscanError(
            f"{plan.where(part)}: {path} does not hold every object; remove it and run the same command again"
        )
    return path, why, score, stage


def _in_order(read: Callable[[Part], T], parts: Iterable[Part], threads: int = 8) -> Iterator[T]:
    """Yield what `read` returns of each part, in their order, a few read ahead: waiting for the disk is most of it."""
    with ThreadPoolExecutor(threads, "galscan-merge") as pool:
        ahead: deque[Reading[T]] = deque()
        rest = iter(parts)
        try:
            for part in rest:
                ahead.append(pool.submit(read, part))
                if len(ahead) == 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _column(plan: Plan, part: Part, path: Path, name: str) -> pa.ChunkedArray:
    """Read one column of a part, with its checksums verified."""
    if _rows(path, plan.fingerprint) is None:
        raise GalscanError(f"{path} is missing or damaged; run the same command again, it will be done again")
    try:
        return pq.read_table(path, columns=[name], page_checksum_verification=True)[name]
    except (OSError, pa.ArrowException) as error:
        raise GalscanError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas().astype({"store": "str"})


def _sort(frames: list[pd.DataFrame], top: int) -> pd.DataFrame:
    """Return the best `top` rows of some frames, best first."""
    if not frames:
        return pd.DataFrame()
    if len({frame["id"].dtype.kind for frame in frames}) > 1:  # one survey numbers its objects, another names them
        frames = [frame.astype({"id": "str"}) for frame in frames]
    whole = pd.concat(frames, ignore_index=True)
    return whole.sort_values(ORDER, ascending=[False, True, True, True], ignore_index=True).head(top)


def written(plan: Plan) -> int:
    """Return the bytes of the parts that are there already."""
    return sum(path.stat().st_size for path in plan.out.glob("*/part-*.parquet"))


def disk_free(path: Path) -> int:
    """Return the free bytes of the filesystem that `path` (or its nearest existing parent) is on."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
