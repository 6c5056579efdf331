"""What a graded scan teaches, and which ones are refused."""

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
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, scans_here, no_pages) -> Path:
    place = tmp_path_factory.mktemp("labels")
    store = tiny_store(place / "sky.zarr", 400, 32, survey="sky")
    galscan.scan(store=store.path, model=tiny_bundle(place / "model").path, out=place / "run", top=60, workers=1)
    galscan.vet(place / "run", serve=False, best=10, size=30)
    return place


@pytest.fixture
def run(scanned, tmp_path) -> Path:
    return Path(shutil.copytree(scanned / "run", tmp_path / "run"))


def give(run: Path, *grades: tuple[int, str, str]) -> None:
    """Give (which of the survey's objects in the sample, grader, grade)."""
    with book(run) as one:
        items = one.items()
        survey = items.loc[items["kind"] == "survey", "item"].to_numpy()
        for k, grader, grade in grades:
            one.record(f"{grader}-{k:06d}", int(survey[k]), grader, grade)


def test_grades_become_targets(run, scanned):
    words = {
        0: ("A",), 1: ("B",), 2: ("C",), 3: ("not",), 4: ("artefact",), 5: ("A", "B"), 6: ("A", "not"),
        7: ("A", "A", "artefact"), 8: ("not", "C", "not"), 9: ("A", "C"), 10: ("not", "artefact"),
    }  # fmt: skip
    give(run, *((k, f"g{n}", grade) for k, grades in words.items() for n, grade in enumerate(grades)))
    with book(run) as one:  # a control is no label, whatever is said of it
        items = one.items()
        for item in items.loc[items["kind"] != "survey", "item"]:
            one.record(f"control-{item:04d}", int(item), "g0", "A")
        wanted = items[items["kind"] == "survey"].iloc[:11]
    told = read_labels(run)
    np.testing.assert_array_equal(told.table["target"], [1, 1, np.nan, 0, 0, 1, np.nan, np.nan, 0, np.nan, 0])
    assert told.table[["store", "row", "id"]].to_numpy().tolist() == wanted[["store", "row", "id"]].to_numpy().tolist()
    assert told.target == "dustlane" and told.stores["sky"][0] == str(scanned / "sky.zarr")
    assert told.held_out.id.tolist() == ["990", "991"]


def test_the_hash_is_of_the_labels_and_not_of_the_words(run):
    give(run, (0, "ann", "A"), (1, "ann", "not"))
    before = read_labels(run).hash
    give(run, (0, "bob", "B"), (2, "bob", "C"))
    assert read_labels(run).hash == before
    give(run, (3, "bob", "A"))
    assert read_labels(run).hash != before


def test_what_the_model_held_out_is_told_and_a_model_that_is_gone(run, tmp_path):
    give(run, (0, "ann", "A"))
    info = json.loads((run / "run.json").read_text())
    for model in (tmp_path / "gone", tiny_bundle(tmp_path / "another", seed=9).path):
        (run / "run.json").write_text(json.dumps(info | {"model": str(model)}))
        assert read_labels(run).held_out is None


def test_runs_that_teach_nothing_are_refused(run, scanned, tmp_path):
    with pytest.raises(NotFoundError, match="no run at"):
        read_all(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no object of .* is graded as a target or as no target; .*galscan vet"):
        read_all(run)
    give(run, (0, "ann", "C"))
    with pytest.raises(InputError, match="is graded as a target or as no target"):
        read_all(run)
    (run / FILE).unlink()
    with pytest.raises(NotFoundError, match="no grades at"):
        read_all(run)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "running"}))
    with pytest.raises(InputError, match="is not finished"):
        read_all(run)


def test_the_same_scan_twice_is_refused_also_as_a_copy(run, tmp_path):
    give(run, (0, "ann", "A"))
    copy = shutil.copytree(run, tmp_path / "copy")
    for other in (run, f"{run}/", copy):
        with pytest.raises(InputError, match=r"are the same scan; name it once"):
            read_all([run, other])
    assert len(read_all(str(run))) == 1
