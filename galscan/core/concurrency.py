"""Work side by side: in processes with one thread each, which end when their parent does; in threads, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any, TypeVar

from galscan.core.errors import GalscanError, InputError

WORKERS = "GALSCAN_WORKERS"  # environment variable: processes at a time, instead of one a core
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", WORKERS), "1")
INTERVAL = 0.5  # seconds between two updates of the progress line

steps: Any = None  # in a process of a pool: memory shared with the parent, if it gave some


def default_workers() -> int:
    """Return how many processes to run at a time: ``GALSCAN_WORKERS``, or the cores this process may use.

    Raises
    ------
    InputError
        If ``GALSCAN_WORKERS`` is not a positive integer.
    """
    if text := os.environ.get(WORKERS, ""):
        if not text.isdecimal() or not int(text):
            raise InputError(f"{WORKERS} is {text!r}; give the number of processes to run at a time, at least 1")
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    function: Callable[..., None], tasks: Sequence[tuple[Any, ...]], workers: int, *, remedy: str,
    shared: Any = None, watch: Callable[[int], None] = lambda finished: None,
) -> None:  # fmt: skip
    """Call a function of a module with each of `tasks`, in `workers` processes with one thread each.

    Whatever ends this early, an exception of a task or Ctrl-C, ends the processes at once.

    Parameters
    ----------
    remedy : str
        What lets fewer processes run at a time, for the message that one was killed.
    shared : ctypes array, optional
        Memory shared with the processes, where it is `steps` of this module.
    watch : callable
        Called now and then with the number of finished tasks.

    Raises
    ------
    GalscanError
        If a process was killed; and what a task raises.
    """
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(shared,)
    )
    try:
        with _as_processes_start():
            futures: set[Future[None]] = {pool.submit(function, *task) for task in tasks}
        waiting = futures
        while waiting:
            done, waiting = wait(waiting, INTERVAL, return_when=FIRST_COMPLETED)
            watch(len(futures) - len(waiting))
            for future in done:
                future.result()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):  # no public way before Python 3.14
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise GalscanError(
                f"one of {workers} processes was killed, most likely because memory ran out; run the same command "
                f"again to resume, with fewer at a time: {remedy}"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(shared: Any) -> None:
    """Prepare a process of a pool: one thread, Ctrl-C left to the parent, and it ends when the parent does."""
    global steps
    steps = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from galscan.core import device

    device.use_one_thread()
    # Progress of a repeat goes out as lines: bars of several processes would overwrite each other.
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _as_processes_start() -> Iterator[None]:
    """Let processes that start meanwhile inherit one thread a library and a blocked Ctrl-C, and import no script.

    A script that calls galscan without ``if __name__ == "__main__":`` would otherwise run again in each of them.
    """
    resource_tracker.ensure_running()  # else the first process starts it, and it unblocks Ctrl-C
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    main = sys.modules["__main__"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.environ.update(ONE_THREAD)  # read by the libraries when they are loaded
        sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


T = TypeVar("T")


def ordered_map(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> Iterator[T]:
    """Yield ``work(item)`` in the order of `items`, `threads` at a time.

    The threads are daemons: nobody wants to wait for a slow server after Ctrl-C. What `work` raises is raised where
    its result would have come.
    """
    tasks: SimpleQueue[tuple[Future[T], Any] | None] = SimpleQueue()

    def serve() -> None:
        while (task := tasks.get()) is not None:
            future, item = task
            try:
                future.set_result(work(item))
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)

    for _ in range(threads):
        threading.Thread(target=serve, daemon=True).start()
    ahead: deque[Future[T]] = deque()
    try:
        for item in items:
            future: Future[T] = Future()
            ahead.append(future)
            tasks.put((future, item))
            if len(ahead) > 8 * threads:  # far enough that a slow answer does not stop the others
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        while True:
            try:
                tasks.get_nowait()
            except Empty:
                break
        for _ in range(threads):
            tasks.put(None)
