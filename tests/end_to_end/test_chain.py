"""From galaxies to a ranked catalog through the command line, as its user types it; simulated and real."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from galscan.cli import main
from galscan.core import home
from tests.helpers import tiny_recipe
from tests.json_page import undocumented

pytestmark = pytest.mark.usefixtures("scans_here", "no_pages")


@pytest.fixture
def galscan(capsys):
    """Return a function that runs one command line with --json and returns its object."""

    def run(line: str) -> dict:
        assert main.run([*line.split(), "--json"]) == 0, capsys.readouterr().err
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert undocumented(line.split()[0], summary) == set()
        return summary

    return run


def fitsverify(path: Path) -> None:
    if shutil.which("fitsverify") is None:
        pytest.skip("fitsverify is not installed (Debian: apt install fitsverify)")
    done = subprocess.run(["fitsverify", str(path)], capture_output=True, text=True, check=False)
    assert "0 warning(s) and 0 error(s)" in done.stdout, done.stdout


def test_simulated_sky_to_fits(galscan, tmp_path):
    recipe = tiny_recipe(tmp_path / "dustlane.toml")
    simulated = "ingest --survey simulated --size 32 --workers 1"
    labelled, model = home.survey_path("labelled"), home.model_path("dustlane")
    ingested = galscan(f"{simulated} --count 300 --seed 1 --rare-fraction 0.1 --name labelled")
    assert ingested["objects"] == 300 and labelled.is_dir()
    galscan(f"{simulated} --count 200 --seed 2 --labelled 0 --out {tmp_path}/sky.zarr")
    metrics = galscan(f"train-rare --target {recipe} --survey labelled --device cpu")["metrics"]
    assert metrics["real_plus_synthetic"]["ap_mean"] > 0 and model.is_dir()
    assert metrics["synthetic"]["injected"] > 0 and metrics["generator"] is None
    generated = galscan(
        f"generate --target dustlane --model {model} --store {labelled} --count 4 --out {tmp_path}/new.zarr"
    )
    assert 0.4 <= generated["answers"]["dust_lane"] <= 1
    assert galscan(f"info {tmp_path}/new.zarr")["objects"] == 4 + generated["hosts"]

    run = galscan(f"scan --store {tmp_path}/sky.zarr --survey labelled --target dustlane --out {tmp_path}/run --top 50")
    assert (run["scanned"], run["quarantined"], run["candidates"]) == (500, 0, 50)

    # Only objects of the training set are marked.
    candidates = Table.read(tmp_path / "run" / "candidates.fits", hdu="CANDIDATES")
    assert not candidates["in_train"][candidates["objid"] >= 2 * 10**9].any()
    assert (np.diff(candidates["score"]) <= 0).all() and (np.diff(candidates["rank"]) == 1).all()
    low, purity, high = (np.ma.filled(candidates[f"purity{end}"], np.nan) for end in ("_lo", "", "_hi"))
    # Networks of eight steps may score the sky otherwise than what calibrated them.
    assert np.isnan(purity).all() if candidates.meta["PURITY"] == "unknown" else np.isfinite(purity).all()
    assert not ((low > purity) | (purity > high)).any()

    galscan(f"export {tmp_path}/run --top 10 --out {tmp_path}/best.fits")
    assert len(Table.read(tmp_path / "best.fits", hdu=1)) == 10
    assert galscan(f"info {tmp_path}/run --sheet {tmp_path}/sheet.png")["status"] == "done"
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    fitsverify(tmp_path / "best.fits")


def test_real_galaxies_are_ingested_and_scanned(galscan, tmp_path, real_data, shared_model):
    """Fifty real NGC galaxies with EFIGI labels, and ten of real FITS frames, one beside the other."""
    images = tmp_path / "ngc" / "images"
    images.mkdir(parents=True)
    rows = (real_data / "ngc-sdss" / "catalog.csv").read_text().splitlines()
    kept = rows[1:][::68]
    for row in kept:
        name = next(cell for cell in row.split(",") if cell.startswith("images/"))
        shutil.copy(real_data / "ngc-sdss" / name, images)
    (tmp_path / "ngc" / "catalog.csv").write_text("\n".join([rows[0], *kept]) + "\n")

    local, store, frames = "ingest --survey local --size 32 --workers 1", tmp_path / "ngc.zarr", tmp_path / "f.zarr"
    assert galscan(f"{local} --path {tmp_path}/ngc --labels efigi --out {store}")["objects"] == len(kept)
    galscan(f"{local} --path {real_data}/fits-sdss-gri --out {frames}")
    run = galscan(f"scan --store {store} --store {frames} --model {shared_model.path} --out {tmp_path}/run --workers 1")
    assert run["scanned"] + run["quarantined"] == len(kept) + 10
    best = Table.read(tmp_path / "run" / "candidates.fits", hdu=1)
    assert all(name.startswith("J") for name in best["designation"][best["ra"] > 0])
    fitsverify(tmp_path / "run" / "candidates.fits")
