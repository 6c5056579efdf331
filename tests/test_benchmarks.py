"""Benchmarks run by hand, and seldom: that they still find what they call is seen here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_loads_and_is_listed(name):
    assert callable(importlib.import_module(f"tests.benchmarks.{name}").main)
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()
