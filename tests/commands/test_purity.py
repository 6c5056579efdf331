"""`galscan purity`: grades become columns, the old estimate stays, and export takes the new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

import galscan
from galscan.commands.purity import purity
from galscan.commands.vet import vet
from galscan.core.errors import InputError, NotFoundError
from galscan.scanning.run import open_run
from galscan.vetting.gradebook import FILE, GradeBook
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, scans_here, no_pages):
    place = tmp_path_factory.mktemp("purity")
    store = tiny_store(place / "sky.zarr", 700, 32)
    model = tiny_bundle(place / "model").path
    galscan.scan(store=store.path, model=model, out=place / "run", top=120, workers=1)
    vet(place / "run", serve=False, best=30, size=48)
    return place


@pytest.fixture
def run(scanned, tmp_path):
    return Path(shutil.copytree(scanned / "run", tmp_path / "run"))


def grade(run, grader="ann", **by_kind):
    """Grade all: targets are the odd ranks of the best, and known ones; or what `by_kind` says of a kind."""
    with GradeBook(run / FILE, open_run(run).info.fingerprint) as book:
        for row in book.items().itertuples():
            is_target = row.kind == "positive" or (row.stratum == "best" and row.rank % 2)
            said = by_kind.get(row.kind, "A" if is_target else "not")
            book.record(f"{grader}-{row.item:06d}", row.item, grader, said, comment="=1+1" if row.rank == 3 else "")


def test_grades_become_columns_and_the_first_estimate_stays(run):
    before = (run / "candidates.parquet").read_bytes(), (run / "candidates.fits").read_bytes()
    grade(run)
    told = purity(run)
    assert told["graded"] == 48 and told["targets"] == 14
    assert told["after"]["at"]["10"] == pytest.approx({"value": 0.4, "low": 0.4, "high": 0.4})
    assert told["before"]["at"]["10"] == open_run(run).info.purity["at"]["10"]
    assert "with grades" in told["text"] and "0.4 (0.4 to 0.4)" in told["text"]
    assert before == ((run / "candidates.parquet").read_bytes(), (run / "candidates.fits").read_bytes())
    frame = pd.read_parquet(run / "candidates-graded.parquet")
    # The model was trained on the first, no target, and on the 16th, which is one: they are not in the sample to grade.
    assert frame.loc[frame["known"] != "", ["rank", "known"]].to_numpy().tolist() == [[1, "negative"], [16, "target"]]
    truth = np.arange(30) % 2 == 0
    truth[[0, 15]] = False, True
    np.testing.assert_allclose(frame["purity"][:30], np.cumsum(truth) / np.arange(1, 31))
    assert list(frame["grade"][:3]) == ["", "not", "A"] and (frame["votes"] > 0).sum() > 30
    assert frame["comment"][2] == "=1+1"
    with fits.open(run / "candidates-graded.fits", checksum=True) as hdus:
        assert hdus[1].header["PREVAL"] == pytest.approx(told["after"]["prevalence"]["value"])
        assert {"grade", "votes", "comment"} <= set(hdus[1].columns.names)
    assert json.loads((run / "purity.json").read_text())["graded"] == 48


def test_export_takes_the_graded_ones(run, tmp_path):
    grade(run)
    assert "grade" not in pd.read_csv(galscan.export(run, tmp_path / "a.csv"))
    purity(run)
    table = pd.read_csv(galscan.export(run, tmp_path / "b.csv"))
    assert table["grade"][2] == "A" and table["comment"][2] == "'=1+1" and table["purity_hi"][9] == 0.4


def test_what_counts_as_a_target_can_be_said(run):
    grade(run, survey="C")
    assert purity(run)["targets"] == 0 and purity(run, target=["A", "B", "C"])["targets"] == 48
    with pytest.raises(InputError, match="unknown grade 'D'"):
        purity(run, target=["D"])


def test_controls_measure_the_graders_and_count_for_nothing_else(run):
    grade(run)
    grade(run, "eve", positive="not", blank="A")
    told = purity(run)["graders"]
    assert told["ann"]["blank_taken"] == 0 and told["eve"]["blank_taken"] == told["eve"]["blank"] == 4
    assert told["ann"]["known_found"] == told["ann"]["known"] > told["eve"]["known_found"] == 0


def test_without_grades_or_the_model_it_is_one_line(run, tmp_path):
    with pytest.raises(InputError, match="is graded yet"):
        purity(run)
    grade(run)
    info = json.loads((run / "run.json").read_text())
    for change, message in (
        ({"histogram": [[10**9, 1]]}, "histogram of scores is damaged"),
        ({"model": str(tiny_bundle(tmp_path / "m", seed=5).path)}, "changed since the scan"),
    ):
        (run / "run.json").write_text(json.dumps(info | change))
        with pytest.raises(InputError, match=message):
            purity(run)
    (run / "run.json").write_text(json.dumps(info))
    for options in ({"draws": 5}, {"confidence": 1.5}):
        with pytest.raises(InputError, match="at least 100"):
            purity(run, **options)
    (run / FILE).unlink()
    with pytest.raises(NotFoundError, match="galscan vet"):
        purity(run)
    assert not (run / "candidates-graded.fits").exists()
