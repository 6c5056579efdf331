"""Only results reach stdout: not what astropy logs, nor what other libraries print, here or in other processes."""

from __future__ import annotations

import json

import pytest

import galscan
from galscan.cli import main
from galscan.core.concurrency import run_in_processes


@pytest.fixture
def talkative(monkeypatch):
    """Let `galscan.info` print and log as libraries do."""

    def info(path, **options):
        from astropy import log

        with log.log_to_list():
            log.setLevel("INFO")
            log.info("Inconsistent SIP distortion information is present")
        print("Downloading ...")
        return {"rows": 3}

    monkeypatch.setattr(galscan, "info", info, raising=False)


@pytest.mark.parametrize("options", [["--json"], []])
def test_messages_of_libraries(talkative, options, capsys):
    assert main.run(["info", "store.zarr", *options]) == 0
    out, err = capsys.readouterr()
    assert out == '{"rows":3}\n' if options else out == "rows  3\n"
    assert "Inconsistent SIP" in err and "Downloading" in err


def test_messages_of_processes(capfd):
    run_in_processes(print, [("INFO: Inconsistent SIP",)], 1, remedy="")
    out, err = capfd.readouterr()
    assert out == "" and "Inconsistent SIP" in err


def test_real_mosaic_with_left_over_sip_terms(tmp_path, capfd):
    """astropy logs them at level INFO, on stdout."""
    import numpy as np
    from astropy.io import fits
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [64, 64]
    wcs.wcs.cdelt = [-0.4 / 3600, 0.4 / 3600]
    header = wcs.to_header()
    header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5, "B_0_2": 1e-5, "FILTER": "r"})
    (tmp_path / "frames").mkdir()
    pixels = np.random.default_rng(0).normal(10, 1, (128, 128)).astype("float32")
    fits.PrimaryHDU(pixels, header).writeto(tmp_path / "frames" / "tile-r.fits")
    (tmp_path / "table.csv").write_text("id,ra,dec\n1,150,2\n2,150.002,2.001\n")
    options = ["--path", f"{tmp_path}/frames", "--catalog", f"{tmp_path}/table.csv", "--out", f"{tmp_path}/s.zarr"]
    code = main.run(["ingest", "--survey", "frames", *options, "--size", "16", "--workers", "1", "--json"])
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1, out
    assert (json.loads(out).get("objects"), code) in ((2, 0), (None, 2)), err
