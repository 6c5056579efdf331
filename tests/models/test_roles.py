from __future__ import annotations

import numpy as np
import pandas as pd

from galscan.models import roles
from galscan.models.roles import one_row_per_object

SPLIT = pd.Series(["train", "calibration", "test", "fold 0", "fold 1", "fold 11", ""])


def test_what_each_split_is_used_for():
    assert roles.fold_numbers(SPLIT).tolist() == [-1, -1, -1, 0, 1, 11, -1]
    assert SPLIT[roles.trains(SPLIT)].tolist() == ["train", "fold 0", "fold 1", "fold 11"]
    assert SPLIT[roles.trains(SPLIT, 1)].tolist() == ["train", "fold 0", "fold 11"]
    assert SPLIT[roles.calibrates(SPLIT)].tolist() == ["calibration", "fold 0", "fold 1", "fold 11"]
    assert SPLIT[roles.tests(SPLIT)].tolist() == ["test", "fold 0", "fold 1", "fold 11"]
    assert SPLIT[roles.held_out_from(SPLIT)].tolist() == ["calibration", "test", "fold 0"]
    assert SPLIT[roles.held_out_from(SPLIT, 1)].tolist() == ["calibration", "test", "fold 1"]
    assert roles.with_fixed_split(SPLIT).tolist() == ["train", "calibration", "test", "test", "train", "train", ""]


def test_of_rows_that_do_not_agree_the_one_it_was_split_by_counts():
    rows = [("a", "test", 0.0), ("a", "test", 1.0), ("a", "test", 1.0), ("b", "test", np.nan), ("b", "", np.nan)]
    t = pd.DataFrame(rows, columns=["object", "split", "target"])
    assert one_row_per_object(t).tolist() == [False, True, False, True, True]
