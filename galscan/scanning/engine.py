"""The scan itself: a bounded window of parts in flight, and the merge of what they left on disk.

There is never one graph of all parts: the scheduler knows a few parts a worker, whatever the survey's size.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan import files, progress
from galscan.candidates.purity import ScoreHistogram
from galscan.errors import GalscanError, Interrupted
from galscan.scanning.plan import Part, Plan
from galscan.scanning.worker import FINGERPRINT, Job, PartReport, get_ready, quarantine_path, score_part, scores_path

if TYPE_CHECKING:
    from distributed import Client, Future

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
    scored: int
    quarantined: int
    reasons: dict[str, int]


def pending(plan: Plan) -> list[Part]:
    """Return the parts still to do; whatever a killed process left half-written is removed."""
    for folder in ("scores", "quarantine"):
        for leftover in Path(plan.out, folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return [part for part in plan.parts if not _done(plan, part)]


def _done(plan: Plan, part: Part) -> bool:
    """Tell whether both tables of a part are whole, of this plan, and hold every object once."""
    rows = [_rows(path(plan.out, part.number), plan.fingerprint) for path in (scores_path, quarantine_path)]
    return None not in rows and sum(n or 0 for n in rows) == part.count


def _rows(path: Path, fingerprint: str) -> int | None:
    """Return the rows of a table, or None if it is missing, damaged or of another run."""
    try:
        footer = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None
    return footer.num_rows if (footer.metadata or {}).get(FINGERPRINT) == fingerprint.encode() else None


def run_scan(plan: Plan, client: Client, parts: Iterable[Part]) -> Progress:
    """Score `parts` on the workers of `client`; a part that is done stays done whatever happens later.

    Raises
    ------
    GalscanError
        If a part cannot be done: a broken store, workers that die of it, a lost cluster.
    StorageError
        If the run folder cannot be written.
    """
    from distributed import as_completed

    parts = list(parts)
    job = Job.of(plan)
    waiting = iter(parts)
    flying: dict[Any, tuple[Part, Future]] = {}
    scored = quarantined = 0

    def launch(room: int) -> list[Future]:
        new = [(part, client.submit(score_part, part, job, pure=False)) for part in islice(waiting, max(room, 0))]
        flying.update((future.key, (part, future)) for part, future in new)
        return [future for _, future in new]

    _make_ready(client, job)
    started = time.perf_counter()
    todo = sum(part.count for part in parts)
    ledger_path = plan.out / "ledger.jsonl"
    tracked = progress.track("scan", plan.objects, "objects", done=plan.objects - todo)
    with tracked as advance, open(ledger_path, "a", encoding="utf-8") as ledger:
        try:
            completed = as_completed(launch(_window(client)), loop=client.loop)
            for future in completed:
                part, _ = flying.pop(future.key)
                report = _report(plan, part, future)
                scored += report.scored
                quarantined += report.quarantined
                with files.storage_errors(ledger_path):
                    ledger.write(json.dumps(asdict(report)) + "\n")
                    ledger.flush()
                advance(part.count)
                for new in launch(_window(client) - len(flying)):
                    completed.add(new)
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


def _report(plan: Plan, part: Part, future: Future) -> PartReport:
    """Return what a part reported, or raise its failure as one line that names the part."""
    from distributed import KilledWorker

    kept = "the finished parts are kept, run the same command again to go on"
    if future.status == "finished":
        return future.result()  # type: ignore[no-any-return]
    if future.status != "error":
        raise GalscanError(f"the cluster was lost at {plan.where(part)}; {kept}")
    error = future.exception()
    if isinstance(error, KilledWorker):
        raise GalscanError(
            f"{plan.where(part)} killed {error.allowed_failures + 1} workers, most often by needing too much memory: "
            f"use fewer --workers; {kept}"
        ) from None
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
    histogram = ScoreHistogram.empty()
    reasons: Counter[str] = Counter()
    best: list[pd.DataFrame] = []
    scored = held = 0
    floor = -np.inf  # the score of the last of the best so far
    with progress.track("merge", len(plan.parts), "parts") as advance:
        for part in plan.parts:
            quarantined = _column(plan, part, quarantine_path(plan.out, part.number), "reason")
            reasons.update(quarantined.to_pylist())
            path = scores_path(plan.out, part.number)
            score = _column(plan, part, path, "score").to_numpy()
            if len(score) + len(quarantined) != part.count:
                raise GalscanError(
                    f"{plan.where(part)}: {path} does not hold every object; remove it and run the same command again"
                )
            histogram.add(score)
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
    return Merged(_sort(best, plan.top), histogram, scored, plan.objects - scored, dict(sorted(reasons.items())))


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


def disk_free(path: Path) -> int:
    """Return the free bytes of the filesystem that `path` (or its nearest existing parent) is on."""
    while not path.exists():
        path = path.parent
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
