"""Small skies on disk, written once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.mosaics_on_disk import write_sky


@pytest.fixture(scope="session")
def skies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the sky of `write_sky` with one suffix, not to be changed."""
    return cache(lambda suffix: write_sky(tmp_path_factory.mktemp("sky"), suffix))


@pytest.fixture
def sky(skies: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the sky."""
    return shutil.copytree(skies(".fits"), tmp_path / "sky")
