"""A user's own images, label column, schema and target, up to a scan of another survey."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
from PIL import Image

from galscan.cli import main
from galscan.synthesis import evaluation
from tests.helpers import OWN_SCHEMA, TINY_SETTINGS, keep_all

COUNT, SIZE = 120, 16


def test_a_target_of_ones_own_labels_is_scanned_for_on_a_machine_that_never_saw_them(
    tmp_path, monkeypatch, capsys, galscan_home
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)

    def galscan(line: str, *more: str) -> dict:
        assert main.run([*line.split(), *more, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for k in range(COUNT):
        Image.fromarray(random.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(f"images/{k}.png")
    pd.DataFrame({"id": range(COUNT), "odd": random.integers(1, 10, COUNT)}).to_csv("table.csv", index=False)
    (tmp_path / "notes.toml").write_text(OWN_SCHEMA)

    galscan(f"ingest --survey local --path images --catalog table.csv --labels notes.toml --size {SIZE} --out s.zarr")
    galscan("target new weird --schema mine")
    recipe = (tmp_path / "weird.toml").read_text().partition("\n[split]")[0].replace("size = 64", f"size = {SIZE}")
    (tmp_path / "weird.toml").write_text(recipe + TINY_SETTINGS)
    galscan("train-rare --target weird.toml --store s.zarr --out model --device cpu")

    shutil.rmtree(galscan_home)
    (tmp_path / "notes.toml").unlink()
    run = galscan("scan --store s.zarr --model model --out run --workers 1 --device cpu")
    assert run["scanned"] == COUNT and not (galscan_home / "labels").exists()
    assert galscan("export run --out found.fits") and (tmp_path / "found.fits").stat().st_size
