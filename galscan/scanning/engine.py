"""Scheduling of a scan's partitions on a Dask cluster, with a ledger of their results.

Only a bounded window of partitions is submitted at a time, so the load of the scheduler does not grow with the survey.
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
from galscan.scanning.worker import load_networks, quarantine_partition, score_partition

if TYPE_CHECKING:
    from distributed import Client, Future

TICK = 1.0  # seconds between checks for stalled workers
# Workers are restarted when no partition has ended for the largest of PATIENCE seconds, 20 times the longest partition
# so far, and SLOWEST seconds per object.
PATIENCE, SLOWEST = 300.0, 0.1
STRIKES = 3  # restarts after which a partition is quarantined


@dataclass(frozen=True)
class Progress:
    """Objects scored and quarantined by one process, and the seconds from ready workers to the last partition."""

    scored: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    """Fraction of the workers' time spent in the networks."""


def run_scan(
    plan: Plan,
    client: Client,
    partitions: Iterable[Partition],
    prefilters: Sequence[Path] = (),
    stop: threading.Event | None = None,
) -> Progress:
    """Score `partitions` on the workers of `client`; finished partitions are kept if the scan stops.

    A partition that kills its workers is quarantined as a whole. Stalled workers are restarted.

    Raises
    ------
    KeyboardInterrupt
        If `stop`, the event of `interruptible`, is set.
    GalscanError
        If a partition cannot be scored: a damaged store, a lost cluster.
    StorageError
        If the run folder cannot be written.
    """
    partitions = list(partitions)
    job = Job.of(plan, prefilters)
    waiting = deque(partitions)
    suspects: list[Partition] = []
    tried: set[int] = set()
    submitted: dict[str, tuple[Partition, Future]] = {}
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    strikes: Counter[int] = Counter()
    scored = quarantined = 0
    busy = 0.0
    longest, last = 0.0, time.perf_counter()

    def launch(room: int) -> None:
        for partition in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
            future = client.submit(score_partition, partition, job, pure=False)
            submitted[str(future.key)] = partition, future
            future.add_done_callback(finished.put)

    load_on_workers(client, job)
    started = time.perf_counter()
    remaining = sum(partition.count for partition in partitions)
    ledger_path = plan.out / "ledger.jsonl"
    tracked = progress.track("scan", plan.objects, "objects", done=plan.objects - remaining)
    with tracked as advance, open(ledger_path, "a", encoding="utf-8") as ledger:
        try:
            launch(window(client))
            while submitted or suspects:
                if not submitted:  # a dying worker fails all its partitions; run alone, the one that kills it is found
                    waiting.append(suspects.pop())
                    tried.add(waiting[0].number)
                    launch(1)
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                try:
                    future = finished.get(timeout=TICK)
                except queue.Empty:
                    slowest = SLOWEST * max(partition.count for partition, _ in submitted.values())
                    if time.perf_counter() - last > max(PATIENCE, slowest, 20 * longest):
                        _restart_stalled(client, submitted, strikes)
                        last = time.perf_counter()
                    continue
                partition, _ = submitted.pop(str(future.key))
                if _is_fatal(future) and partition.number not in tried:
                    suspects.append(partition)
                    launch(window(client) - len(submitted))
                    continue
                report = _report(plan, partition, future, job, strikes[partition.number])
                scored += report.scored
                quarantined += report.quarantined
                busy += report.busy
                longest, last = max(longest, report.seconds), time.perf_counter()
                with files.storage_errors(ledger_path):
                    ledger.write(json.dumps(asdict(report)) + "\n")
                    ledger.flush()
                advance(partition.count)
                launch(window(client) - len(submitted))
        except BaseException:
            client.cancel([future for _, future in submitted.values()], force=True)
            raise
    seconds = time.perf_counter() - started
    return Progress(scored, quarantined, seconds, busy / (seconds * max(sum(client.nthreads().values()), 1)))


def load_on_workers(client: Client, job: Job) -> None:
    """Load the networks on every worker, so that an error of model or device is raised once, before any partition."""
    for result in client.run(load_networks, job, on_error="return").values():
        if isinstance(result, GalscanError):
            raise result


def window(client: Client) -> int:
    """Return how many partitions may be submitted at a time: enough to keep all worker threads busy."""
    return 2 * sum(client.nthreads().values()) + 2


def _restart_stalled(client: Client, submitted: Mapping[str, tuple[Partition, Future]], strikes: Counter[int]) -> None:
    """Restart stalled workers; cancel a partition at its third restart.

    Only the scheduler is queried, as a stalled worker may not respond. A worker is taken to be at the first submitted
    of its partitions.
    """
    order = list(submitted)
    stuck = []
    working = client.processing()
    if not working:  # otherwise the scan would wait for ever
        raise GalscanError(
            "the cluster has no worker left; the finished partitions are kept, run the same command again to resume"
        )
    for worker, keys in working.items():
        at = min((order.index(str(key)) for key in keys if str(key) in submitted), default=None)
        if at is None:
            continue
        partition, future = submitted[order[at]]
        stuck.append(worker)
        strikes[partition.number] += 1
        if strikes[partition.number] == STRIKES:
            future.cancel(force=True)
    if stuck:
        client.restart_workers(stuck, timeout=60, raise_for_error=False)


def _is_fatal(future: Future) -> bool:
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _report(plan: Plan, partition: Partition, future: Future, job: Job, strikes: int) -> PartitionReport:
    """Return a partition's report, quarantine it if it is fatal, or raise its error with the rows it concerns."""
    kept = "the finished partitions are kept, run the same command again to resume"
    if future.status == "finished":
        return future.result()  # type: ignore[no-any-return]
    if strikes >= STRIKES:
        return quarantine_partition(partition, job, SILENT)
    if future.status != "error":
        raise GalscanError(f"the cluster was lost at {plan.where(partition)}; {kept}")
    if _is_fatal(future):
        return quarantine_partition(partition, job, FATAL)
    error = future.exception()
    if isinstance(error, GalscanError):
        raise type(error)(f"{error} ({plan.where(partition)}; {kept})") from error
    message = (str(error).strip().splitlines() or ["no message"])[0]
    raise GalscanError(f"{plan.where(partition)} failed with {type(error).__name__}: {message}; {kept}") from error


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into `Interrupted`, after the body has cleaned up.

    The signal also sets the event that is yielded: Python drops an exception raised while an object is being deleted,
    which can take long for those of Dask.
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
        raise Interrupted(
            "interrupted; the finished partitions are kept, run the same command again to resume"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
