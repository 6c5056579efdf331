"""Objects of a table of ids as a list that is graded: all of them, once, and without an estimate of purity."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.candidates.export.formats import export
from galscan.cli import main
from galscan.commands.purity import purity
from galscan.commands.vet import vet
from galscan.core.errors import InputError
from galscan.scanning.run import open_run
from galscan.vetting import chosen
from galscan.vetting.labels import read_labels
from galscan.vetting.sampling import SURVEY
from tests.grading import book

IDS = [1003, 1650, 1007, 1400]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "selection.csv"
    path.write_text("id,store,score\n" + "".join(f"{i},sky,0.5\n" for i in IDS))
    return path


def test_all_objects_of_the_table_are_graded(shared_run, table, tmp_path):
    assert main.run(["vet", str(shared_run.path), "--objects", str(table), "--design"]) == 0
    run = chosen.list_of(shared_run, table)
    frame = run.candidates
    assert set(frame["objid"]) == set(IDS) and (np.diff(frame["score"]) <= 0).all()
    assert frame[["purity", "p_target"]].isna().all(axis=None) and "by hand" in run.summary()["text"]
    with book(run.path) as grades:
        items = grades.items()
        survey = items[items["kind"] == SURVEY]
        assert set(survey["id"]) == {str(i) for i in IDS} and (survey["rank"] > 0).all()
        for item in items["item"]:
            grades.record(f"key-{item:05d}", int(item), "ann", "A" if item % 2 else "not")
    labels = read_labels(run.path)
    assert labels.target is None and set(labels.table["id"]) == {str(i) for i in IDS}
    with pytest.raises(InputError, match="train-rare"):
        purity(run.path)
    assert export(run.path, tmp_path / "x.csv").rows == 4
    assert not (shared_run.path / "grades.sqlite").exists()
    again = vet(shared_run.path, objects=table, serve=False)
    assert again["sample"] == [{"stratum": "best", "objects": 4, "drawn": 4, "graded": 4}]
    assert open_run(run.path).info.fingerprint == run.info.fingerprint


def test_what_cannot_be_graded(shared_run, table, tmp_path):
    with pytest.raises(InputError, match="--best"):
        vet(shared_run.path, objects=table, best=3, serve=False)
    other = tmp_path / "other.csv"
    other.write_text("id\n1003\n77\n")
    with pytest.raises(InputError, match="--objects 77"):
        vet(shared_run.path, objects=other, serve=False)
