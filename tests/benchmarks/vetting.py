"""Whether grades are lost or doubled, when the server behind the page dies while people grade.

    python -m tests.benchmarks.vetting [--quick] [--json]

A thousand grades of seven graders go through the real page, in Chromium; the server is killed (SIGKILL) after 20 to
120 of them, every other time within 30 ms of a key, and started anew.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import galscan
from tests.benchmarks._record import arguments, record
from tests.grading import grade_under_fire
from tests.helpers import tiny_bundle, tiny_store


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("vetting", __doc__ or "").parse_args(argv)
    work = options.work / "vetting"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    store = tiny_store(work / "sky.zarr", 700, 32, survey="sky")
    model = tiny_bundle(work / "model").path
    galscan.scan(store=store.path, model=model, out=work / "run", top=120, workers=1)
    started = time.monotonic()
    told = grade_under_fire(work / "run", work / "chromium", 100 if options.quick else 1000, options.seed)
    figures = {
        "grades": told["grades"], "kills": told["kills"], "grades_lost": told["lost"],
        "grades_doubled": told["doubled"], "grades_per_minute": told["grades_per_minute"],
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    record("vetting", options, figures)
    return figures


if __name__ == "__main__":
    main()
