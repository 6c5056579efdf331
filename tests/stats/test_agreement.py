from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from galscan.stats.agreement import agreements, kappa


def test_kappa_of_two_graders_is_that_of_scikit_learn():
    first, second = (np.random.default_rng(0).random((50, 2)) < (0.3, 0.4)).T
    same, beyond_chance = kappa(np.column_stack([first, second]))
    assert same == (first == second).mean()
    assert beyond_chance == pytest.approx(cohen_kappa_score(first, second))


def test_three_graders_are_compared_by_pairs_and_together_on_what_all_graded():
    is_target = pd.DataFrame({"ann": [1, 1, 0, np.nan], "bob": [1, 0, 0, 1], "cem": [1, 1, 0, 0]}, dtype=object)
    found = agreements(is_target)
    assert [f["graders"] for f in found] == [["ann", "bob"], ["ann", "cem"], ["bob", "cem"], ["ann", "bob", "cem"]]
    assert [f["items"] for f in found] == [3, 3, 4, 3] and found[1]["same"] == 1.0 and found[3]["same"] == 2 / 3
    # Fleiss 1971: agreement (1 + 1/3 + 1) / 3, by chance (5/9)^2 + (4/9)^2
    assert found[3]["kappa"] == pytest.approx((7 / 9 - 41 / 81) / (1 - 41 / 81))


@pytest.mark.parametrize("graders", [2, 3])
def test_kappa_is_undefined_if_all_grades_are_equal(graders):
    assert kappa(np.ones((5, graders), bool)) == kappa(np.zeros((5, graders), bool)) == (1.0, None)
