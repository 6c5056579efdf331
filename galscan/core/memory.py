"""Memory that was freed, given back to the system: allocators keep it, and a long list takes much for a moment."""

from __future__ import annotations

import ctypes
import gc
import sys

import pyarrow as pa


def release() -> None:
    """Give back what Arrow's allocator and the C library's hold unused; where neither can, nothing happens."""
    gc.collect()  # figures, for one, refer to themselves
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
