"""Progress reports: a bar on a terminal, one bar per cell in a notebook, lines at intervals in a log."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[..., None]
"""``advance(n=1, note="")``: `n` more items are done; `note` is shown after the rate."""

command_started: dict[str, float] = {}
"""Start of the process (`time.perf_counter`) that runs a command of the command line, by the command's name."""

LOG_INTERVAL, NOTEBOOK_INTERVAL = 10.0, 0.3  # minimum seconds between two lines, or two updates of a notebook's bar

_cell: tuple[Any, Any] | None = None  # the cell of a notebook that has a bar, and the display of the bar


@contextmanager
def track(label: str, total: int, unit: str = "it", *, done: int = 0) -> Iterator[Advance]:
    """Show progress of `total` items on stderr while the block runs; `done` items were finished before.

    The rate is that of this process, without the items finished before. All jobs of one cell of a notebook share one
    bar there.
    """
    if sys.stderr.isatty():
        yield from _terminal_bar(label, total, unit, done)
    elif (shell := _notebook()) is not None:
        yield from _reports(total, done, NOTEBOOK_INTERVAL, _NotebookBar(shell, label, total, unit))
    else:
        yield from _reports(total, done, LOG_INTERVAL, _LogLines(label, total, unit))


def _terminal_bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
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


def _reports(total: int, done: int, interval: float, show: Callable[[int, float, str], None]) -> Iterator[Advance]:
    """Yield a function that calls ``show(count, rate, note)`` at intervals, and when all items are done."""
    started = last = time.monotonic()
    processed = 0

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal last, processed
        processed += n
        now = time.monotonic()
        count = done + processed
        if now - last >= interval or count >= total:
            last = now
            show(count, processed / max(now - started, 1e-9), note)

    yield advance


class _LogLines:
    """One line for each report."""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit

    def __call__(self, count: int, rate: float, note: str) -> None:
        left = (self.total - count) / rate if rate else 0
        print(
            f"{self.label}: {count:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {left:,.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


class _NotebookBar:
    """The bar of the cell that runs; its first report shows it, and each further one replaces the one before."""

    def __init__(self, shell: Any, label: str, total: int, unit: str):
        self.shell, self.label, self.total, self.unit = shell, label, total, unit

    def __call__(self, count: int, rate: float, note: str) -> None:
        global _cell
        from IPython.display import display

        left = (self.total - count) / rate if rate else 0
        text = f"{self.label}: {count:,} of {self.total:,} {self.unit}, {rate:,.1f}/s"
        text += f", {left:,.0f} s left" if count < self.total else ""
        text += f" ({note})" if note else ""
        bar = f'<progress value="{count}" max="{max(self.total, 1)}" style="width: 14em"></progress>'
        page = f'<div style="font-size: 90%; opacity: 0.8">{bar} {html.escape(text)}</div>'
        data = {"text/plain": text, "text/html": page}
        cell = _running_cell(self.shell)
        if _cell is not None and _cell[0] == cell:
            _cell[1].update(data, raw=True)
        else:
            _cell = cell, display(data, raw=True, display_id=True)


def _running_cell(shell: Any) -> Any:
    """Return the id of the message that runs a cell: a cell that is run again, or in another kernel, is another one."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return parent.get("header", {}).get("msg_id") or shell.execution_count


def _notebook() -> Any:
    """Return the shell of the notebook that runs this process; None elsewhere, as in IPython on a terminal."""
    # Nothing is imported: in a notebook IPython is there.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None
