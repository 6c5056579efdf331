"""Progress reports: a bar with rate and remaining time on a terminal, lines at intervals in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""``advance(n=1, note="")``: `n` more items are done; `note` is shown after the rate."""


@contextmanager
def track(label: str, total: int, unit: str = "it", *, done: int = 0) -> Iterator[Advance]:
    """Show progress of `total` items on stderr while the block runs; `done` items were finished before.

    The rate is that of this process, without the items finished before.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<28}"), BarColumn(bar_width=28),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        started = time.monotonic()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=done, rate="", note="")
            processed = 0

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal processed
                processed += n
                rate = processed / max(time.monotonic() - started, 1e-9)
                bar.update(task, advance=n, rate=f"{rate:,.1f} {unit}/s", note=note)

            yield advance
        return

    started = last = time.monotonic()
    state = {"processed": 0}

    def log(n: int = 1, note: str = "") -> None:
        nonlocal last
        state["processed"] += n
        now = time.monotonic()
        count = done + state["processed"]
        if now - last >= 10 or count >= total:
            last = now
            rate = state["processed"] / max(now - started, 1e-9)
            left = (total - count) / rate if rate else 0
            print(
                f"{label}: {count:,}/{total:,} {unit}, {rate:,.1f}/s, {left:,.0f} s left {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    yield log
