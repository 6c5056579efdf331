"""Training of several networks in parallel processes; the number of processes does not change the weights.

Such small networks gain little from a second core and slow down if processes compete for cores: one process with one
thread per core is fastest.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from galscan.core import concurrency
from galscan.core import device as devices
from galscan.core.concurrency import WORKERS, default_workers, run_in_processes
from galscan.core.files import storage_errors
from galscan.core.progress import Advance, track
from galscan.labels.settings import ClassifierSettings
from galscan.models.network import Network
from galscan.models.weights import load_network, save_network
from galscan.training import train
from galscan.training.train import Examples

TEMPORARY = ".training-"  # folders of the arrays that the processes share


@dataclass(frozen=True)
class Job:
    """One network to train, and the weights file to write; see `galscan.training.train.train_classifier`."""

    path: Path
    real: Examples
    synthetic: Examples | None
    settings: ClassifierSettings
    steps: int
    seed: int
    label: str
    rows: np.ndarray | None = None
    """Row numbers of the real galaxies that it is trained on; by default all."""


def train_networks(jobs: Sequence[Job], device: torch.device, *, workers: int | None = None) -> list[Network]:
    """Train the networks whose weights files do not exist, and return all of them in the order of `jobs`.

    Parameters
    ----------
    jobs : sequence of Job
        Each has its own path; no other process may write to the folders of these paths.
    workers : int, optional
        Number of processes; by default `default_workers`, at most one per network. With one, and on CUDA, networks are
        trained in this process, one after the other. On the CPU each uses one thread.

    Raises
    ------
    GalscanError
        If the training of a network fails, or a process is killed. Finished networks are kept.
    """
    unfinished = [job for job in jobs if not job.path.is_file()]
    if unfinished:
        for job in unfinished:  # remove temporary files of killed processes
            for folder in job.path.parent.glob(TEMPORARY + "*"):
                shutil.rmtree(folder, ignore_errors=True)
            for file in job.path.parent.glob(f".{job.path.name}.*.tmp"):
                file.unlink(missing_ok=True)
        count = min(workers or default_workers(), len(unfinished)) if device.type == "cpu" else 1
        title = unfinished[0].label + (f" and {len(unfinished) - 1} more" if len(unfinished) > 1 else "")
        with track(title, sum(job.steps for job in unfinished), "step") as advance:
            if count > 1:
                _train_in_processes(unfinished, device, count, advance)
            else:
                with devices.one_thread() if device.type == "cpu" else nullcontext():
                    for job in unfinished:
                        _train(job, device, advance)
    return [load_network(job.path) for job in jobs]


def _train(job: Job, device: torch.device, advance: Advance) -> None:
    real = job.real if job.rows is None else job.real.select(job.rows)
    network = train.train_classifier(
        real, job.synthetic, job.settings, steps=job.steps, seed=job.seed, device=device, label=job.label,
        advance=advance,
    )  # fmt: skip
    save_network(network, job.path)


def _train_in_processes(jobs: Sequence[Job], device: torch.device, workers: int, advance: Advance) -> None:
    steps = multiprocessing.get_context("spawn").RawArray("q", len(jobs))
    shown = 0

    def watch(finished: int) -> None:
        nonlocal shown
        if (done := sum(steps)) > shown:
            advance(done - shown, f"{finished} of {len(jobs)} networks finished")
            shown = done

    home = jobs[0].path.parent
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=TEMPORARY, dir=home)
    with folder:
        stored: dict[int | None, _Stored | None] = {id(None): None}
        for examples in (examples for job in jobs for examples in (job.real, job.synthetic)):
            if examples is not None and id(examples) not in stored:
                stored[id(examples)] = _Stored.write(examples, Path(folder.name) / f"{len(stored)}")
        dtype = devices.training_dtype(device)  # chosen once, for all processes
        tasks = [
            (k, device, dtype, stored[id(job.real)], stored[id(job.synthetic)],
             job.path, job.settings, job.steps, job.seed, job.label, job.rows)
            for k, job in enumerate(jobs)
        ]  # fmt: skip
        remedy = f"{WORKERS}={max(1, workers // 2)} in the environment"
        run_in_processes(_train_stored, tasks, workers, remedy=remedy, shared=steps, watch=watch)


@dataclass(frozen=True)
class _Stored:
    """Examples with their arrays in files that all processes memory-map."""

    arrays: dict[str, Path]
    attributes: dict[str, Any]

    @classmethod
    def write(cls, examples: Examples, folder: Path) -> _Stored:
        arrays, attributes = {}, {}
        with storage_errors(folder):
            folder.mkdir()
            for name in (field.name for field in fields(examples)):
                value = getattr(examples, name)
                if isinstance(value, np.ndarray) and value.size and not value.dtype.hasobject:
                    arrays[name] = folder / f"{name}.npy"
                    np.save(arrays[name], value, allow_pickle=False)
                else:
                    attributes[name] = value
        return cls(arrays, attributes)

    def read(self) -> Examples:
        # Copy on write: torch warns about read-only arrays.
        arrays: dict[str, Any] = {name: np.asarray(np.load(path, mmap_mode="c")) for name, path in self.arrays.items()}
        return Examples(**arrays, **self.attributes)


def _train_stored(
    number: int, device: torch.device, dtype: torch.dtype, real: _Stored, synthetic: _Stored | None, path: Path,
    *rest: Any,
) -> None:  # fmt: skip
    """Train one network in a worker process."""

    def advance(n: int = 1, note: str = "") -> None:
        concurrency.shared[number] += n

    with devices.training_in(dtype):
        _train(Job(path, real.read(), synthetic.read() if synthetic else None, *rest), device, advance)
