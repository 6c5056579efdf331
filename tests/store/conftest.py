"""Stores that several tests read, ingested once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from galscan.store.build import ingest_survey
from galscan.store.layout import Store
from tests.store.test_build import Sky


@pytest.fixture(scope="session")
def sky_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store of `Sky`, which is not to be changed."""
    return ingest_survey(Sky(), tmp_path_factory.mktemp("sky") / "s.zarr", workers=1)


@pytest.fixture
def sky_copy(sky_store: Store, tmp_path: Path) -> Path:
    """Return the folder of a copy of `sky_store`."""
    return Path(shutil.copytree(sky_store.path, tmp_path / "s.zarr"))
