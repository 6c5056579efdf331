"""Networks trained in parallel: same weights, resumption, interruption, and no files left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from galscan.core import concurrency
from galscan.core.errors import StorageError
from galscan.labels.settings import ClassifierSettings
from galscan.training import committee, train
from galscan.training.committee import Job, train_networks
from galscan.training.train import Examples

CPU = torch.device("cpu")
SETTINGS = ClassifierSettings(width=8, batch=8)


def examples(seed: int = 0, n: int = 24) -> Examples:
    rng = np.random.default_rng(seed)
    target = (np.arange(n) % 4 == 0).astype(np.float32)[:, None]
    images = np.clip(rng.normal(60 + 100 * target[..., None, None], 20, (n, 16, 16, 3)), 0, 255).astype(np.uint8)
    return Examples(images, target, rng.random((n, 2), np.float32))


def jobs(folder: Path, steps: tuple[int, ...] = (4, 3, 5)) -> list[Job]:
    """Some that share their real galaxies; the last has synthetic ones as well."""
    real, synthetic = examples(), examples(1)
    last = len(steps) - 1
    return [
        Job(folder / f"{k}.safetensors", real, synthetic if k == last else None, SETTINGS, n, 10 + k, f"network {k}")
        for k, n in enumerate(steps)
    ]


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def progress(monkeypatch) -> list:
    """Return the progress calls: title, total and unit, then each advance."""
    shown: list = []

    @contextmanager
    def track(*given):
        shown.append(given)
        yield lambda n=1, note="": shown.append(n)

    monkeypatch.setattr(committee, "track", track)
    return shown


def test_the_number_of_processes_does_not_change_weights(tmp_path, progress):
    main, environment = sys.modules["__main__"], {name: os.environ.get(name) for name in concurrency.ONE_THREAD}
    found = {}
    for workers in (1, 2):
        folder = tmp_path / f"{workers}"
        found[workers] = train_networks(jobs(folder), CPU, workers=workers)
        title, *counts = progress
        assert title == ("network 0 and 2 more", 12, "step") and sum(counts) == 12
        assert sorted(p.name for p in folder.iterdir()) == ["0.safetensors", "1.safetensors", "2.safetensors"]
        progress.clear()
    assert all(equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    assert not equal(found[1][0], found[1][1])
    assert sys.modules["__main__"] is main and {name: os.environ.get(name) for name in environment} == environment


def test_an_error_in_one_process_is_raised_and_ends_the_others(tmp_path):
    (tmp_path / "file").touch()
    endless, wrong = jobs(tmp_path, (1_000_000, 1))
    wrong = Job(tmp_path / "file" / "1.safetensors", wrong.real, None, SETTINGS, 1, 0, "no folder")
    with pytest.raises(StorageError, match=r"1\.safetensors"):
        train_networks([endless, wrong], CPU, workers=2)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and not multiprocessing.active_children()


def test_finished_networks_are_loaded_in_order(tmp_path, monkeypatch, progress):
    before = train_networks(jobs(tmp_path), CPU)
    (tmp_path / "1.safetensors").unlink()
    (tmp_path / ".training-killed").mkdir()
    (tmp_path / ".1.safetensors.0a.tmp").touch()
    progress.clear()
    after = train_networks(jobs(tmp_path), CPU)
    assert progress[0] == ("network 1", 3, "step") and sum(progress[1:]) == 3
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(train, "train_classifier", None)
    assert len(train_networks(jobs(tmp_path), CPU)) == 3


def test_one_thread_while_training_and_as_many_as_before_afterwards(tmp_path, monkeypatch):
    real, threads, before = train.train_classifier, [], torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(
        train, "train_classifier", lambda *a, **k: (threads.append(torch.get_num_threads()), real(*a, **k))[1]
    )
    try:
        train_networks(jobs(tmp_path), CPU)
        assert threads == [1, 1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_any_column_of_examples_is_kept_in_files_or_passed_on(tmp_path):
    data = examples()
    stored = committee._Stored.write(data, tmp_path / "0")
    assert sorted(p.stem for p in (tmp_path / "0").iterdir()) == sorted(stored.arrays)
    assert {"images", "target", "answers"} <= set(stored.arrays) and "votes" in stored.attributes  # empty
    for a, b in zip(data.columns, stored.read().columns, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


SCRIPT = """
import sys
from pathlib import Path
from tests.training.test_committee import CPU, jobs, train_networks
train_networks(jobs(Path(sys.argv[1]), (2, 1_000_000)), CPU, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "killed child", "killed parent"])
def test_stopped_from_outside(tmp_path, how):
    """A script without a guard for its main module trains; all its processes end, and what is finished stays."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)}, cwd=root,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "0.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if how == "killed parent" else workers[0], signal.SIGKILL)
    error = process.communicate(timeout=30)[1]
    while any(Path(f"/proc/{pid}/task").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline
    assert error.count("Traceback") == (how != "killed parent")
    assert ("KeyboardInterrupt" in error) == (how == "Ctrl-C")
    assert ("GalscanError: one of 2 processes was killed" in error) == (how == "killed child")
    left = sorted(p.name for p in out.iterdir())
    assert left[-1] == "0.safetensors" and len(left) == 1 + (how == "killed parent")
