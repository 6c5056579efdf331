"""Processes side by side: how many there are, and what is said when one is killed."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

import pytest

from galscan.core import processes
from galscan.core.errors import GalscanError, InputError
from galscan.core.processes import WORKERS, default_workers, run_in_processes


def test_a_killed_process_is_an_error_with_a_remedy(monkeypatch):
    def broken(*given):
        raise BrokenProcessPool

    monkeypatch.setattr(processes.ProcessPoolExecutor, "submit", broken)
    with pytest.raises(GalscanError, match=r"one of 2 processes was killed.*same command.*GALSCAN_WORKERS=1"):
        run_in_processes(print, [()], 2, remedy="GALSCAN_WORKERS=1")


def test_the_default_is_the_cores_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv(WORKERS)
    assert default_workers() >= 1
    monkeypatch.setenv(WORKERS, "3")
    assert default_workers() == 3
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv(WORKERS, wrong)
        with pytest.raises(InputError, match=f"GALSCAN_WORKERS is '{wrong}'"):
            default_workers()
