"""One form for every benchmark: arguments, and a JSON file that says where its figures come from."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import galscan
from galscan.core.files import write_json

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("GALSCAN_TEST_DATA", "../shared/data"))  # real galaxies
PACKAGES = ("torch", "diffusers", "dask", "zarr", "numpy", "astropy")


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours; the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line of stdout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"), help="folder for what is built; resumes")
    return parser


def work_folder(name: str, options: argparse.Namespace, *, new: bool = False) -> Path:
    """Return the folder for what is built (another one for a quick run), emptied if `new`."""
    folder: Path = options.work / (f"{name}-quick" if options.quick else name)
    if new:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record(name: str, options: argparse.Namespace, figures: dict[str, Any], *, module: str = "") -> Path:
    """Write ``results/NAME.json`` (``NAME-quick.json`` for a quick run) and print the figures.

    `module` is the benchmark's, where it is not named so.
    """
    path = RESULTS / f"{name}{'-quick' if options.quick else ''}.json"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = {"galscan": galscan.__version__, "python": platform.python_version()}
    content = {
        "benchmark": name, "command": _command(module or name), "seed": options.seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": _processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1),
        },
        "versions": versions | {package: version(package) for package in PACKAGES}, "figures": figures,
    }  # fmt: skip
    write_json(path, content)
    for key, value in figures.items():
        print(f"{key:<28} {value}", file=sys.stderr)
    if options.json:
        print(json.dumps(figures))
    return path


def _command(name: str) -> str:
    """Return the command that gives these figures again, wherever it works and however it prints."""
    words = [w for k, w in enumerate(sys.argv[1:]) if w not in ("--json", "--work") and sys.argv[k] != "--work"]
    return " ".join([f"python -m tests.benchmarks.{name}", *words])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
