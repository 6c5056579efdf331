from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from galscan.reports.memory import MIN_ROWS, release


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is told to give memory back")
def test_what_was_freed_goes_back_to_the_system():
    small = [np.ones(4_000) for _ in range(4_000)]  # 128 MB in pieces that the C library keeps
    process = psutil.Process()
    held = process.memory_info().rss
    keep = small[::500]
    del small
    release(MIN_ROWS - 1)
    assert process.memory_info().rss > held - 100e6
    release(MIN_ROWS)
    assert process.memory_info().rss < held - 100e6 and keep[0].sum() == 4_000
