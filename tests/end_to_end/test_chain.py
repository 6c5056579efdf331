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


@pytest.fixture
def galscan(capsys):
    """Return a function that runs one command line with --json and returns its object."""

    def run(*arguments: object) -> dict:
        assert main.run([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def fitsverify(path: Path) -> None:
    if shutil.which("fitsverify") is None:
        pytest.skip("fitsverify is not installed (Debian: apt install fitsverify)")
    done = subprocess.run(["fitsverify", str(path)], capture_output=True, text=True, check=False)
    assert "0 warning(s) and 0 error(s)" in done.stdout, done.stdout


def test_simulated_sky_to_fits(galscan, tmp_path):
    recipe = tiny_recipe(tmp_path / "dustlane.toml")
    labelled = home.survey_path("labelled")
    ingested = galscan(
        "ingest", "--survey", "simulated", "--count", 500, "--size", 32, "--seed", 1, "--rare-fraction", 0.08,
        "--name", "labelled", "--workers", 1,
    )  # fmt: skip
    assert ingested["objects"] == 500 and labelled.is_dir()
    sky = tmp_path / "sky.zarr"
    galscan(
        "ingest",
        "--survey",
        "simulated",
        "--count",
        700,
        "--size",
        32,
        "--seed",
        2,
        "--labelled",
        0,
        "--out",
        sky,
        "--workers",
        1,
    )
    model = galscan("train-rare", "--target", recipe, "--survey", "labelled", "--device", "cpu")
    assert model["metrics"]["real_plus_synthetic"]["ap_mean"] > 0
    assert home.model_path("dustlane").is_dir()
    assert model["metrics"]["synthetic"]["injected"] > 0 and model["metrics"]["generator"] is None
    made = tmp_path / "synthetic.zarr"
    told = galscan(
        "generate", "--target", "dustlane", "--model", home.model_path("dustlane"), "--store", labelled, "--count", 6,
        "--out", made, "--device", "cpu",
    )  # fmt: skip
    assert 0.4 <= told["answers"]["dust_lane"] <= 1 and galscan("info", made)["objects"] == 6 + told["hosts"]

    run = galscan(
        "scan",
        "--store",
        sky,
        "--survey",
        "labelled",
        "--target",
        "dustlane",
        "--out",
        tmp_path / "run",
        "--workers",
        1,
        "--top",
        50,
    )
    assert {"scanned", "quarantined", "candidates", "wall_s", "images_per_s", "fingerprint", "run"} <= run.keys()
    assert (run["scanned"], run["quarantined"], run["candidates"]) == (1200, 0, 50)

    # Only objects of the training set are marked.
    candidates = Table.read(tmp_path / "run" / "candidates.fits", hdu="CANDIDATES")
    assert not candidates["in_train"][candidates["objid"] >= 2 * 10**9].any()
    assert (np.diff(candidates["score"]) <= 0).all() and (np.diff(candidates["rank"]) == 1).all()
    low, purity, high = (np.ma.filled(candidates[f"purity{end}"], np.nan) for end in ("_lo", "", "_hi"))
    # Networks of eight steps may score the sky otherwise than what calibrated them.
    assert np.isnan(purity).all() if candidates.meta["PURITY"] == "unknown" else np.isfinite(purity).all()
    assert not ((low > purity) | (purity > high)).any()

    exported = tmp_path / "best.fits"
    galscan("export", tmp_path / "run", "--top", 10, "--out", exported)
    assert len(Table.read(exported, hdu=1)) == 10
    fitsverify(exported)
    assert galscan("info", tmp_path / "run", "--sheet", tmp_path / "sheet.png")["status"] == "done"
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_real_galaxies_are_ingested_and_scanned(galscan, tmp_path, real_data):
    """A hundred real NGC galaxies with EFIGI labels, and ten of real FITS frames, one beside the other."""
    images = tmp_path / "ngc" / "images"
    images.mkdir(parents=True)
    rows = (real_data / "ngc-sdss" / "catalog.csv").read_text().splitlines()
    kept = rows[1:][::34]
    for row in kept:
        name = next(cell for cell in row.split(",") if cell.startswith("images/"))
        shutil.copy(real_data / "ngc-sdss" / name, images)
    (tmp_path / "ngc" / "catalog.csv").write_text("\n".join([rows[0], *kept]) + "\n")

    store = tmp_path / "ngc.zarr"
    ingested = galscan(
        "ingest",
        "--survey",
        "local",
        "--path",
        tmp_path / "ngc",
        "--labels",
        "efigi",
        "--size",
        32,
        "--out",
        store,
        "--workers",
        1,
    )
    frames = tmp_path / "frames.zarr"
    galscan(
        "ingest",
        "--survey",
        "local",
        "--path",
        real_data / "fits-sdss-gri",
        "--size",
        32,
        "--out",
        frames,
        "--workers",
        1,
    )
    assert ingested["objects"] == len(kept)

    from tests.helpers import tiny_bundle

    tiny_bundle(tmp_path / "model")
    run = galscan(
        "scan",
        "--store",
        store,
        "--store",
        frames,
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "run",
        "--workers",
        1,
    )
    assert run["scanned"] + run["quarantined"] == len(kept) + 10
    fitsverify(tmp_path / "run" / "candidates.fits")
    best = Table.read(tmp_path / "run" / "candidates.fits", hdu=1)
    assert all(name.startswith("J") for name in best["designation"][best["ra"] > 0])
