"""A scan beside what a user would write or use instead, on the same galaxies with the same networks.

    python -m tests.benchmarks.peers [--quick] [--json] [--hyrax PYTHON] [--anomalymatch PYTHON] [--zoobot PYTHON]

Each is a whole process, imports and report included, and they are interleaved:

    galscan, cascade   ``galscan scan`` without and with the prefilter
    bare               a loop over the Zarr store in one process per core, with the networks as galscan runs them
    jpeg               PyTorch's DataLoader over one JPEG file a galaxy, with the networks as galscan runs them
    hyrax, anomalymatch, zoobot
                       the package's own inference (`tests/benchmarks/_peers.py`), with the networks as TorchScript

The last three need an interpreter of an environment in which the package is installed; their figures are null without
one, or if they fail, with the reason in ``reasons``. A ratio is the rate of galscan over theirs. Survey and model are
those of the benchmark `scan`, and are shared with it where they are in ``--work``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import galscan
from galscan.core.concurrency import cores
from tests.benchmarks import scan as scans
from tests.benchmarks._record import arguments, record, work_folder
from tests.helpers import tiny_model, tiny_store

REPEATS = 3
PEERS = ("hyrax", "anomalymatch", "zoobot")
LONGEST = 1_800  # seconds of one process
ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("peers", __doc__ or "")
    for name in PEERS:
        parser.add_argument(f"--{name}", type=Path, metavar="PYTHON", help=f"interpreter of an environment with {name}")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args(argv)
    if options.quick:
        work = work_folder("peers", options, new=True).resolve()
        store, model = tiny_store(work / "survey.zarr", 300, 32).path, tiny_model(work / "model", members=3)
    else:
        work = work_folder("scan", options).resolve()
        base, model = scans.prepared(work, 64, quick=False, seed=options.seed)
        store = scans.repeated(work / "tenth.zarr", base, 2)
    survey = galscan.open(store)
    folder = scans.jpeg_files(work / "all-jpegs", survey.images())
    network = _scripted(model, work / "network.pt", survey.size)

    commands = _commands(options, store, model, folder, network, work / "peers")
    reasons: dict[str, str] = {
        name: f"no interpreter: --{name} PYTHON" for name in PEERS if getattr(options, name) is None
    }
    if model.prefilter is None:
        commands.pop("cascade")
        reasons["cascade"] = "the model has no prefilter"
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 if options.quick else options.repeats):
        for name, command in commands.items():
            if name not in reasons:
                rate = _rate(command, work / "peers", survey.count)
                if isinstance(rate, str):
                    reasons[name] = rate
                else:
                    rates[name].append(rate)
    figures = _figures(rates) | {
        "reasons": reasons, "rates": rates, "objects": survey.count, "size": survey.size, "members": model.members,
        "workers": options.workers, "repeats": 1 if options.quick else options.repeats,
    }  # fmt: skip
    record("peers", options, figures)
    return figures


def _figures(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios to galscan's median rates; None where either is missing."""
    median = {name: statistics.median(values) for name, values in rates.items() if values}
    figures: dict[str, Any] = {}
    for end, ours in (("", "galscan"), ("_cascade", "cascade")):
        for key, name in [("bare_loop", "bare"), ("jpeg_loader", "jpeg"), *((f"peer_{name}", name) for name in PEERS)]:
            known = ours in median and name in median
            figures[f"{key}_ratio{end}"] = median[ours] / median[name] if known else None
    return figures


def _commands(
    options: argparse.Namespace, store: Path, model: Any, folder: Path, network: Path, out: Path
) -> dict[str, list[str]]:
    """Return the command of each, which prints the number of galaxies scored as the last line of stdout."""
    workers, batch = str(options.workers), str(model.recipe.scan.batch)
    given = [str(store), str(model.path), str(out / "run"), workers]
    commands = {
        name: [sys.executable, "-c", f"from tests.benchmarks.peers import {call}", *given]
        for name, call in {
            "galscan": "scan; scan(cascade=False)", "cascade": "scan; scan(cascade=True)", "bare": "bare; bare()",
            "jpeg": "jpeg; jpeg()",
        }.items()
    }  # fmt: skip
    commands["jpeg"][3] = str(folder)
    script = str(Path(__file__).with_name("_peers.py"))
    for name in PEERS:
        if (python := getattr(options, name)) is not None:
            commands[name] = [str(python), script, name, str(network), str(folder), workers, batch, str(out)]
    return commands


def _rate(command: list[str], out: Path, count: int) -> float | str:
    """Return the galaxies per second of a process that scores `count`; or why there is none."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=out, capture_output=True, text=True, timeout=LONGEST, env={**os.environ, "PYTHONPATH": path}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:300]
    seconds = time.perf_counter() - started
    if done.returncode:
        return ([*done.stderr.splitlines(), f"exit code {done.returncode}"][-2 if done.stderr else -1])[:300]
    scored = (done.stdout.splitlines() or [""])[-1]
    return count / seconds if scored == str(count) else f"{scored or 'no'} of {count} galaxies scored"


def scan(*, cascade: bool) -> None:
    """Scan a store (arguments: store, model, run, workers)."""
    store, model, out, workers = sys.argv[1:]
    run = galscan.scan(store=store, model=model, out=out, workers=int(workers), top=1000, cascade=cascade)
    print(run.info.scanned)


def bare() -> None:
    """Score a store in a loop per core (arguments: store, model, run, workers)."""
    store, model, out, workers = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    out.mkdir(parents=True)
    opened, converted = galscan.open(model), scans.converted_network(galscan.open(model), out / "network.xml")
    count, batch = galscan.open(store).count, opened.recipe.scan.batch
    step = -(-count // workers // batch) * batch  # whole batches for each process
    parts = [(store, model, converted, start, min(start + step, count)) for start in range(0, count, step)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        scores = np.concatenate(list(pool.map(_score_part, parts)))
    np.save(out / "scores.npy", scores)
    print(len(scores))


def _score_part(part: tuple[str, str, Path | None, int, int]) -> np.ndarray:
    import torch

    from galscan.models.ensemble import load_scorer

    store, model, converted, start, stop = part
    torch.set_num_threads(1)
    opened, images = galscan.open(model), galscan.open(store)
    score, batch = load_scorer([opened], "cpu", converted=converted), opened.recipe.scan.batch
    found = [score(images.images(slice(k, min(k + batch, stop)))).score for k in range(start, stop, batch)]
    return np.concatenate(found)


def jpeg() -> None:
    """Score a folder of JPEG files by a DataLoader (arguments: folder, model, run, workers)."""
    folder, model, out, workers = sys.argv[1:]
    scores = np.concatenate(list(_loaded(Path(folder), galscan.open(model), int(workers))))
    Path(out).mkdir(parents=True)
    np.save(Path(out) / "scores.npy", scores)
    print(len(scores))


def _loaded(folder: Path, model: Any, workers: int) -> Iterator[np.ndarray]:
    from torch.utils.data import DataLoader

    from galscan.models.ensemble import load_scorer

    score = load_scorer([model], "cpu")
    for batch in DataLoader(scans.JpegFiles(folder), batch_size=model.recipe.scan.batch, num_workers=workers):
        yield score(batch.numpy()).score


def _scripted(model: Any, path: Path, size: int) -> Path:
    """Write the networks of a model as TorchScript: pixels in 0..1, (n, 3, S, S), to their mean logit, (n, 1)."""
    import torch

    from galscan.models.ensemble import load_ensemble

    ensemble = load_ensemble([model])

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunks = torch.nn.ModuleList(ensemble.trunks)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.sqrt()  # as galscan.models.network.to_unit
            return torch.stack([trunk(x)[0] for trunk in self.trunks]).mean(0)

    with torch.inference_mode():
        torch.jit.trace(Mean().eval(), torch.rand(4, 3, size, size), check_trace=False).save(str(path))
    return path


if __name__ == "__main__":
    main()
