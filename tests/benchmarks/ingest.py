"""Real surveys in: objects fetched from a service that misbehaves, by an ingest that is killed, at an allowed rate.

    python -m tests.benchmarks.ingest [--quick] [--json]

Ten thousand objects come from SDSS on loopback, which answers one request in twenty badly: too many requests, errors,
silence, half a picture, a page of HTML, a black tile, a bomb, another host. The command is killed (SIGKILL) twice and
given again; then once more with --retry-failed. What is counted is counted at the server, and in the store. Beside it
stand two figures of tests.benchmarks.frames, measured here again: cutouts from a mosaic over those of ESA's Cutana
(null, and the reason, where that is not installed: ``pip install cutana``), and how far pixels are from astropy's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import galscan
from galscan.store.layout import Store
from galscan.surveys.base import UNUSABLE
from tests.benchmarks import frames
from tests.benchmarks._record import arguments, record, work_folder
from tests.services import sky
from tests.services.loopback import Loopback, galaxies, loopback

BAD = (
    "429", "429-after", "500", "503", "slow", "truncated", "shorter", "html", "black", "redirect", "bomb", "reset",
)  # fmt: skip
PER_MINUTE = 2400.0  # below what two cores manage, so that it is the pace that limits
WINDOW = 10.0  # seconds; in shorter ones the unevenness of loopback itself shows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("ingest", __doc__ or "").parse_args(argv)
    work = work_folder("ingest", options, new=True)
    figures = by_service(work, 1000 if options.quick else 10_000, options.seed)
    figures |= frames.beside_cutana(options.work, options.quick, options.seed)
    record("ingest", options, figures)
    return figures


def by_service(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Fetch `count` objects from a service that misbehaves, killed twice."""
    with loopback(objects=10) as services:
        return ingest_under_fire(services, work, count=count, share=0.05, per_minute=PER_MINUTE, seed=seed)


def ingest_under_fire(
    services: Loopback, work: Path, *, count: int, share: float, per_minute: float, seed: int = 0, cache: bool = True,
    kills: int = 2,
) -> dict[str, Any]:  # fmt: skip
    """Ingest, kill, ingest again ... and once more what failed; return what became of the objects."""
    table = galaxies(work / "objects.csv", count, seed=seed)
    survey = services.survey("sdss", work, per_minute=per_minute, connections=8, timeout=1.5, max_mb=5.0)
    services.behave(*BAD, share=share, seed=seed, slow=2.0, after=1)
    out = work / "sdss.zarr"
    command = [
        sys.executable, "-m", "galscan", "ingest", "--survey", str(survey), "--catalog", str(table), "--out", str(out),
    ] + ([] if cache else ["--no-cache"])  # fmt: skip
    environment = os.environ | {"GALSCAN_HOME": str(work / "home")}
    started = time.perf_counter()
    killed = 0
    for k in range(kills):
        killed += _kill_at(services, (k + 1) * count // (kills + 1), command, environment)
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first = _outcomes(out)
    bad = sum(bool(mode) for *_, mode in services.log())
    retry = subprocess.run([*command, "--retry-failed"], env=environment, capture_output=True, text=True)
    if retry.returncode:
        raise RuntimeError(retry.stderr)
    log = services.log()
    wall = time.perf_counter() - started
    results = accounted(galscan.open(out), pd.read_csv(table), out.with_suffix(".manifest.parquet"))
    return {
        "objects": count, **results, "failed_at_first": first["failed"], "kills": killed, "requests": len(log),
        "bad_answers": bad, "asked_again": _needless(log), "wall_s": round(wall, 1),
        "rate_over_limit": round(rate_over_limit([t for t, *_ in log], per_minute), 4),
    }  # fmt: skip


def _kill_at(services: Loopback, requests: int, command: list[str], environment: dict[str, str]) -> int:
    """Run the command and kill it after so many requests; return whether it still ran."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and services.count() < requests:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    return int(process.wait() == -signal.SIGKILL)


def _outcomes(out: Path) -> dict[str, int]:
    counts = pd.read_parquet(out.with_suffix(".manifest.parquet"))["outcome"].value_counts()
    return {kind: int(counts.get(kind, 0)) for kind in ("stored", "no_coverage", "failed")}


def accounted(store: Store, wanted: pd.DataFrame, manifest: Path) -> dict[str, int]:
    """Return the outcomes, and how many objects are lost, doubled, or stored with the picture of another."""
    ids, results = store.column("id"), pd.read_parquet(manifest)
    images, ra, dec = store.images(), store.column("ra"), store.column("dec")
    good = np.flatnonzero(store.column("flags") & int(UNUSABLE) == 0)
    wrong = sum(sky.read_code(images[k]) != sky.code(ra[k], dec[k]) for k in good)
    kinds = results["outcome"].value_counts()
    unlike = set(results["id"][results["outcome"] == "stored"]) ^ set(ids[good].tolist())
    return {kind: int(kinds.get(kind, 0)) for kind in ("stored", "no_coverage", "failed")} | {
        "lost": len(set(wanted["id"]) - set(ids.tolist())) + len(set(wanted["id"]) - set(results["id"])) + len(unlike),
        "doubled": len(ids) - len(set(ids.tolist())) + len(results) - results["id"].nunique(), "wrong": int(wrong),
    }  # fmt: skip


def _needless(log: list[tuple[float, str, str]]) -> int:
    """Return the requests for what had been answered well before."""
    answered: set[str] = set()
    again = 0
    for _, path, mode in log:
        again += path in answered
        if not mode:
            answered.add(path)
    return again


def rate_over_limit(times: list[float], per_minute: float, window: float = WINDOW) -> float:
    """Return the largest number of requests in any `window` of seconds over what the limit allows in it."""
    at = np.sort(times)
    within = np.searchsorted(at, at + window, side="left") - np.arange(len(at))
    return float(within.max() / (per_minute * window / 60))


if __name__ == "__main__":
    main()
