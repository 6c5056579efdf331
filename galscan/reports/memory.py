"""Return of freed memory to the operating system, which allocators would keep."""

from __future__ import annotations

import ctypes
import gc
import sys

import pyarrow as pa

MIN_ROWS = 100_000  # smaller tables are not worth the second that a release takes


def release(rows: int) -> None:
    """Return unused memory of Arrow's and the C library's allocators after work on a table of `rows` rows.

    Does nothing below `MIN_ROWS`, or if the allocators do not support it.
    """
    if rows < MIN_ROWS:
        return
    gc.collect()  # reference cycles, e.g. of figures
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
