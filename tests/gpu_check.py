"""What works on a GPU, and how fast: installation, tests, a scan and training, in one command.

    python3 tests/gpu_check.py [--wheels DIR] [--device cpu] [--out FILE]         # make gpu-check

Needs Python 3.11 with venv, and no other package, before it installs galscan into a virtual environment; with
``--wheels`` from a folder of wheels, without a network. ``--no-deps`` installs all wheels of the folder beside the
packages of this interpreter, for a machine whose PyTorch is another release: then few wheels are needed. Each step has
a time limit; one that fails or takes too long does not stop the others. All exit codes, times and figures are written
to one JSON file after every step, so that an interrupted check leaves what it found. The exit code is 1 if a step
failed. ``--device cpu`` runs the same steps without CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULT = "GALSCAN-RESULT "  # start of the line of stdout with the figures of a step
LONGEST = 470.0  # seconds for all steps together, which leaves time to write the result within eight minutes
LAST_LINES = 30  # of the output of a step that fails
TRAINING = 120.0  # seconds of training, of the networks and of the generator; less where the steps before took long
PAUSE = 25.0  # seconds that a training step takes beside the training
SECONDS = "GALSCAN_CHECK_SECONDS"  # environment variable of the steps that train

_DEVICE = """
import json, torch
name, pick = "{device}", "{device}"
facts = {{"torch": torch.__version__, "cuda": torch.cuda.is_available(), "cores": __import__("os").cpu_count()}}
if name == "cuda":
    facts |= {{"gpu": torch.cuda.get_device_name(), "bf16": torch.cuda.is_bf16_supported()}}
x = torch.rand(64, 64, device=name)
facts["sum"] = float((x @ x).sum())
print("{result}" + json.dumps(facts))
"""
_GENERATOR = """
import json, os, shutil, galscan
from pathlib import Path
out, minutes = Path(r"{work}") / "generator.safetensors", float(os.environ["{variable}"]) / 60
out.unlink(missing_ok=True)
shutil.rmtree(Path(str(out) + ".partial"), ignore_errors=True)  # of an interrupted check
done = galscan.train_generator(out, kind="flow", count={count}, size={size}, budget=minutes, device="{device}")
figures = {{key: done[key] for key in ("steps", "seconds", "loss", "galaxies")}}
figures["steps_per_s"] = done["steps"] / done["seconds"]
print("{result}" + json.dumps(figures))
"""
_COMMITTEE = """
import json, os, time
from pathlib import Path
import galscan, torch
from galscan.core import device as devices
from galscan.labels.settings import ClassifierSettings
from galscan.training.train import Examples, train_classifier
work, device = Path(r"{work}"), torch.device("{device}")
store = galscan.ingest("simulated", out=work / "train.zarr", count={count}, size={size}, seed=93, rare_fraction=0.1)
target = (store.column("truth/target_dustlane") > 0.5)[:, None].astype("float32")
real = Examples(store.images(), target, target[:, :0])
times, stop = [], time.monotonic() + float(os.environ["{variable}"])
class Enough(Exception):
    pass
def advance(n=1, note=""):
    times.append(time.monotonic())
    if times[-1] > stop:
        raise Enough
members = 0
try:
    while True:
        train_classifier(real, None, ClassifierSettings(), steps={steps}, seed=members, device=device, advance=advance)
        members += 1
except Enough:
    pass
first = min(10, len(times) // 2)
rate = (len(times) - 1 - first) / max(times[-1] - times[first], 1e-9)
figures = {{"steps": len(times), "steps_per_s": rate, "networks": members}}
figures["dtype"] = str(devices.training_dtype(device))
print("{result}" + json.dumps(figures))
"""


class Step(NamedTuple):
    name: str
    command: list[str]
    seconds: float
    figures: Path | None = None
    """JSON file with the figures, if they are not in the output."""
    trains: bool = False
    """Whether it trains for as many seconds as it is given, up to `TRAINING`."""


def main(argv: list[str] | None = None) -> int:
    """Run the steps; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels, from which alone packages are installed")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu skips only CUDA itself")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the result")
    parser.add_argument("--work", type=Path, default=Path("gpu-check-work"), help="folder of what is built")
    parser.add_argument("--no-deps", action="store_true", help="install all wheels of --wheels, and nothing else")
    parser.add_argument("--no-install", action="store_true", help="use this interpreter and what is installed for it")
    parser.add_argument("--short", action="store_true", help="seconds per step: shows that the check itself works")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps only")
    options = parser.parse_args(argv)
    if options.no_deps and not options.wheels:
        parser.error("--no-deps installs the wheels of a folder: give --wheels DIR")
    if options.wheels and not list(options.wheels.glob("*.whl")):
        parser.error(f"--wheels {options.wheels}: no wheel there; fill it with pip download -d {options.wheels} .")
    options.work.mkdir(parents=True, exist_ok=True)
    todo = steps(options)
    if unknown := set(options.only or ()) - {step.name for step in todo}:
        parser.error(f"no step {', '.join(sorted(unknown))}; steps: {', '.join(step.name for step in todo)}")
    report: dict[str, object] = {
        "device": options.device, "short": options.short, "python": platform.python_version(),
        "machine": platform.machine(), "steps": {},
    }  # fmt: skip
    todo = [step for step in todo if step.name in (options.only or [step.name])]
    started = time.monotonic()
    done: dict[str, dict[str, object]] = {}
    for k, step in enumerate(todo):
        left = LONGEST - (time.monotonic() - started)
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(options.work.resolve() / "site")])}
        if step.trains:
            each = left / sum(other.trains for other in todo[k:]) - PAUSE
            environment[SECONDS] = str(4.0 if options.short else max(1.0, min(TRAINING, each)))
        done[step.name] = {"code": None, "why": "no time is left"}
        if left > 5:
            done[step.name] = run(step, min(step.seconds, left), environment)
        report["steps"], report["seconds"] = done, round(time.monotonic() - started, 1)
        write(options.out, report)
        print(f"{step.name:<10} {done[step.name]}"[:300], file=sys.stderr, flush=True)
    return int(any(step["code"] != 0 for step in done.values()))


def steps(options: argparse.Namespace) -> list[Step]:
    """Return all steps in order."""
    short, device, work = options.short, options.device, options.work.resolve()
    here = options.no_install or options.no_deps
    environment = work / "venv"
    python = sys.executable if here else str(environment / "bin" / "python")
    values = {
        "device": device, "work": str(work), "result": RESULT, "variable": SECONDS, "size": 32 if short else 64,
        "count": 64 if short else 3000, "steps": 10 if short else 1200,
    }  # fmt: skip
    chosen = "gpu" if device == "cuda" else "not slow and not network and not gpu"
    tests = ["tests/core/test_device.py"]
    if device == "cuda":  # other files need more packages
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        tests = [str(path.relative_to(ROOT)) for path in files if "@pytest.mark.gpu" in path.read_text("utf-8")]
    scan = [python, "-m", "tests.benchmarks.scan", "--device", device, "--work", str(work), "--repeats", "1"]
    quick = short or device == "cpu"
    result = ROOT / "tests" / "benchmarks" / "results" / f"scan{'-quick' if quick else ''}.json"
    return [
        *([] if options.no_install else _install(options, environment, work / "site")),
        Step("device", [python, "-c", _DEVICE.format(**values)], 90),
        Step("tests", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen, *tests], 120),
        Step("scan", [*scan, *(["--quick"] if quick else [])], 200, result),
        Step("committee", [python, "-c", _COMMITTEE.format(**values)], TRAINING + 2 * PAUSE, trains=True),
        Step("generator", [python, "-c", _GENERATOR.format(**values)], TRAINING + 2 * PAUSE, trains=True),
    ]


def _install(options: argparse.Namespace, environment: Path, site: Path) -> list[Step]:
    """Return the steps that install galscan and what its tests need."""
    pip = ["-m", "pip", "install", "-q"]
    if options.no_deps:
        wheels = [str(path.resolve()) for path in sorted(options.wheels.glob("*.whl"))]
        command = [sys.executable, *pip, "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
        return [Step("install", [*command, *wheels], 120)]
    python = str(environment / "bin" / "python")
    source = ["--no-index", "--find-links", str(options.wheels.resolve())] if options.wheels else []
    needed = ["-c", str(ROOT / "constraints.txt"), "-e", str(ROOT), "pytest", "pytest-timeout", "hypothesis", "psutil"]
    return [
        Step("venv", [sys.executable, "-m", "venv", str(environment)], 60),
        Step("install", [python, *pip, *source, *needed], 180),
    ]


def run(step: Step, seconds: float, environment: dict[str, str]) -> dict[str, object]:
    """Run one step; return exit code, time and figures, and the end of the output where it failed."""
    before = step.figures.stat().st_mtime_ns if step.figures and step.figures.is_file() else 0
    started = time.monotonic()
    process = subprocess.Popen(
        step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        output, code = process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        output, code = process.communicate()[0], 124
    found: dict[str, object] = {"code": code, "seconds": round(time.monotonic() - started, 1)}
    lines = output.splitlines()
    for line in lines:
        if line.startswith(RESULT):
            found["figures"] = json.loads(line.removeprefix(RESULT))
    if step.figures and step.figures.is_file() and step.figures.stat().st_mtime_ns > before:
        found["figures"] = json.loads(step.figures.read_text(encoding="utf-8"))["figures"]
    if step.name == "tests" and lines:
        found["figures"] = lines[-1].strip("= ")
    if code:
        found["why"] = f"longer than {seconds:.0f} s" if code == 124 else f"exit code {code}"
        found["output"] = lines[-LAST_LINES:]
    return found


def write(path: Path, report: dict[str, object]) -> None:
    """Write the report; an interruption leaves the one before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
