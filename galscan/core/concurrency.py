"""Parallel execution: processes with one thread each, which end with their parent; an ordered map over threads."""

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

WORKERS = "GALSCAN_WORKERS"  # environment variable: number of processes; default: one per core
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", WORKERS), "1")
INTERVAL = 0.5  # seconds between two updates of the progress line

shared: Any = None  # in a process of a pool: what the parent passed to `start_process`


def cores() -> int:
    """Return the number of cores this process may use; in a container it may be below that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return the number of processes to run at a time: ``GALSCAN_WORKERS``, or the cores available to this process.

    Raises `InputError` if ``GALSCAN_WORKERS`` is not a positive integer.
    """
    if text := os.environ.get(WORKERS, ""):
        if not text.isdecimal() or not int(text):
            raise InputError(f"{WORKERS} is {text!r}; give the number of processes to run at a time, at least 1")
        return int(text)
    return cores()


def run_in_processes(
    function: Callable[..., None], tasks: Sequence[tuple[Any, ...]], workers: int, *, remedy: str,
    shared: Any = None, watch: Callable[[int], None] = lambda finished: None,
) -> None:  # fmt: skip
    """Call a function of a module with each of `tasks`, in `workers` processes with one thread each.

    An exception of a task, or Ctrl-C, ends all processes at once. Raises `GalscanError` if a process was killed.
    Exceptions of tasks are raised unchanged.

    Parameters
    ----------
    remedy : str
        How to run fewer processes, for the error message when one was killed.
    shared : ctypes array, optional
        Memory shared with the processes, where it is the variable `shared` of this module.
    watch : callable
        Called at intervals with the number of finished tasks.
    """
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=start_process, initargs=(shared,)
    )
    try:
        with child_environment():
            futures: set[Future[None]] = {pool.submit(function, *task) for task in tasks}
        pending = futures
        while pending:
            done, pending = wait(pending, INTERVAL, return_when=FIRST_COMPLETED)
            watch(len(futures) - len(pending))
            for future in done:
                future.result()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):  # no public way before Python 3.14
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise GalscanError(
                f"one of {workers} processes was killed, most likely because memory ran out; run the same command "
                f"again to resume, with fewer processes: {remedy}"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_process(value: Any) -> None:
    """Initialise a process of a pool: keep `value`, leave Ctrl-C to the parent, exit with the parent."""
    global shared
    shared = value
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr  # stdout is for the results of a command, and libraries print messages there
    # Progress as lines: bars of several processes would overwrite each other.
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def hidden_script() -> Iterator[None]:
    """Hide the script that is running from processes started in the block.

    Python imports the script in each process that it spawns: without ``if __name__ == "__main__":`` it would run again
    there, and start processes of its own.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def child_environment() -> Iterator[None]:
    """Give processes started in the block one thread per library and a blocked Ctrl-C, and no ``__main__`` script."""
    resource_tracker.ensure_running()  # otherwise the first process starts it, which unblocks Ctrl-C
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.environ.update(ONE_THREAD)  # read by the libraries when they are loaded
        with hidden_script():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


T = TypeVar("T")


def ordered_map(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> Iterator[T]:
    """Yield ``work(item)`` in the order of `items`, computed by `threads` threads.

    The threads are daemons, so that Ctrl-C does not wait for a slow server. An exception of `work` is raised in place
    of its result.
    """
    tasks: SimpleQueue[tuple[Future[T], Any] | None] = SimpleQueue()

    def serve() -> None:
        while (task := tasks.get()) is not None:
            future, item = task
            try:
                future.set_result(work(item))
            except BaseException as error:  # raised by future.result()
                future.set_exception(error)

    for _ in range(threads):
        threading.Thread(target=serve, daemon=True).start()
    ahead: deque[Future[T]] = deque()
    try:
        for item in items:
            future: Future[T] = Future()
            ahead.append(future)
            tasks.put((future, item))
            if len(ahead) > 8 * threads:  # enough that one slow item does not block the other threads
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
