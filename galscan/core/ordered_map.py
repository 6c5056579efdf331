"""Work done by a few threads, and handed out in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def in_order(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> Iterator[T]:
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
