"""Whether grades are lost or doubled, when the server behind the page dies while people grade.

    python -m tests.benchmarks.vetting [--quick] [--json]

A thousand grades of seven graders go through the real page, in Chromium; the server is killed (SIGKILL) after 20 to
120 of them, every other time within 30 ms of a key, and started anew.
"""

from __future__ import annotations

import time
from typing import Any

import galscan
from tests.benchmarks._record import arguments, record, work_folder
from tests.grading import grade_with_kills
from tests.helpers import tiny_model, tiny_store


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("vetting", __doc__ or "").parse_args(argv)
    work = work_folder("vetting", options, new=True)
    store = tiny_store(work / "sky.zarr", 700, 32, survey="sky")
    model = tiny_model(work / "model").path
    galscan.scan(store=store.path, model=model, out=work / "run", top=120, workers=1)
    started = time.monotonic()
    counts = grade_with_kills(work / "run", work / "chromium", 100 if options.quick else 1000, options.seed)
    figures = {
        "grades": counts["grades"], "kills": counts["kills"], "grades_lost": counts["lost"],
        "grades_doubled": counts["doubled"], "grades_per_minute": counts["grades_per_minute"],
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    record("vetting", options, figures)
    return figures


if __name__ == "__main__":
    main()
