"""Do the same with other arguments in processes side by side, each on its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from galscan.scanning.cluster import cores


def side_by_side(job: Callable[..., None], each: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Do `job` for each of some arguments, `workers` at a time: small networks gain little from a second core."""
    threads = str(max(1, cores() // workers))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)  # read by the libraries when the new processes load them
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for future in [pool.submit(job, *some) for some in each]:
                future.result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
