"""The commands of docs/how-to/own-images.md, in their order: from a folder of images to a catalog of candidates."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from PIL import Image

import galscan
from galscan.cli import main
from tests.documents import ROOT, lines_of
from tests.grading import book
from tests.helpers import tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("scans_here", "no_pages")]

# What makes a command small enough for a test, or run without a person.
SMALLER = {
    "ingest": "--size 32 --workers 1", "train-rare": "--device cpu", "scan": "--workers 1 --device cpu",
    "vet": "--design",
}  # fmt: skip


def images_and_table() -> None:
    """Write galaxies of the simulated survey to the working folder, as a user has them, with EFIGI's columns."""
    store = galscan.ingest(
        "simulated", count=300, seed=1, size=32, rare_fraction=0.1, workers=1, out="simulated-survey.zarr"
    )
    labels = store.labels("simulated")
    early, dust = labels["early_type"] >= 0.5, labels["dust_lane"]
    table = pd.DataFrame({"id": store.column("id"), "ra": store.column("ra"), "dec": store.column("dec")})
    table["efigi_t"] = np.where(early, -3, 4)
    table["efigi_visible_dust"] = np.select([dust >= 0.5, dust < 0.25], [0.75, 0.0], 0.25)
    for name in ("inclination", "bulge_to_total"):
        table[f"efigi_{name}"] = labels[name]
    for name in ("arm_strength", "multiplicity", "perturbation"):
        table[f"efigi_{name}"] = 0.25
    table.to_csv("table.csv", index=False)
    for identifier, image in zip(table["id"], store.images(slice(None)), strict=True):
        Image.fromarray(image).save(f"images/{identifier}.png")


def grade(run) -> None:
    """Grade the sample of a run, as a person does on the page."""
    with book(run) as opened:
        for item, rank in opened.items()[["item", "rank"]].itertuples(index=False):
            opened.record(f"ann-{item:06d}", item, "ann", "A" if 0 < rank <= 20 else "not")


def test_commands_of_the_page_lead_to_a_catalog(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("galscan.stats.metrics.BOOTSTRAP", 20)
    (tmp_path / "images").mkdir()
    images_and_table()
    tiny_recipe(tmp_path / "dustlane.toml")

    summaries = {}
    for line in lines_of((ROOT / "docs/how-to/own-images.md").read_text(encoding="utf-8"), "galscan"):
        words = [w if w != "dustlane" else "./dustlane.toml" for w in shlex.split(line, comments=True)[1:]]
        words += shlex.split(SMALLER.get(words[0], ""))
        capsys.readouterr()
        assert main.run([*words, "--json"]) == 0, (line, capsys.readouterr().err)
        summaries[" ".join(words[:2])] = json.loads(capsys.readouterr().out.splitlines()[-1])
        if words[0] == "vet":
            grade(tmp_path / "run")

    commands = {key.split()[0] for key in summaries}
    assert commands >= {"ingest", "info", "target", "train-rare", "scan", "vet", "purity", "export"}
    assert summaries["info ngc.zarr"]["objects"] == 300
    assert summaries["purity run/"]["graded"] > 20 and summaries["purity run/"]["targets"] > 0
    written = Table.read("dustlanes.fits")
    assert 0 < len(written) <= 500 and "grade" in written.colnames
    for name in ("ngc.png", "dustlane.png", "model/report.html", "dustlanes.pdf"):
        assert (tmp_path / name).stat().st_size > 0, name
