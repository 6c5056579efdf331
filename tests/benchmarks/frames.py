"""Cutouts a second out of mosaics, beside ESA's Cutana and beside the plain way with astropy.

    python -m tests.benchmarks.frames [--quick] [--json]

One mosaic of 4096 x 4096 pixels in three bands, 5,000 simulated galaxies added to it and cut out again at 64 pixels:
with galscan (a store: pictures, ids, positions, scale, flags), with Cutana where it is installed (``pip install
cutana``; Zarr, its own stretch, a band a colour), and as one writes it: mosaics opened once, astropy's Cutout2D for
each galaxy and band, make_lupton_rgb, a JPEG file. All write 8 bits and three colours; one worker process each, in
turn, three times; medians. What a tenth of the objects takes is taken off: starting up counts for none of them. The
ratios are of processor time, which neighbours on the machine disturb least; those of wall clock stand beside.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.benchmarks._record import arguments, record

SIZE, BANDS, REPEATS = 64, "gri", 3
SCALE = 0.2 / 3600

GALSCAN = """
import sys, galscan
frames, catalog, out = sys.argv[1:]
galscan.ingest("frames", path=frames, catalog=catalog, size={size}, out=out, workers=1)
"""

CUTANA = """
import sys
from cutana import Orchestrator, get_default_config
frames, catalog, out = sys.argv[1:]
config = get_default_config()
config.source_catalogue, config.output_dir, config.output_format = catalog, out, "zarr"
config.target_resolution, config.data_type, config.normalisation_method = {size}, "uint8", "asinh"
config.selected_extensions = [{{"name": b, "ext": "PrimaryHDU"}} for b in {bands}]
config.channel_weights = {{b: [float(b == c) for c in reversed({bands})] for b in {bands}}}
config.apply_flux_conversion, config.skip_fits_check = False, True
config.max_workers, config.loadbalancer.skip_memory_calibration_wait = 1, True
config.loadbalancer.main_process_memory_reserve_gb = 0.5
config.console_log_level = "WARNING"
result = Orchestrator(config).run()
assert result["status"] == "completed", result
"""

PLAIN = """
import sys, os, warnings
import pandas as pd
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.visualization import make_lupton_rgb
from astropy.wcs import WCS
from PIL import Image
frames, catalog, out = sys.argv[1:]
os.makedirs(out)
hdus = [fits.open(os.path.join(frames, f"mosaic-{{b}}.fits"))[0] for b in reversed({bands})]
maps = [WCS(h.header) for h in hdus]
for row in pd.read_csv(catalog).itertuples():
    at = SkyCoord(row.ra, row.dec, unit="deg")
    stamps = [Cutout2D(h.data, at, {size}, w, mode="partial", fill_value=0).data for h, w in zip(hdus, maps)]
    rgb = make_lupton_rgb(*stamps, stretch=8, Q=10)
    Image.fromarray(rgb[::-1]).save(os.path.join(out, f"{{row.id}}.jpg"))
"""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("frames", __doc__ or "").parse_args(argv)
    figures = measure(options.work, options.quick, options.seed, {"galscan": GALSCAN, "plain": PLAIN, "cutana": CUTANA})
    record("frames", options, figures)
    return figures


def beside_cutana(work: Path, quick: bool, seed: int) -> dict[str, Any]:
    """Return ``cutana_ratio`` and ``pixel_difference`` alone; the first is null where ``cutana`` says why."""
    figures = measure(work, quick, seed, {"galscan": GALSCAN, "cutana": CUTANA})
    return {key: figures[key] for key in ("cutana_ratio", "cutana", "pixel_difference")}


def measure(work: Path, quick: bool, seed: int, ways: dict[str, str]) -> dict[str, Any]:
    """Time the `ways` to cut, in turn, but for one that is not installed; return the figures."""
    side, count = (1024, 400) if quick else (4096, 5000)
    work = (work / f"frames-{side}").absolute()
    frames = _build(work, side, count, seed)
    ways = {way: code for way, code in ways.items() if way != "cutana" or find_spec("cutana")}
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(1 if quick else REPEATS):
        for way, code in ways.items():
            for name in ("few", "all"):
                seconds.setdefault((way, name), []).append(_time(way, code, frames, work / f"{name}.csv", work))
    middle = {key: np.median(values, axis=0) for key, values in seconds.items()}
    rates = {way: (count - count // 10) / (middle[way, "all"] - middle[way, "few"]) for way in ways}
    rate, core = ({way: float(both[k]) for way, both in rates.items()} for k in (0, 1))

    def ratio(rates: dict[str, float], way: str) -> float | None:
        return round(rates["galscan"] / rates[way], 2) if way in rates else None

    return {
        "objects": count, "mosaic_pixels": side, "bands": len(BANDS), "size": SIZE,
        "cutouts_per_s": round(rate["galscan"], 1), "cutouts_per_core_s": round(core["galscan"], 1),
        "plain_ratio": ratio(core, "plain"), "plain_wall_ratio": ratio(rate, "plain"),
        "cutana_ratio": ratio(core, "cutana"), "cutana_wall_ratio": ratio(rate, "cutana"),
        "cutana": _version("cutana"), "pixel_difference": _difference(frames, work / "all.csv"),
    }  # fmt: skip


def _build(work: Path, side: int, count: int, seed: int) -> Path:
    """Write the mosaic and its catalogs, if they are not there; return the folder of frames."""
    from astropy.io import fits
    from astropy.wcs import WCS

    from galscan.surveys.simulated.survey import SimulatedSurvey

    frames, done = work / "frames", work / "done"
    if done.exists():
        return frames
    shutil.rmtree(work, ignore_errors=True)
    frames.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    planes = rng.normal(0, 3, (3, side, side)).astype(np.float32)
    x, y = rng.integers(SIZE, side - SIZE, (2, count))
    survey = SimulatedSurvey(count, size=SIZE, seed=seed)
    for n, cutout in enumerate(survey.cutouts(0, count)):
        here = np.s_[:, y[n] - SIZE // 2 : y[n] + SIZE // 2, x[n] - SIZE // 2 : x[n] + SIZE // 2]
        planes[here] += np.moveaxis(cutout.image[::-1].astype(np.float32), 2, 0)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [side / 2, side / 2]
    wcs.wcs.cdelt = [-SCALE, SCALE]
    for band, plane in zip(reversed(BANDS), planes, strict=True):
        fits.PrimaryHDU(plane, wcs.to_header()).writeto(frames / f"mosaic-{band}.fits")
    ra, dec = wcs.all_pix2world(x, y, 0)
    table = pd.DataFrame({"id": survey.objects(0, count)["id"], "ra": ra, "dec": dec})
    for name, rows in (("all", table), ("few", table.iloc[: count // 10])):
        rows.to_csv(work / f"{name}.csv", index=False)
        files = str([str(frames / f"mosaic-{b}.fits") for b in BANDS])
        rows = rows.rename(columns={"id": "SourceID", "ra": "RA", "dec": "Dec"})
        rows.assign(diameter_pixel=SIZE, fits_file_paths=files).to_csv(work / f"{name}-cutana.csv", index=False)
    done.touch()
    return frames


def _time(way: str, code: str, frames: Path, catalog: Path, work: Path) -> tuple[float, float]:
    """Return seconds of wall clock, and of all processors."""
    out = work / f"out-{way}"
    shutil.rmtree(out, ignore_errors=True)
    catalog = catalog.with_name(f"{catalog.stem}-cutana.csv") if way == "cutana" else catalog
    text = code.format(size=SIZE, bands=repr(list(BANDS)))
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(work / f"{way}.log", "wb") as log:
        subprocess.run(
            [sys.executable, "-c", text, frames, catalog, out], check=True, env=environment, stdout=log, stderr=log
        )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{way} {catalog.stem}: {seconds:.1f} s, {busy:.1f} s of processors", file=sys.stderr)
    return seconds, busy


def _difference(frames: Path, catalog: Path) -> float:
    """Return the largest difference, in float32, between stamps of galscan and of astropy's Cutout2D."""
    from astropy.coordinates import SkyCoord
    from astropy.io import fits
    from astropy.nddata import Cutout2D
    from astropy.wcs import WCS

    from galscan.surveys.mosaics.stamps import OpenFrame

    table, worst = pd.read_csv(catalog).iloc[::25], 0.0
    opened = OpenFrame("mosaic", {b: frames / f"mosaic-{b}.fits" for b in BANDS})
    stacks = opened.raw(table["ra"].to_numpy(), table["dec"].to_numpy(), SIZE)
    for band, stack in zip(BANDS, stacks, strict=True):
        with fits.open(frames / f"mosaic-{band}.fits") as hdus:
            for row, ours in zip(table.itertuples(), stack, strict=True):
                at = SkyCoord(row.ra, row.dec, unit="deg")
                theirs = Cutout2D(hdus[0].data, at, SIZE, WCS(hdus[0].header), mode="partial", fill_value=np.nan).data
                worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name) if find_spec(name) else "not installed: pip install cutana"


if __name__ == "__main__":
    print(json.dumps(main()))
