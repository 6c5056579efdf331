from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

import galscan
from galscan.commands.purity import purity
from galscan.commands.vet import vet
from galscan.core.errors import InputError, NotFoundError
from galscan.scanning.run import CANDIDATES, open_run
from galscan.vetting.gradebook import FILE, GradeBook
from tests.helpers import tiny_model


@pytest.fixture(scope="module")
def sampled(shared_run, tmp_path_factory):
    path = shutil.copytree(shared_run.path, tmp_path_factory.mktemp("purity") / "run")
    table = pq.read_table(path / CANDIDATES)
    known = ["negative", *[""] * 14, "target", *[""] * (len(table) - 16)]
    at = table.schema.get_field_index("known")
    pq.write_table(table.set_column(at, "known", [known]), path / CANDIDATES)
    vet(path, serve=False, best=30, size=48)
    return path


@pytest.fixture
def run(sampled, tmp_path, no_pages):
    return Path(shutil.copytree(sampled, tmp_path / "run"))


def grade(run, grader="ann", **by_kind):
    """Grade all: targets are the odd ranks of the best, and known ones; or what `by_kind` gives for a kind."""
    with GradeBook(run / FILE, open_run(run).info.fingerprint) as book:
        for row in book.items().itertuples():
            is_target = row.kind == "positive" or (row.stratum == "best" and row.rank % 2)
            given = by_kind.get(row.kind, "A" if is_target else "not")
            book.record(f"{grader}-{row.item:06d}", row.item, grader, given, comment="=1+1" if row.rank == 3 else "")


def test_grades_become_columns_and_the_files_of_the_scan_stay(run):
    before = (run / "candidates.parquet").read_bytes(), (run / "candidates.fits").read_bytes()
    grade(run)
    summary = purity(run)
    assert summary["graded"] == 48 and summary["targets"] == 14
    assert summary["after"]["at"]["10"] == pytest.approx({"value": 0.4, "low": 0.4, "high": 0.4})
    assert set(summary["before"]["at"]) == {"10", "100"}
    assert "with grades" in summary["text"] and "0.4 (0.4 to 0.4)" in summary["text"]
    assert before == ((run / "candidates.parquet").read_bytes(), (run / "candidates.fits").read_bytes())
    frame = pd.read_parquet(run / "candidates-graded.parquet")
    truth = np.arange(30) % 2 == 0
    truth[[0, 15]] = False, True
    np.testing.assert_allclose(frame["purity"][:30], np.cumsum(truth) / np.arange(1, 31))
    assert list(frame["grade"][:3]) == ["", "not", "A"] and (frame["votes"] > 0).sum() > 30
    assert frame["comment"][2] == "=1+1"
    with fits.open(run / "candidates-graded.fits", checksum=True) as hdus:
        assert hdus[1].header["PREVAL"] == pytest.approx(summary["after"]["prevalence"]["value"])
        assert {"grade", "votes", "comment"} <= set(hdus[1].columns.names)
    assert json.loads((run / "purity.json").read_text())["graded"] == 48


def test_graded_table_is_exported(run, tmp_path):
    grade(run)
    assert "grade" not in pd.read_csv(galscan.export(run, tmp_path / "a.csv"))
    purity(run)
    table = pd.read_csv(galscan.export(run, tmp_path / "b.csv"))
    assert table["grade"][2] == "A" and table["comment"][2] == "'=1+1" and table["purity_hi"][9] == 0.4


def test_grades_that_count_as_a_target_can_be_chosen(run):
    grade(run, survey="C")
    assert purity(run)["targets"] == 0 and purity(run, target=["A", "B", "C"])["targets"] == 48
    with pytest.raises(InputError, match="'D'"):
        purity(run, target=["D"])


def test_controls_measure_the_graders(run):
    grade(run)
    grade(run, "eve", positive="not", blank="A")
    ann, eve = purity(run)["graders"].values()
    assert ann["blank_taken"] == 0 and eve["blank_taken"] == eve["blank"] == 4
    assert ann["known_found"] == ann["known"] > eve["known_found"] == 0


def test_missing_grades_or_model_and_wrong_options_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="galscan vet"):
        purity(run)
    grade(run)
    info = json.loads((run / "run.json").read_text())
    for change, message in (
        ({"histogram": [[10**9, 1]]}, "histogram"),
        ({"model": str(tiny_model(tmp_path / "m", seed=5).path)}, "changed since the scan"),
    ):
        (run / "run.json").write_text(json.dumps(info | change))
        with pytest.raises(InputError, match=message):
            purity(run)
    (run / "run.json").write_text(json.dumps(info))
    for name, value in (("draws", 5), ("confidence", 1.5)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            purity(run, **{name: value})
    (run / FILE).unlink()
    with pytest.raises(NotFoundError, match=FILE):
        purity(run)
    assert not (run / "candidates-graded.fits").exists()
