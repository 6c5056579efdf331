"""A model on another survey: every output says that purity is unknown, and that grading a sample settles it."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import zarr
from astropy.io import fits
from astropy.table import Table

from galscan.cli import main
from galscan.reports.scan import write_scan_report
from galscan.store import identity, layout
from galscan.store.layout import open_store
from tests.helpers import tiny_store

pytestmark = pytest.mark.usefixtures("scans_here", "no_pages")
ESTIMATES = ["p_target", "purity", "purity_lo", "purity_hi", "completeness"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Return a store of the model's own survey."""
    return tiny_store(tmp_path_factory.mktemp("own") / "tiny.zarr", 700, 32, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory, shared_model, calibrated):
    """Return a model that was calibrated with that survey."""
    folder = shutil.copytree(shared_model.path, tmp_path_factory.mktemp("model") / "model")
    info = json.loads((folder / "model.json").read_text())
    info["imaging"] = [identity.imaging_of(calibrated)]
    (folder / "model.json").write_text(json.dumps(info))
    return folder


def copy(store, path, change):
    shutil.copytree(store.path, path)
    change(zarr.open_group(path, mode="r+"))
    layout.finish(path, path.name)
    return open_store(path)


def invert(group):
    group["images"][:] = 255 - group["images"][:]


def widen(group):
    group["pixel_scale"][:] = 0.8


def rename(group):
    group.attrs["survey"] = "hsc"


def run(capsys, *arguments):
    code = main.run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_purity_is_estimated_on_the_survey_itself(model, calibrated, tmp_path, capsys):
    code, summary, err = run(capsys, "scan", "--store", calibrated.path, "--model", model, "--out", tmp_path / "run")
    assert code == 0 and summary["purity"]["unknown"] == "", err
    assert np.isfinite(Table.read(tmp_path / "run" / "candidates.fits", hdu=1)["purity"]).all()


@pytest.mark.parametrize("change", [invert, widen, rename])
def test_purity_is_unknown_on_another(change, model, calibrated, tmp_path, capsys):
    name = "other" if change is rename else calibrated.name
    store = copy(calibrated, tmp_path / f"{name}.zarr", change)
    folder = tmp_path / "run"
    code, summary, err = run(capsys, "scan", "--store", store.path, "--model", model, "--out", folder, "--top", 100)
    assert code == 0 and "galscan vet" in err
    purity = summary["purity"]
    assert purity["unknown"] and "galscan vet" in " ".join(purity["notes"])
    values = [
        entry[key] for entry in [purity["prevalence"], *purity["at"].values()] for key in ("value", "low", "high")
    ]
    assert set(values) == {None}

    header = fits.getheader(folder / "candidates.fits", 1)
    assert header["PURITY"] == "unknown" and "galscan vet" in str(header["HISTORY"]).replace("\n", "")
    table = Table.read(folder / "candidates.fits", hdu=1)
    assert all(np.isnan(np.ma.filled(table[name], np.nan)).all() for name in ESTIMATES)
    page = write_scan_report(folder).read_text()
    assert "purity is unknown" in page and "galscan vet" in page

    code, refusal, err = run(capsys, "export", folder, "--min-purity", 0.5, "--out", tmp_path / "pure.fits")
    assert code == 2 and "galscan vet" in refusal["error"] and err.count("\n") == 1
    assert not (tmp_path / "pure.fits").exists()
    assert run(capsys, "export", folder, "--top", 5, "--out", tmp_path / "best.csv")[0] == 0
    with open(tmp_path / "best.csv", newline="") as handle:
        assert [{row[name] for name in ESTIMATES} for row in csv.DictReader(handle)] == [{""}] * 5
    assert run(capsys, "export", folder, "--out", tmp_path / "best.fits")[0] == 0
    assert fits.getheader(tmp_path / "best.fits", 1)["PURITY"] == "unknown"
    code, info, err = run(capsys, "info", folder)
    assert code == 0 and info["purity"]["unknown"] == purity["unknown"]
