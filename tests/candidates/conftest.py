"""A scan written by hand, shared by the tests of candidates; not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from galscan.store.layout import open_store
from tests.candidate_tables import scanned_run


@pytest.fixture(scope="session")
def listed_run(tmp_path_factory) -> Path:
    """Return the run of `scanned_run`."""
    return scanned_run(tmp_path_factory.mktemp("listed"))


@pytest.fixture(scope="session")
def listed_store(listed_run):
    return open_store(listed_run.parent / "sky.zarr")
