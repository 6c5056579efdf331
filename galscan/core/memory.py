"""Memory that was freed, given back to the system: allocators keep it, and a long list takes much for a moment."""

from __future__ import annotations

import ctypes
import gc
import sys

import pyarrow as pa

LONG = 100_000  # rows of a list, below which its memory is not worth the second that it takes to look for it


def release(rows: int) -> None:
    """Give back what Arrow's allocator and the C library's hold unused after work on a list of so many rows.

    Where neither can, and for a list that is not `LONG`, nothing happens.
    """
    if rows < LONG:
        return
    gc.collect()  # figures, for one, refer to themselves
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
