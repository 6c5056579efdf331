"""How fast a scan is, against the same network on data in memory, on JPEG files, and with a first look.

    python -m tests.benchmarks.scan [--quick] [--json] [--device cuda] [--only fixed]

Everything in one run and interleaved, so that ratios mean something on a machine that is never quite quiet. The
survey is simulated, 0.2 % of it dusty early types; the million is made of 50,000 such galaxies, turned and mirrored.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import galscan
from galscan.core.concurrency import cores
from galscan.labels.recipe import load_recipe
from galscan.models.ensemble import load_ensemble, load_scorer
from galscan.scanning.run import Run
from galscan.store import layout
from tests.benchmarks import _scan_cost
from tests.benchmarks._record import arguments, record, work_folder
from tests.helpers import tiny_recipe

REPEATS = 3


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("scan", __doc__ or "")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument(
        "--only", choices=("fixed",), help="cost of a scan beside a bare loop alone; written to results/scan-fixed.json"
    )
    options = parser.parse_args(argv)
    if options.only == "fixed":
        return _fixed(options)
    quick, size = options.quick, 32 if options.quick else 64
    work = work_folder("scan", options)

    base, model = prepared(work, size, quick=quick, seed=options.seed)
    million = repeated(work / "million.zarr", base, 3 if quick else 20)
    tenth = repeated(work / "tenth.zarr", base, 1 if quick else 2)
    images = galscan.open(base).images(slice(0, 1_000 if quick else 20_000))
    folder = jpeg_files(work / "jpegs", images)

    def scan(store: Path, **how: Any) -> tuple[Any, float]:
        out = work / "run"
        shutil.rmtree(out, ignore_errors=True)
        with measured_peak() as peak:
            started = time.perf_counter()
            run = galscan.scan(store=store, model=model.path, out=out, workers=options.workers, top=1000, **how)
            run = Run(run.path, run.info.updated(wall_s=time.perf_counter() - started))  # the report included
        return run, peak[0]

    cascade = model.prefilter is not None  # a quick run has none
    converted = converted_network(model, work / "network.xml") if options.device == "cpu" else None
    how = {"device": options.device} | ({"cluster": "cuda"} if options.device == "cuda" else {})
    rates: dict[str, list[float]] = {name: [] for name in ("forward", "single", "cascade", "jpeg")}
    kept: list[float] = []
    peaks = {}
    for _ in range(1 if quick else options.repeats):
        rates["forward"].append(_forward(model.path, images, options.workers, options.device, converted))
        rates["jpeg"].append(_jpeg_rate(model, folder, options.workers, options.device))
        single, peaks["tenth"] = scan(tenth, cascade=False, **how)
        rates["single"].append(single.info.images_per_s)
        best = set(single.candidates["index"])
        first, _ = scan(tenth, cascade=cascade, **how)
        kept.append(len(best & set(first.candidates["index"])) / len(best))
    whole, peaks["million"] = scan(million, cascade=cascade, **how)
    rates["cascade"].append(whole.info.scanned / whole.info.wall_s)
    _, peaks["alone"] = scan(tenth, cascade=cascade, **how)
    median = {name: statistics.median(values) for name, values in rates.items()}
    figures = {
        "ratio_to_forward": median["single"] / median["forward"],
        "cascade_speedup": median["cascade"] / median["single"],
        "cascade_kept": min(kept),
        "jpeg_loader_ratio": median["cascade"] / median["jpeg"],
        "jpeg_loader_ratio_single": median["single"] / median["jpeg"],
        "million_objects": whole.info.scanned,
        "million_wall_s": whole.info.wall_s,
        "million_images_per_s": median["cascade"],
        "million_peak_mb": peaks["million"] / 1e6,
        "memory_growth": peaks["million"] / peaks["alone"] - 1,
        "million_seconds": whole.info.seconds,
        "busy": single.info.busy, "first_look": whole.info.first_look,
        "rates": rates, "members": model.members, "workers": options.workers, "size": size,
        "repeats": len(kept),
    }  # fmt: skip
    if options.device == "cuda":
        figures |= {"gpu_images_per_s": median["single"], "gpu_ratio_to_forward": figures["ratio_to_forward"],
                    "gpu_busy": single.info.busy}  # fmt: skip
    record("scan", options, figures)
    return figures


def prepared(work: Path, size: int, *, quick: bool, seed: int) -> tuple[Path, Any]:
    """Simulate a survey to scan, and train networks; return the store and the model."""
    # A survey of which a third is labelled: it trains the networks, and all of it the prefilter.
    count, rare = (900, 0.1) if quick else (48_000, 0.02)
    labelled = _simulated(work / "labelled.zarr", count, size, 81, rare, labelled=0.3)
    base = _simulated(work / "base.zarr", 2_000 if quick else 50_000, size, 82, 0.002)
    recipe = tiny_recipe(work / "dustlane.toml", size=size) if quick else work / "dustlane.toml"
    if not quick:  # at the size of the figures before: rates depend on it
        shipped = load_recipe("dustlane")
        recipe.write_text(shipped.text.replace(f"size = {shipped.size}", f"size = {size}", 1), encoding="utf-8")
    return base, galscan.train_rare(str(recipe), store=labelled, out=work / "model", synthetic=False, seed=seed)


def _fixed(options: Any) -> dict[str, Any]:
    """Measure the fixed cost of a scan, and the cost of each further galaxy beside a bare loop."""
    quick, size = options.quick, 32 if options.quick else 64
    work = work_folder("scan", options)
    base = _simulated(work / "fixed-base.zarr", 500 if quick else 10_000, size, 82, 0.002)
    store = repeated(work / "fixed.zarr", base, 4 if quick else 10)
    model = _scan_cost.model_of(work / "fixed-model", size)
    converted = converted_network(galscan.open(model), work / "fixed-network.xml")
    counts = (500, 2_000) if quick else (20_000, 100_000)
    repeats = 1 if quick else options.repeats
    figures = _scan_cost.measure(store, model, converted, counts, options.workers, repeats, work)
    record("scan-fixed", options, figures, module="scan")
    return figures


def _simulated(path: Path, count: int, size: int, seed: int, rare: float, labelled: float = 1.0) -> Path:
    made = galscan.ingest(
        "simulated", out=path, count=count, size=size, seed=seed, rare_fraction=rare, labelled=labelled
    )
    return Path(made.path)


def repeated(path: Path, base: Path, times: int) -> Path:
    """Write `base` several times over, each time turned or mirrored, as a store of its own."""
    if (path / "done").is_file():
        return path
    store = galscan.open(base)
    group = layout.create(
        path, survey=path.stem, count=store.count * times, size=store.size, id_dtype=np.dtype("int64"), schemas={},
        provenance={"base": store.content_hash, "times": times},
    )  # fmt: skip
    shard, total = group.attrs["shard"], store.count * times
    images = store.images()
    columns = {name: store.column(name) for name in ("ra", "dec", "pixel_scale", "flags")}
    for start in range(0, total, shard):
        rows = np.arange(start, min(start + shard, total))
        turn, row = rows // store.count, rows % store.count
        some = images[row]
        for k in np.unique(turn):
            here = turn == k
            turned = np.rot90(some[here], k % 4, (1, 2))
            some[here] = turned[:, :, :: -1 if k // 4 % 2 else 1]
        group["images"][rows[0] : rows[-1] + 1] = some
        group["id"][rows[0] : rows[-1] + 1] = rows
        for name, values in columns.items():
            group[name][rows[0] : rows[-1] + 1] = values[row]
    layout.finish(path, f"{store.content_hash}-{times}")
    (path / "done").touch()
    return path


def _forward(model: Path, images: np.ndarray, workers: int, device: str, converted: Path | None) -> float:
    """Return the rate of the network alone, as the scan has it, in as many processes, on images they hold already."""
    if device == "cuda":
        return _time_forward(model, images, device, None)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = np.array_split(images, workers)
        return sum(pool.map(_time_forward, [model] * workers, parts, [device] * workers, [converted] * workers))


def _time_forward(model: Path, images: np.ndarray, device: str, converted: Path | None) -> float:
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    bundle = galscan.open(model)
    score, batch = load_scorer([bundle], device, converted=converted), bundle.recipe.scan.batch
    score(images[:batch])
    started = time.perf_counter()
    for start in range(0, len(images), batch):
        score(images[start : start + batch])
    return len(images) / (time.perf_counter() - started)


def converted_network(model: Any, path: Path) -> Path | None:
    """Convert the networks as a scan does, where it does."""
    from galscan.models.compiled import convert, has_openvino

    if not has_openvino():
        return None
    convert(load_ensemble([model]), model.size, path)
    return path


def jpeg_files(folder: Path, images: np.ndarray) -> Path:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        if not (path := folder / f"{k:06d}.jpg").is_file():
            Image.fromarray(image).save(path, quality=92)
    return folder


class JpegFiles:
    """What a user would write: one JPEG file a galaxy."""

    def __init__(self, folder: Path):
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(self.paths[k]))


def _jpeg_rate(model: Any, folder: Path, workers: int, device: str) -> float:
    from torch.utils.data import DataLoader

    score = load_scorer([model], device)
    loader = DataLoader(JpegFiles(folder), batch_size=model.recipe.scan.batch, num_workers=workers)
    started, done = time.perf_counter(), 0
    for batch in loader:
        score(batch.numpy())
        done += len(batch)
    return done / (time.perf_counter() - started)


@contextmanager
def measured_peak(every: float = 0.2) -> Iterator[list[float]]:
    """Measure the largest sum of memory (proportional set size) that this process and all below it held.

    The kernel counts it page by page, so that to look too often slows down what is measured.
    """
    peak, stop, me = [0.0], threading.Event(), psutil.Process()

    def held(process: psutil.Process) -> float:
        try:
            return float(process.memory_full_info().pss)
        except psutil.Error:
            return 0.0

    def watch() -> None:
        pause = every
        while not stop.wait(pause):
            started = time.perf_counter()
            peak[0] = max(peak[0], sum(map(held, [me, *me.children(recursive=True)])))
            pause = max(every, 50 * (time.perf_counter() - started))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
