"""The scan itself: a bounded window of parts in flight on a Dask cluster, and a ledger of what came of each.

There is never one graph of all parts: the scheduler knows a few parts a worker, whatever the survey's size.
"""

from __future__ import annotations

import json
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core import files, progress
from galscan.core.errors import GalscanError, Interrupted
from galscan.scanning.partitions import FATAL, SILENT, Job, PartitionReport
from galscan.scanning.plan import Partition, Plan
from galscan.scanning.worker import get_ready, quarantine, score_partition

if TYPE_CHECKING:
    from distributed import Client, Future

TICK = 1.0  # seconds between looks at the clock
# Workers are woken when no part has ended for so many seconds, for 20 times the longest, and for so many an object.
PATIENCE, SLOWEST = 300.0, 0.1
STRIKES = 3


@dataclass(frozen=True)
class Progress:
    """What one process did: objects scored and quarantined, and the seconds from ready workers to the last part."""

    scored: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    """Share of the workers' time that was spent in the networks."""


def run_scan(
    plan: Plan,
    client: Client,
    parts: Iterable[Partition],
    looks: Sequence[Path] = (),
    stop: threading.Event | None = None,
) -> Progress:
    """Score `parts` on the workers of `client`; a part that is done stays done whatever happens later.

    A part that kills every worker that tries it is quarantined whole. Workers that are silent for too long are
    started anew.

    Raises
    ------
    KeyboardInterrupt
        If `stop` is set, the event of `interruptible`.
    GalscanError
        If a part cannot be done: a broken store, a lost cluster.
    StorageError
        If the run folder cannot be written.
    """
    parts = list(parts)
    job = Job.of(plan, looks)
    waiting = deque(parts)
    suspects: list[Partition] = []
    tried: set[int] = set()
    flying: dict[str, tuple[Partition, Future]] = {}
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    strikes: Counter[int] = Counter()
    scored = quarantined = 0
    busy = 0.0
    longest, last = 0.0, time.perf_counter()

    def launch(room: int) -> None:
        for part in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
            future = client.submit(score_partition, part, job, pure=False)
            flying[str(future.key)] = part, future
            future.add_done_callback(finished.put)

    make_ready(client, job)
    started = time.perf_counter()
    todo = sum(part.count for part in parts)
    ledger_path = plan.out / "ledger.jsonl"
    tracked = progress.track("scan", plan.objects, "objects", done=plan.objects - todo)
    with tracked as advance, open(ledger_path, "a", encoding="utf-8") as ledger:
        try:
            launch(window(client))
            while flying or suspects:
                if not flying:  # a worker that dies takes what it was given with it: who is to blame shows alone
                    waiting.append(suspects.pop())
                    tried.add(waiting[0].number)
                    launch(1)
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
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
                    launch(window(client) - len(flying))
                    continue
                report = _report(plan, part, future, job, strikes[part.number])
                scored += report.scored
                quarantined += report.quarantined
                busy += report.busy
                longest, last = max(longest, report.seconds), time.perf_counter()
                with files.storage_errors(ledger_path):
                    ledger.write(json.dumps(asdict(report)) + "\n")
                    ledger.flush()
                advance(part.count)
                launch(window(client) - len(flying))
        except BaseException:
            client.cancel([future for _, future in flying.values()], force=True)
            raise
    seconds = time.perf_counter() - started
    return Progress(scored, quarantined, seconds, busy / (seconds * max(sum(client.nthreads().values()), 1)))


def make_ready(client: Client, job: Job) -> None:
    """Load the network on every worker; what is wrong with model or device is said once, before any part."""
    for answer in client.run(get_ready, job, on_error="return").values():
        if isinstance(answer, GalscanError):
            raise answer


def window(client: Client) -> int:
    """Return how many parts may be in flight: enough that no worker waits, few enough for any scheduler."""
    return 2 * sum(client.nthreads().values()) + 2


def _wake(client: Client, flying: Mapping[str, tuple[Partition, Future]], strikes: Counter[int]) -> None:
    """Start the workers anew that have been silent for too long; a part at which that happens thrice is given up.

    The scheduler is asked, and no worker: one that is stuck may not answer. Of what a worker was given it is at the
    part that was launched first.
    """
    order = list(flying)
    stuck = []
    working = client.processing()
    if not working:  # a scan without workers would wait for ever
        raise GalscanError("the cluster has no worker left; the finished parts are kept, run the same command again")
    for worker, keys in working.items():
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


def _report(plan: Plan, part: Partition, future: Future, job: Job, strikes: int) -> PartitionReport:
    """Return what a part reported, set it aside if it is fatal, or raise its failure as one line that names it."""
    kept = "the finished parts are kept, run the same command again to go on"
    if future.status == "finished":
        return future.result()  # type: ignore[no-any-return]
    if strikes >= STRIKES:
        return quarantine(part, job, SILENT)
    if future.status != "error":
        raise GalscanError(f"the cluster was lost at {plan.where(part)}; {kept}")
    if _is_fatal(future):
        return quarantine(part, job, FATAL)
    error = future.exception()
    if isinstance(error, GalscanError):
        raise type(error)(f"{error} ({plan.where(part)}; {kept})") from error
    message = (str(error).strip().splitlines() or ["no message"])[0]
    raise GalscanError(f"{plan.where(part)} failed with {type(error).__name__}: {message}; {kept}") from error


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C and a polite kill into `Interrupted`, after everything inside has been closed.

    The event that it yields is set as well: Python drops an exception that is raised while an object is deleted, and
    those of Dask take their time over it.
    """
    stop = threading.Event()

    def interrupt(*_: Any) -> None:
        stop.set()
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the finished parts are kept, run the same command again to go on") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
