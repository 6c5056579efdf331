"""Training of several networks: side by side, beside a busy process, and in bfloat16.

    python -m tests.benchmarks.training [--quick] [--json] [--repeats N]

Networks of width 16 are trained on a simulated survey of 64 px, a tenth of it dusty early types. Each time is that of a
whole process, imports included, and the kinds of training are interleaved:

    threads        the networks one after the other, with as many threads as cores
    side_by_side   as ``train-rare`` does: processes of one thread each, as many as cores

The busy process does arithmetic on one core. With threads beside it, one network is trained for fewer steps, and the
times of a step are compared. Both dtypes are compared on one thread, and by average precision on galaxies that no
network was trained on, with intervals of resampled networks and galaxies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import galscan
from galscan.core.concurrency import cores
from tests.benchmarks._record import arguments, record, work_folder

REPEATS, MEMBERS = 2, 3
STEPS, BUSY_STEPS, WARM_UP = 120, 20, 3  # of a network; with threads beside the busy process; not timed there
TRAIN, TEST, SIZE, RARE = 3_000, 5_000, 64, 0.1
ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("training", __doc__ or "")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args(argv)
    if options.quick:
        return _measure(options, repeats=1, members=2, steps=3, busy=3, counts=(80, 80), size=32)
    return _measure(
        options, repeats=options.repeats, members=MEMBERS, steps=STEPS, busy=BUSY_STEPS, counts=(TRAIN, TEST), size=SIZE
    )


def _measure(
    options: argparse.Namespace,
    *,
    repeats: int,
    members: int,
    steps: int,
    busy: int,
    counts: tuple[int, int],
    size: int,
) -> dict[str, Any]:
    work = work_folder("training", options)
    for seed, count in zip((91, 92), counts, strict=True):
        galscan.ingest("simulated", out=work / f"{seed}.zarr", count=count, size=size, seed=seed, rare_fraction=RARE)

    def run(how: str, **given: Any) -> dict[str, Any]:
        """Train in a process of its own; return what it prints, and its time."""
        task = {"work": str(work), "how": how, "steps": steps, "seed": options.seed, **given}
        threads = str(cores() if how == "threads" else 1)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        code = "import sys; from tests.benchmarks.training import train; train(sys.argv[1])"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(task)], cwd=ROOT, env={**os.environ, **limits},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return dict(json.loads(done.stdout.splitlines()[-1])) | {"seconds": time.perf_counter() - started}

    speedup = run("trial")["speedup"]
    dtype = "bf16" if run("chosen")["dtype"] == "torch.bfloat16" else "fp32"
    seconds: dict[str, list[float]] = {name: [] for name in ("threads", "side_by_side", "side_by_side_busy")}
    step: dict[str, list[float]] = {name: [] for name in ("threads", "threads_busy", "bf16", "fp32")}
    scores: dict[str, list[list[float]]] = {"bf16": [], "fp32": []}
    for k in range(repeats):
        seconds["threads"].append(run("threads", dtype=dtype, members=members)["seconds"])
        seconds["side_by_side"].append(run("side_by_side", dtype=dtype, members=members)["seconds"])
        step["threads"].append(run("threads", dtype=dtype, members=1, steps=busy)["step"])
        with busy_process():
            seconds["side_by_side_busy"].append(run("side_by_side", dtype=dtype, members=members)["seconds"])
            step["threads_busy"].append(run("threads", dtype=dtype, members=1, steps=busy)["step"])
        for name, found in scores.items():
            done = run("scores", dtype=name, seed=options.seed + 1 + k)
            step[name].append(done["step"])
            found.append(done["scores"])
    figures = _figures(seconds, step, {name: np.array(found) for name, found in scores.items()}, work, options.seed)
    figures |= {
        "trial_bf16_speedup": speedup, "training_dtype": dtype, "cores": cores(), "members": members, "steps": steps,
        "busy_steps": busy, "repeats": repeats, "size": size, "train": counts[0], "test": counts[1],
    }  # fmt: skip
    record("training", options, figures)
    return figures


def _figures(
    seconds: dict[str, list[float]], step: dict[str, list[float]], scores: dict[str, np.ndarray], work: Path, seed: int
) -> dict[str, Any]:
    from galscan.stats import metrics

    whole = {name: statistics.median(values) for name, values in seconds.items()}
    each = {name: statistics.median(values) for name, values in step.items()}
    targets = _targets(work / "92.zarr")
    figures: dict[str, Any] = {
        "training_speedup": whole["threads"] / whole["side_by_side"],
        "training_busy_ratio": whole["side_by_side_busy"] / whole["side_by_side"],
        "threads_busy_ratio": each["threads_busy"] / each["threads"],
        "training_bf16_speedup": each["fp32"] / each["bf16"],
    }
    for name, values in scores.items():
        summary = metrics.summarise(values, targets, seed)
        figures |= {
            f"ap_{name}{end}": summary[f"ap_{key}"] for end, key in (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))
        }
    change = metrics.gain(scores["bf16"], scores["fp32"], targets, seed)
    figures |= {f"ap_difference{end}": change[key] for end, key in (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))}
    return figures | {"seconds": seconds, "seconds_per_step": step}


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy within the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _targets(path: Path) -> np.ndarray:
    return np.asarray(galscan.open(path).column("truth/target_dustlane") > 0.5, int)


def train(task: str) -> None:
    """Do one task (JSON: work, how, steps, seed, dtype, members) in this process, and print its figures as JSON."""
    print(json.dumps(_train(**json.loads(task))))


def _train(work: str, how: str, steps: int, seed: int, dtype: str = "fp32", members: int = 1) -> dict[str, Any]:
    import torch

    from galscan.core import device as devices
    from galscan.labels.settings import ClassifierSettings
    from galscan.models.ensemble import member_scores
    from galscan.training.committee import Job, train_networks
    from galscan.training.train import Examples, train_classifier

    if how == "trial":
        return {"speedup": devices.bf16_speedup()}
    cpu = torch.device("cpu")
    if how == "chosen":
        return {"dtype": str(devices.training_dtype(cpu))}
    store = galscan.open(Path(work) / "91.zarr")
    target = _targets(store.path)[:, None].astype(np.float32)
    real = Examples(store.images(), target, np.empty((store.count, 0), np.float32))
    settings = ClassifierSettings()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with devices.training_in(devices.precision(dtype)):
        if how == "side_by_side":
            from tempfile import TemporaryDirectory

            with TemporaryDirectory(dir=work) as folder:
                jobs = [Job(Path(folder) / f"{k}.safetensors", real, None, settings, steps, seed * 1000 + k, "networks")
                        for k in range(members)]  # fmt: skip
                train_networks(jobs, cpu, workers=min(cores(), members))
            return {}
        clock, advance = _clock()
        networks = [
            train_classifier(real, None, settings, steps=steps, seed=seed * 1000 + k, device=cpu, advance=advance)
            for k in range(members)
        ]
    result: dict[str, Any] = {"step": clock()}
    if how == "scores":
        images = galscan.open(Path(work) / "92.zarr").images()
        result["scores"] = member_scores(networks, images, cpu)[0, :, 0].tolist()
    return result


def _clock() -> tuple[Callable[[], float], Callable[..., None]]:
    """Return a function that returns the mean time of a step, and the one to call after each step."""
    times: list[float] = []

    def advance(n: int = 1, note: str = "") -> None:
        times.append(time.perf_counter())

    def mean() -> float:
        first = min(WARM_UP, len(times) - 2)
        return (times[-1] - times[first]) / (len(times) - 1 - first)

    return mean, advance


if __name__ == "__main__":
    main()
