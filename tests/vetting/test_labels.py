from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.vetting.gradebook import FILE
from galscan.vetting.labels import read_all, read_labels
from tests.grading import book
from tests.helpers import tiny_model


@pytest.fixture(scope="module")
def sampled(shared_run, tmp_path_factory) -> Path:
    path = Path(shutil.copytree(shared_run.path, tmp_path_factory.mktemp("labels") / "run"))
    galscan.vet(path, serve=False, best=10, size=30)
    return path


@pytest.fixture
def run(sampled, tmp_path) -> Path:
    return Path(shutil.copytree(sampled, tmp_path / "run"))


def give(run: Path, *grades: tuple[int, str, str]) -> None:
    """Record grades: the number of a survey object in the sample, grader, grade."""
    with book(run) as opened:
        items = opened.items()
        survey = items.loc[items["kind"] == "survey", "item"].to_numpy()
        for k, grader, grade in grades:
            opened.record(f"{grader}-{k:06d}", int(survey[k]), grader, grade)


def change_info(run: Path, **changes) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | changes))


def test_grades_become_targets(run, shared_store):
    grades = {
        0: ("A",), 1: ("B",), 2: ("C",), 3: ("not",), 4: ("artefact",), 5: ("A", "B"), 6: ("A", "not"),
        7: ("A", "A", "artefact"), 8: ("not", "C", "not"), 9: ("A", "C"), 10: ("not", "artefact"),
    }  # fmt: skip
    give(run, *((k, f"g{n}", grade) for k, each in grades.items() for n, grade in enumerate(each)))
    with book(run) as opened:  # grades of controls are no labels
        items = opened.items()
        for item in items.loc[items["kind"] != "survey", "item"]:
            opened.record(f"control-{item:04d}", int(item), "g0", "A")
        expected = items[items["kind"] == "survey"].iloc[:11]
    labels, identity = read_labels(run), ["store", "row", "id"]
    np.testing.assert_array_equal(labels.table["target"], [1, 1, np.nan, 0, 0, 1, np.nan, np.nan, 0, np.nan, 0])
    assert labels.table[identity].to_numpy().tolist() == expected[identity].to_numpy().tolist()
    assert labels.target == "dustlane" and labels.stores["sky"][0] == str(shared_store.path)
    assert labels.held_out.id.tolist() == ["990", "991"]


def test_hash_is_of_the_labels(run):
    give(run, (0, "ann", "A"), (1, "ann", "not"))
    before = read_labels(run).hash
    give(run, (0, "bob", "B"), (2, "bob", "C"))
    assert read_labels(run).hash == before
    give(run, (3, "bob", "A"))
    assert read_labels(run).hash != before


def test_held_out_objects_are_unknown_without_the_model_of_the_scan(run, tmp_path):
    give(run, (0, "ann", "A"))
    for model in (tmp_path / "gone", tiny_model(tmp_path / "another", seed=9).path):
        change_info(run, model=str(model))
        assert read_labels(run).held_out is None


def test_runs_without_labels_are_refused(run, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        read_all(tmp_path / "nowhere")
    for grades in ((), ((0, "ann", "C"),)):
        give(run, *grades)
        with pytest.raises(InputError, match="galscan vet"):
            read_all(run)
    (run / FILE).unlink()
    with pytest.raises(NotFoundError, match=FILE):
        read_all(run)
    change_info(run, status="running")
    with pytest.raises(InputError, match="not finished"):
        read_all(run)


def test_two_copies_of_one_scan_are_refused(run, tmp_path):
    give(run, (0, "ann", "A"))
    copy = shutil.copytree(run, tmp_path / "copy")
    for other in (run, f"{run}/", copy):
        with pytest.raises(InputError, match="same scan"):
            read_all([run, other])
    assert len(read_all(str(run))) == 1
