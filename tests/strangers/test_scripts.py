"""Scripts without ``if __name__ == "__main__":`` run once, though galscan starts processes."""

from __future__ import annotations

import multiprocessing.spawn
import os
import subprocess
import sys
from pathlib import Path

import pytest

from galscan.core.concurrency import child_environment, hidden_script

ROOT = Path(__file__).parents[2]
# The cluster of `galscan.scan`, without the networks, which take longer to load than all else.
SCRIPT = """
from galscan.scanning.cluster import connect
print("begun")
with connect(workers=1) as client:
    print(client.submit(len, "four").result())
    client.restart()  # a worker that died is started again later
    print(client.submit(len, "fives").result())
"""


def test_script_without_guard_runs_once(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begun", "4", "5"] and done.stderr == ""


@pytest.mark.parametrize("hiding", [hidden_script, child_environment])
def test_processes_do_not_import_the_script(hiding):
    """Only what is named in the preparation data is imported by a process that is spawned."""
    import __main__

    before = sys.modules["__main__"]
    with hiding(), hidden_script():
        data = multiprocessing.spawn.get_preparation_data("worker")
        assert not {"init_main_from_name", "init_main_from_path"} & set(data)
    assert sys.modules["__main__"] is before is __main__
    with pytest.raises(ZeroDivisionError), hiding():
        _ = 1 / 0
    assert sys.modules["__main__"] is before
