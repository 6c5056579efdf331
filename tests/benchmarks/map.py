"""How fluent the map of 100,000 objects is in a real browser.

    python -m tests.benchmarks.map [--quick] [--json]

The objects are fabricated: embeddings in twenty groups, of 128 numbers each, in the files that a scan writes; 2,000 are
candidates, and 1,500 have a thumbnail. `galscan map` makes the page, and Chromium opens it, in a window of 1300 x 900
pixels without a graphics processor. What is timed there is each redraw while the map is moved and zoomed, the search
for the object under the pointer, and a lasso around about half of the objects; frames per second are those that the
browser shows while the mouse drags the map.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import galscan
from galscan.store import layout
from tests.benchmarks._record import arguments, record, work_folder
from tests.benchmarks.similar import fabricate
from tests.chromium import Page, chromium
from tests.helpers import _blobs

CANDIDATES, SIZE = 2000, 32
# Times (ms) of so many redraws: the map moves in a circle and zooms in and out.
REDRAWS = """
new Promise((done) => {
  const times = [], start = fitted();
  for (let n = 0; n < %d; n++) {
    const angle = n / 10, zoomed = start.scale * (1.5 + Math.sin(angle / 2));
    const dx = Math.cos(angle) * 0.2 * width / zoomed, dy = Math.sin(angle) * 0.2 * height / zoomed;
    view = { x: start.x + dx, y: start.y + dy, scale: zoomed };
    const before = performance.now();
    draw();
    times.push(performance.now() - before);
  }
  done(times);
})
"""
# Mean time (ms) of a search: the clock of a browser is too coarse for one.
POINTER = """
(() => {
  const before = performance.now();
  for (let n = 0; n < 200; n++) nearest(width * ((n * 0.37) % 1), height * ((n * 0.61) % 1));
  return (performance.now() - before) / 200;
})()
"""
LASSO = """
(() => {
  const path = Array.from({ length: 200 }, (_, n) => {
    const angle = n * Math.PI / 100;
    return [width / 2 + width / 3 * Math.cos(angle), height / 2 + height / 3 * Math.sin(angle)];
  });
  const before = performance.now();
  lasso(path, false);
  return performance.now() - before;
})()
"""
FRAMES = "window.frames_ = 0; (function next() { window.frames_++; requestAnimationFrame(next); })(); 0"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("map", __doc__ or "").parse_args(argv)
    work = work_folder("map", options, new=True)
    count = 10_000 if options.quick else 100_000
    run = fabricate_scan(work, count, options.seed)
    made = galscan.make_map(run, max_points=count, seed=options.seed)
    figures: dict[str, Any] = {
        "points": made["points"], "images": made["images"], "make_s": made["seconds"],
        "page_mb": round(made["bytes"] / 1e6, 2),
    }  # fmt: skip
    with chromium(work / "chromium") as page:
        started = time.perf_counter()
        page.open(Path(made["file"]).absolute().as_uri())
        page.wait("document.body.dataset.ready === 'yes'", 120)
        figures["open_s"] = round(time.perf_counter() - started, 2)
        assert page.run("count") == made["points"]
        page.wait("new Set(pixels).size > 50")
        redraws = page.run(REDRAWS % (20 if options.quick else 200))
        figures |= {
            "redraw_ms": round(float(np.median(redraws)), 2),
            "redraw_95_ms": round(float(np.quantile(redraws, 0.95)), 2),
            "pointer_ms": round(float(page.run(POINTER)), 3),
            "lasso_ms": round(float(page.run(LASSO)), 1), "lasso_objects": page.run("selectedCount"),
            "frames_per_s": round(frames_per_second(page, 1 if options.quick else 5), 1),
        }  # fmt: skip
        assert figures["lasso_objects"] > made["points"] / 10, "the lasso selects nothing"
        assert page.log == [], page.log
    record("map", options, figures)
    return figures


def fabricate_scan(work: Path, count: int, seed: int) -> Path:
    """Write a store, the embeddings and the candidates of a scan; return the run."""
    rng = np.random.default_rng(seed)
    path = work / "sky.zarr"
    group = layout.create(
        path, survey="sdss", count=count, size=SIZE, id_dtype=np.dtype("int64"), schemas={}, provenance={}
    )
    shard = layout.shard_size(count)
    images = _blobs(rng, shard, SIZE)
    for start in range(0, count, shard):
        group["images"][start : start + shard] = images[: count - start]
    layout.finish(path, "fabricated")
    run = fabricate(work / "run", count, seed)
    content = json.loads((run / "run.json").read_text())
    content["stores"] = [{"name": "sdss", "path": str(path.absolute()), "content_hash": "fabricated", "count": count}]
    (run / "run.json").write_text(json.dumps(content))
    index = rng.choice(count, CANDIDATES, replace=False)
    score = np.sort(rng.normal(3, 1, CANDIDATES))[::-1]
    ranked = pd.DataFrame({"store": "sdss", "index": index, "rank": np.arange(1, CANDIDATES + 1), "score": score})
    ranked.to_parquet(run / "candidates.parquet", index=False)
    return run


def frames_per_second(page: Page, seconds: float) -> float:
    """Return the frames that the browser shows while the mouse drags the map."""
    left, top, width, height = page.run(
        "(() => { const b = stage.getBoundingClientRect(); return [b.left, b.top, width, height]; })()"
    )
    mouse = {"button": "left", "buttons": 1}
    page.run("use('move'), reset()")
    page.run(FRAMES)
    x, y = left + width / 2, top + height / 2
    page.command("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, clickCount=1, **mouse)
    first, started, step = page.run("window.frames_"), time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step += 1
        angle = step / 15
        page.command(
            "Input.dispatchMouseEvent", type="mouseMoved", x=x + 200 * np.sin(angle), y=y + 120 * np.cos(angle), **mouse
        )
    passed, last = time.perf_counter() - started, page.run("window.frames_")
    page.command("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, clickCount=1, **mouse)
    return float((last - first) / passed)


if __name__ == "__main__":
    main()
