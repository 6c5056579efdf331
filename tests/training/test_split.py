from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from galscan.labels.recipe import load_recipe
from galscan.labels.settings import Split
from galscan.training.split import RESERVED, folds_of, held_out, reserved, split_objects

SPLIT = Split()


def table(positives: int, negatives: int, ambiguous: int = 0, unlabelled: int = 0) -> pd.DataFrame:
    target = np.repeat([1.0, 0.0, np.nan, np.nan], [positives, negatives, ambiguous, unlabelled])
    labelled = np.arange(len(target)) < len(target) - unlabelled
    return pd.DataFrame({"object": [f"g{i}" for i in range(len(target))], "target": target, "labelled": labelled})


@given(st.integers(6, 60), st.integers(6, 200), st.integers(0, 300), st.integers(0, 20), st.integers(0, 5))
def test_every_labelled_object_is_in_one_split(positives, negatives, ambiguous, unlabelled, seed):
    t = table(positives, negatives, ambiguous, unlabelled)
    split = split_objects(t, SPLIT, seed)
    assert ((split == "") == ~t["labelled"]).all()
    for value in (0, 1):
        of_class = split[(t["target"] == value).to_numpy()]
        assert {"train", "calibration", "test"} == set(of_class)
    # Ambiguous ones calibrate and test in the proportion in which they are labelled, and move nobody else.
    unclear = split[(t["target"].isna() & t["labelled"]).to_numpy()]
    for name, fraction in (("calibration", SPLIT.calibration), ("test", SPLIT.test)):
        assert abs((unclear == name).sum() - fraction * ambiguous) <= 1
    sure = t["target"].notna().to_numpy()
    np.testing.assert_array_equal(split[sure], split_objects(t[sure], SPLIT, seed))


@given(st.integers(6, 60), st.integers(6, 200), st.integers(0, 300), st.integers(2, 6), st.integers(0, 5))
def test_folds_are_equal_parts_of_every_kind(positives, negatives, ambiguous, folds, seed):
    t = table(positives, negatives, ambiguous, unlabelled=5)
    split = split_objects(t, SPLIT, seed, folds)
    assert ((split == "") == ~t["labelled"]).all() and set(split) <= {"", *(f"fold {k}" for k in range(folds))}
    for of_kind in (t["target"] == 1, t["target"] == 0, t["target"].isna() & t["labelled"]):
        counts = [(split[of_kind.to_numpy()] == f"fold {k}").sum() for k in range(folds)]
        assert sum(counts) == of_kind.sum() and max(counts) - min(counts) <= 1


def test_a_split_does_not_depend_on_the_order_of_rows():
    t = table(20, 50)
    shuffled = t.sample(frac=1, random_state=0)
    by_id = dict(zip(t["object"], split_objects(t, SPLIT, 0), strict=True))
    assert by_id == dict(zip(shuffled["object"], split_objects(shuffled, SPLIT, 0), strict=True))


def test_an_object_in_two_stores_is_on_one_side():
    t = pd.concat([table(20, 50), table(20, 50)], ignore_index=True)
    t["split"] = split_objects(t, SPLIT, 0)
    assert (t.groupby("object")["split"].nunique() == 1).all()


def test_the_shipped_recipe_is_cross_fitted():
    recipe, some = load_recipe("dustlane"), labelled_and_not(30, 400)
    assert folds_of(recipe, some, synthetic=True, whole_images=False) == (recipe.classifier.members, "")
    folds, why = folds_of(recipe, some, synthetic=True, whole_images=True)
    assert folds == 0 and "whole images" in why


def test_without_galaxies_that_show_the_scatter_the_split_is_fixed():
    recipe = load_recipe("dustlane")
    for unlabelled, synthetic, needed in ((399, True, 400), (199, False, 200)):
        folds, why = folds_of(recipe, labelled_and_not(30, unlabelled), synthetic=synthetic, whole_images=False)
        assert folds == 0 and f"{needed} unlabelled galaxies" in why
        assert folds_of(recipe, labelled_and_not(30, needed), synthetic=synthetic, whole_images=False)[0]


def labelled_and_not(labelled: int, unlabelled: int) -> pd.DataFrame:
    known = np.arange(labelled + unlabelled) < labelled
    target = np.where(known, 1.0, np.nan)
    names = [f"g{k}" for k in range(len(known))]
    return pd.DataFrame({"id": names, "object": names, "target": target, "labelled": known})


def test_objects_that_show_the_scatter_have_no_label_in_any_store():
    both = pd.concat(
        [labelled_and_not(300, 500), labelled_and_not(0, 400)], ignore_index=True
    )  # of the second, 300 are labelled in the first
    found = reserved(both, synthetic=False, seed=0)
    assert len(found) == 600 and not set(found["id"]) & {f"g{k}" for k in range(300)}
    assert len(reserved(both, synthetic=True, seed=0)) == 300  # the others are hosts
    assert len(reserved(labelled_and_not(10, 399), synthetic=True, seed=0)) == 0  # too few: all are hosts
    assert len(reserved(labelled_and_not(0, 20_000), synthetic=True, seed=0)) == RESERVED


def test_an_object_is_held_out_in_every_row():
    t = pd.DataFrame({"object": ["a", "a", "b", "b", "c"], "split": ["test", "test", "test", "", "train"]})
    assert held_out(t).tolist() == [True, True, True, True, False]
