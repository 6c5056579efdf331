"""Grades as labels: used for training only, and no object is on two sides of a split."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.settings import Split
from galscan.store.identity import Objects
from galscan.training.graded_labels import GradedLabels, add_labels, add_stores, describe
from galscan.training.split import split_objects
from tests.helpers import tiny_store


class Column:
    """A store without images: row n has an object whose id and position follow from n and a first number."""

    def __init__(self, name: str, first: int = 0, count: int = 200, *, places: bool = True, ids: str = "{}"):
        self.name, self.path, self.content_hash, self.count = name, name, f"content of {name}", count
        self.attrs: dict = {}
        numbers = np.arange(first, first + count)
        place = numbers.astype(float) if places else np.full(count, np.nan)
        self._columns = {"id": np.array([ids.format(n) for n in numbers]), "ra": place, "dec": place / 10}

    def column(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        return self._columns[name][rows]


SKY, SURVEY = Column("sky"), Column("survey", 100)  # the objects 100 to 199 are in both


@lru_cache
def labelled(seed: int = 0) -> pd.DataFrame:
    """Return the labelled objects of SKY, split: every fifth is a target, every seventh ambiguous."""
    target = np.where(np.arange(200) % 5 == 0, 1.0, 0.0)
    target[::7] = np.nan
    table = pd.DataFrame({"store": "sky", "survey": 0, "row": np.arange(200), "id": SKY.column("id")})
    table = table.assign(ra=SKY.column("ra"), dec=SKY.column("dec"), lineage="sky", object=table["id"])
    table["target"], table["labelled"] = target, True
    table["split"] = split_objects(table, Split(), seed)
    return table.assign(dust=0.5)


NONE = Objects(None, None, None, [])


def graded_scans(
    targets: dict[int, float], store: Column = SKY, held_out: Objects | None = NONE, run: str = "run"
) -> GradedLabels:
    rows = np.array([*targets], int)
    table = pd.DataFrame({"store": store.name, "row": rows, "id": store.column("id")[rows]})
    table["target"] = np.array([*targets.values()], float)
    stores = {store.name: (store.name, store.content_hash)}
    return GradedLabels(Path(run), "dustlane", f"fingerprint of {run}", table, stores, held_out)


grades = st.dictionaries(st.integers(0, 199), st.sampled_from([1.0, 0.0, np.nan]), min_size=1, max_size=80)


@settings(max_examples=25)
@given(grades, st.integers(0, 3))
def test_under_cross_fitting_grades_train_and_labelled_objects_keep_their_labels(given_grades, seed):
    before = labelled().assign(split=lambda t: split_objects(t, Split(), seed, 3))
    survey = Column("survey", 190)  # of whose objects ten are labelled
    after, (counts,) = add_labels(before, [SKY, survey], [graded_scans(given_grades, survey)])
    of_folds = after[after["split"].str.startswith("fold")].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_folds, before.reset_index(drop=True), check_dtype=False)
    sure = {row: target for row, target in given_grades.items() if np.isfinite(target)}
    known = {row for row in sure if row < 10}
    assert counts["held_out"] == len(known)
    trained = after[after["split"] == "train"]
    assert dict(zip(trained["row"], trained["target"], strict=True)) == {
        r: t for r, t in sure.items() if r not in known
    }


@settings(max_examples=25)
@given(grades, grades, st.sets(st.integers(0, 299), max_size=60), st.integers(0, 3))
def test_grades_are_for_training_only_and_no_object_is_in_two_splits(one, other, held, seed):
    before = labelled(seed)
    runs = [
        graded_scans(one, held_out=Objects(None, None, None, sorted(held))),
        graded_scans(other, SURVEY, run="other"),
    ]
    after, counts = add_labels(before, [SKY, SURVEY], runs)
    assert not after.duplicated(["survey", "row"]).any()
    assert (after[after["split"] != ""].groupby("object")["split"].nunique() == 1).all()
    for split in ("calibration", "test"):
        pd.testing.assert_frame_equal(
            after[after["split"] == split].reset_index(drop=True),
            before[before["split"] == split].reset_index(drop=True), check_dtype=False,
        )  # fmt: skip
    trained_on = after[after["split"] == "train"].set_index("id")["target"]
    graded = pd.concat([r.table for r in runs]).dropna(subset="target").groupby("id")["target"].agg(set)
    for name, object_grades in graded.items():
        if len(object_grades) == 1 and name in trained_on.index:
            assert set(trained_on.loc[[name]]) == object_grades
    # What the model of one of the scans held out is not trained on, whichever scan was graded.
    sure = {name for name, object_grades in graded.items() if len(object_grades) == 1}
    assert not sure & {str(h) for h in held} & set(trained_on.index)
    for c in counts:
        assert c["graded"] - c["unsure"] == c["new"] + c["agreed"] + c["contradicted"]
        assert c["positive"] + c["negative"] == c["graded"] - c["unsure"] - c["held_out"]


def test_counts_of_grades():
    before = labelled().set_index("id")
    train = before[before["split"] == "train"]
    target, other = train.index[train["target"] == 1][0], train.index[train["target"] == 0][0]
    tested = before.index[before["split"] == "test"][0]
    ambiguous, again = train.index[train["target"].isna()][:2]
    unclear = before.index[before["target"].isna() & (before["split"] == "test")][0]
    object_grades = {int(target): 1.0, int(other): 1.0, int(tested): 1.0, int(ambiguous): 1.0, int(again): np.nan}
    object_grades[int(unclear)] = 1.0  # ambiguous, and tested on
    table, (counts,) = add_labels(labelled(), [SKY], [graded_scans(object_grades)])
    assert counts == {
        "graded": 6, "unsure": 1, "positive": 3, "negative": 0, "held_out": 2, "new": 2,
        "agreed": 1 + (before.loc[tested, "target"] == 1), "contradicted": 1 + (before.loc[tested, "target"] == 0),
    }  # fmt: skip
    after = table.set_index("id")
    assert after.loc[[target, other, ambiguous], "target"].tolist() == [1, 1, 1]
    assert after.loc[[target, other, ambiguous], "split"].tolist() == ["train"] * 3
    assert after.loc[tested, "target"] == before.loc[tested, "target"]
    assert after.loc[[again, unclear], "target"].isna().all()
    known, unknown = ("\n".join(describe([graded_scans(object_grades, held_out=h)], [counts])) for h in (NONE, None))
    assert "3 positive and 0 negative trained on, of 6 graded; 1 left out" in known
    assert "used for training only" in known and "not known" not in known and "not known" in unknown


def test_objects_of_another_store_come_with_their_rows():
    table, (counts,) = add_labels(labelled(), [SKY, SURVEY], [graded_scans({150: 1.0, 120: 0.0}, SURVEY)])
    new = table[table["survey"] == 1]
    assert new[["store", "row", "id", "target", "split"]].to_numpy().tolist() == [
        ["survey", 150, "250", 1.0, "train"], ["survey", 120, "220", 0.0, "train"],
    ]  # fmt: skip
    assert new["dust"].isna().all() and counts["new"] == 2 and len(table) == 202


def test_the_same_row_number_in_another_store_is_another_object():
    """Rows of both stores are numbered from 0, and are other galaxies."""
    before = labelled().set_index("id")
    target = before.index[(before["split"] == "train") & (before["target"] == 1)][0]
    for other in (Column("other", places=False), Column("other", first=0)):
        other._columns |= {"dec": other.column("dec") - 50}
        table, (counts,) = add_labels(labelled(), [SKY, other], [graded_scans({int(target): 0.0}, other)])
        assert counts["new"] == 1 and counts["contradicted"] == 0 and len(table) == 201
        assert table.loc[(table["survey"] == 0) & (table["id"] == target), "target"].tolist() == [1.0]
        new = table[table["survey"] == 1]
        assert new["target"].tolist() == [0.0] and new["object"].tolist() == [f"other/{target}"]


def test_an_object_is_known_by_its_position_under_another_name():
    before = labelled().set_index("id")
    train, tested = (before.index[(before["split"] == name) & (before["target"] == 1)][0] for name in ("train", "test"))
    other = Column("other", ids="J{}")
    table, (counts,) = add_labels(labelled(), [SKY, other], [graded_scans({int(train): 0.0, int(tested): 0.0}, other)])
    assert counts["contradicted"] == 2 and counts["held_out"] == 1 and counts["negative"] == 1
    assert table.loc[table["object"] == train, "target"].tolist() == [0.0, 0.0]  # in both stores
    assert table.loc[table["object"] == tested, "target"].tolist() == [1.0]


def test_conflicting_grades_of_two_scans_are_not_used():
    runs = [graded_scans({150: 1.0}, SURVEY), graded_scans({150: 0.0}, SURVEY, run="other")]
    table, counts = add_labels(labelled(), [SKY, SURVEY], runs)
    assert len(table) == 200 and [c["unsure"] for c in counts] == [1, 1]


@pytest.mark.parametrize("change", [{"row": 7}, {"row": 10**6}, {"row": -1}, {"id": "../../etc/passwd"}])
def test_a_grade_of_an_object_that_is_not_there_is_refused(change):
    one = graded_scans({3: 1.0})
    for name, value in change.items():
        one.table[name] = value
    with pytest.raises(InputError, match="run graded object"):
        add_labels(labelled(), [SKY], [one])


def test_stores_are_identified_by_content(tmp_path):
    store = tiny_store(tmp_path / "sky.zarr", 20)
    run = graded_scans({3: 1.0}, store=Column("sky"))

    def of(path, content):
        return GradedLabels(run.run, run.target, "f", run.table, {"sky": (str(path), content)}, None)

    moved = of(tmp_path / "gone.zarr", store.content_hash)
    assert add_stores([store], [moved]) == [store]
    assert [s.path for s in add_stores([], [of(store.path, store.content_hash)])] == [store.path]
    with pytest.raises(InputError, match=r"gone\.zarr"):
        add_stores([], [moved])
    with pytest.raises(InputError, match="changed since the scan"):
        add_stores([], [of(store.path, "another")])


def test_the_hash_is_of_certain_grades():
    one = graded_scans({3: 1.0, 4: 0.0, 5: np.nan})
    assert one.hash == graded_scans({4: 0.0, 3: 1.0}).hash != graded_scans({4: 0.0, 3: 0.0}).hash
