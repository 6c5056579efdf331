"""Processes of benchmarks: many side by side, and one whose time and memory are measured."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

from galscan.core.concurrency import cores


def side_by_side(job: Callable[..., None], each: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Do `job` for each of some arguments, `workers` at a time: small networks gain little from a second core."""
    threads = str(max(1, cores() // workers))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    # The libraries read the environment when the new processes load them.
    with (
        patch.dict(os.environ, limits),
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
    ):
        for future in [pool.submit(job, *arguments) for arguments in each]:
            future.result()


def run_measured(code: str, *arguments: Any) -> tuple[str, float, float]:
    """Run Python code in a process of its own; return its output, the most memory it held in MB, and its seconds.

    VmHWM is of the program alone; ru_maxrss of a child would begin with what its parent held.
    """
    code += "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    started = time.perf_counter()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    text, _, peak = output.rstrip().rpartition("\n")
    return text, round(int(peak) * 1024 / 1e6, 1), round(time.perf_counter() - started, 1)
