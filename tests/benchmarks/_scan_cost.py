"""What a scan costs beside a bare loop: whole processes over two counts of the same survey, which gives two lines.

The cost of a further galaxy is the slope of a line, the fixed cost is where the line of the scan begins. The networks
have random weights, as the time does not depend on them. The loop is run as

    python -m tests.benchmarks._scan_cost STORE MODEL NETWORK COUNT WORKERS
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from galscan.models.ensemble import load_scorer
from galscan.models.model import open_model
from galscan.scanning.run import open_run
from galscan.store.layout import open_store

MEMBERS, WIDTH = 3, 16
PIECE = 1024  # galaxies read at a time, as by a scan


def model_of(path: Path, size: int) -> Path:
    """Write a model with random weights; an existing one is kept."""
    import torch

    from galscan.labels.recipe import load_recipe
    from galscan.labels.schema import load_schema
    from galscan.models.network import GalaxyNet
    from tests.helpers import tiny_model

    if not (path / "model.json").is_file():
        recipe, schema = load_recipe("dustlane"), load_schema("simulated")
        torch.manual_seed(0)
        answers = len(schema.complete(recipe.schemas["simulated"].morphology))
        tiny_model(path, size=size, networks=[GalaxyNet(WIDTH, answers).eval() for _ in range(MEMBERS)])
    return path


def measure(
    store: Path, model: Path, network: Path | None, counts: tuple[int, int], workers: int, repeats: int, work: Path
) -> dict[str, Any]:
    """Time scan and bare loop, interleaved, over two counts of galaxies; return the figures, medians over repeats."""
    seconds: dict[str, list[list[float]]] = {"scan": [], "loop": []}
    fractions: list[float] = []  # of the time of the process, that run.json reports
    for _ in range(repeats):
        rows: dict[str, list[float]] = {"scan": [], "loop": []}
        for count in counts:
            out = work / "fixed-run"
            shutil.rmtree(out, ignore_errors=True)
            rows["scan"].append(_timed(
                "galscan", "scan", "--store", store, "--model", model, "--out", out, "--limit", count,
                "--workers", workers, "--top", 1000, "--no-cascade", "--device", "cpu",
            ))  # fmt: skip
            rows["loop"].append(_timed("tests.benchmarks._scan_cost", store, model, network or "none", count, workers))
        reported = open_run(work / "fixed-run").info.wall_s
        fractions.append((reported or 0.0) / rows["scan"][-1])
        for name, values in rows.items():
            seconds[name].append(values)
    lines = {name: [_line(counts, values) for values in rows] for name, rows in seconds.items()}
    slope = {name: statistics.median(line[1] for line in of) for name, of in lines.items()}
    pairs = zip(lines["scan"], lines["loop"], strict=True)
    return {
        "fixed_cost_s": statistics.median(line[0] for line in lines["scan"]),
        "marginal_to_bare_loop": statistics.median(scan[1] / loop[1] for scan, loop in pairs),
        "further_images_per_s": 1 / slope["scan"], "bare_loop_images_per_s": 1 / slope["loop"],
        "bare_loop_fixed_s": statistics.median(line[0] for line in lines["loop"]),
        "reported_fraction": statistics.median(fractions), "fixed_counts": list(counts),
        "fixed_seconds": seconds, "fixed_repeats": repeats,
        "fixed_workers": workers, "fixed_openvino": network is not None,
    }  # fmt: skip


def _line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return the seconds of no galaxies, and those of each."""
    slope = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    return seconds[0] - counts[0] * slope, slope


def _timed(module: str, *arguments: Any) -> float:
    """Run a module as a process of its own; return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - started


def _loop(store: Path, model: Path, network: Path | None, first: int, last: int) -> None:
    """Score some rows of a store, and keep nothing."""
    import torch

    torch.set_num_threads(1)
    opened, bundle = open_store(store), open_model(model)
    score = load_scorer([bundle], "cpu", converted=network)
    batch = bundle.recipe.scan.batch
    for start in range(first, last, PIECE):
        images = opened.images(slice(start, min(start + PIECE, last)))
        for k in range(0, len(images), batch):
            score(images[k : k + batch])


def main() -> None:
    """Run the loop over the first galaxies of a store, in some processes."""
    store, model, network, count, workers = sys.argv[1:]
    parts, shard = int(workers), open_store(Path(store)).shard
    ends = [min(round(int(count) * k / parts / shard) * shard, int(count)) for k in range(parts)] + [int(count)]
    converted = None if network == "none" else Path(network)
    # As in the workers of a scan, so that the libraries of the processes have one thread each.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(parts, get_context("spawn")) as pool:
        for future in [
            pool.submit(_loop, Path(store), Path(model), converted, ends[k], ends[k + 1]) for k in range(parts)
        ]:
            future.result()


if __name__ == "__main__":
    main()
