"""Ingest from a failing service, killed twice: every object is accounted for exactly once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import galscan
from tests.benchmarks.ingest import ingest_under_fire
from tests.helpers import tiny_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no-cache"])
def test_killed_twice_and_then_scanned(services, tmp_path: Path, cache: bool) -> None:
    """300 objects, a tenth of the responses bad; ten thousand are in tests/benchmarks/ingest.py."""
    result = ingest_under_fire(services, tmp_path, count=300, share=0.1, per_minute=6000, cache=cache)
    assert result["kills"] == 2 and result["lost"] == result["doubled"] == result["wrong"] == 0
    assert result["stored"] + result["no_coverage"] + result["failed"] == 300
    assert result["stored"] > 200 and result["asked_again"] < 45, "only HTTP 404 (about 15) is requested again"
    assert result["bad_answers"] > 10 and result["rate_over_limit"] <= 1

    tiny_bundle(tmp_path / "model", size=64)
    run = galscan.scan(store=tmp_path / "sdss.zarr", model=tmp_path / "model", out=tmp_path / "run", workers=1)
    assert (run.info.scanned, run.info.quarantined) == (result["stored"], 300 - result["stored"])
