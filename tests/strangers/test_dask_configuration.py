"""Configuration files of Dask that it cannot read: one line that names them, before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = "from galscan.scanning import cluster; from galscan.core.errors import InputError\n"
MEMORY += "try: cluster.memory()\nexcept InputError as error: print(error)"
START = "from galscan.scanning import cluster; from galscan.core.errors import InputError\n"
START += "try: cluster.connect(workers=1).__enter__()\nexcept InputError as error: print(error)"


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("distributed:\n  worker: [1,\n", MEMORY, "a.yaml"),
        ("a note to myself", MEMORY, "a.yaml"),
        ("distributed:\n  logging: 3\n", MEMORY, "DASK_CONFIG"),
        ("distributed:\n  comm:\n    timeouts:\n      connect: soon\n", START, "soon"),
    ],
)
def test_unreadable_configuration(tmp_path, text, code, word):
    (tmp_path / "a.yaml").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_CONFIG": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and word in done.stdout and "Traceback" not in done.stderr


def test_scan_ends_with_one_line(tmp_path, shared_store, shared_model):
    (tmp_path / "a.yaml").write_text("distributed: [")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_CONFIG": str(tmp_path)}
    options = ["--store", str(shared_store.path), "--model", str(shared_model.path), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "galscan", "scan", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "a.yaml" in done.stderr
    assert not (tmp_path / "run").exists()
