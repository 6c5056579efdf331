"""What an export of a million candidates takes: memory of the process, and time, for each format.

    python -m tests.benchmarks.export [--quick] [--json] [--rows N]

Every export is a process of its own, ``galscan export`` as a user calls it; its memory is the most that was resident
(VmHWM), Python and libraries included. The table is one Parquet file as a scan writes it. With `--known` there are
10,000 known objects, half of them candidates. The coverage map is of ten times as many objects as candidates.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core.sky import designation
from galscan.scanning.partitions import FINGERPRINT, scores_path
from tests.benchmarks._processes import run_measured
from tests.benchmarks._record import arguments, record, work_folder
from tests.candidate_tables import info, write_run

KNOWN, PART = 10_000, 500_000


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("export", __doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    rows = 20_000 if options.quick else options.rows
    work = work_folder("export", options, new=True)
    large, small = (_run(work / name, n) for name, n in (("large", rows), ("small", rows // 10)))
    known = _known(large, work / "known.csv")
    figures: dict[str, Any] = {"rows": rows}
    figures["export_tenth_mb"] = _export(small, work / "small.fits")[0]
    for name, suffix, more in (
        ("million", "fits", ()), ("votable", "vot", ()), ("parquet", "parquet", ()), ("csv", "csv", ()),
        ("ds9", "reg", ()), ("known", "known.fits", ("--known", known)), ("moc", "moc.fits", ("--order", 13)),
        *([("hats", "hats", ("--format", "hats"))] if find_spec("lsdb") else []),
    ):  # fmt: skip
        figures[f"export_{name}_mb"], figures[f"export_{name}_s"] = _export(large, work / f"large.{suffix}", *more)
    shutil.rmtree(work)
    record("export", options, figures)
    return figures


def made_up_candidates(rows: int) -> pd.DataFrame:
    """Return a table of so many candidates."""
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, rows), np.degrees(np.arcsin(rng.uniform(-1, 1, rows)))
    return pd.DataFrame({
        "designation": designation(ra, dec), "objid": np.arange(rows), "store": "sdss", "index": np.arange(rows),
        "ra": ra, "dec": dec, "rank": np.arange(1, rows + 1),
        "score": -np.sort(-rng.normal(size=rows)).astype(np.float32), "score_std": rng.random(rows).astype(np.float32),
        **{name: rng.random(rows) for name in ("p_target", "purity", "purity_lo", "purity_hi", "completeness")},
        "in_train": False, "flags": np.zeros(rows, np.uint8),
        **{f"answer_{k}": rng.random(rows).astype(np.float32) for k in range(7)},
    })  # fmt: skip


def _run(path: Path, rows: int) -> Path:
    """Write a finished run of so many candidates, and the scores of ten times as many objects."""
    rng, frame = np.random.default_rng(1), made_up_candidates(rows)
    parts = -(-10 * rows // PART)
    write_run(path, frame, candidates=rows, scanned=10 * rows, quarantined=0, parts=parts)
    mark = {FINGERPRINT: info()["fingerprint"].encode()}
    for folder in ("scores", "quarantine"):
        (path / folder).mkdir()
    for part in range(parts):
        n = min(PART, 10 * rows - part * PART)
        columns = {"id": np.arange(n), "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-60, 60, n)}
        scores = {"score": np.zeros(n, np.float32), "first_look": np.zeros(n, np.float32)}
        pq.write_table(pa.table(columns | scores).replace_schema_metadata(mark), scores_path(path, part))
        none = pa.table({"id": [0], "ra": [0.0], "dec": [0.0], "reason": [""]}).slice(0, 0)
        pq.write_table(none.replace_schema_metadata(mark), path / "quarantine" / scores_path(path, part).name)
    return path


def _known(run: Path, path: Path) -> Path:
    """Write a reference list: every other object a candidate, a little off, the rest anywhere."""
    rng = np.random.default_rng(1)
    table = pd.read_parquet(run / "candidates.parquet", columns=["ra", "dec"])
    some = table.iloc[rng.permutation(len(table))[: KNOWN // 2]]
    rest = pd.DataFrame({"ra": rng.uniform(0, 360, KNOWN // 2), "dec": rng.uniform(-90, 90, KNOWN // 2)})
    frame = pd.concat([some.assign(dec=some["dec"].clip(-89, 89) + 0.5 / 3600), rest])
    frame.assign(name=[f"K {k}" for k in range(len(frame))]).to_csv(path, index=False)
    return path


def _export(run: Path, out: Path, *more: Any) -> tuple[float, float]:
    """Export in a process of its own; return the most memory it held, in MB, and its seconds."""
    code = "import sys; from galscan.cli.main import run; assert run(sys.argv[1:]) == 0"
    return run_measured(code, "export", run, "--out", out, *more)[1:]


if __name__ == "__main__":
    main()
