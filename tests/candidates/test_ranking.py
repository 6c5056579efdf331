from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.candidates import ranking as ranks
from galscan.candidates.columns import COLUMNS
from galscan.core.errors import InputError
from galscan.stats.purity import Purity


def _purity(n):
    line = np.linspace(0.9, 0.5, n)
    return Purity(
        0.01, 0.005, 0.02, line, line, line - 0.2, line + 0.1, line, line, line, 1 - line, line - line, 1 - line, []
    )


def _top(ids, **more):
    n = len(ids)
    return pd.DataFrame(
        {
            "store": ["s"] * n,
            "index": np.arange(n),
            "id": ids,
            "ra": [10.0, np.nan, 30.0][:n],
            "dec": [-1.0, np.nan, 3.0][:n],
            "score": np.float32([3, 2, 1][:n]),
            "score_std": np.float32([0.1] * n),
            **more,
        }
    )


def test_columns_order_and_values():
    table = ranks.rank(
        _top([7, 8, 9], flags=np.uint8([0, 32, 0]), dust=np.float32([0.5, 0.6, np.nan])),
        _purity(3),
        [False, True, False],
    )
    later = ("known_name", "known_ref", "known_sep", "known_type", "grade", "votes", "comment")
    assert list(table) == [c.name for c in COLUMNS if c.name not in later] + ["dust"]
    assert table["objid"].dtype == np.int64 and table["objid"].tolist() == [7, 8, 9]
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["in_train"].tolist() == [False, True, False]
    assert table["designation"].tolist() == ["J004000.00-010000.0", "", "J020000.00+030000.0"]
    assert table["flags"].tolist() == [0, 32, 0]


def test_text_ids_stay_text():
    table = ranks.rank(_top(["007", "NGC 1", "x"]), _purity(3), [True, False, False])
    assert table["objid"].tolist() == ["007", "NGC 1", "x"]
    assert table["in_train"].tolist() == [True, False, False]
    assert "flags" not in table  # unknown is not zero


def test_large_integers_are_exact():
    big = 587_722_982_273_122_463
    assert ranks.rank(_top([big]), _purity(1), [False])["objid"].tolist() == [big]


@pytest.mark.parametrize("top", [pd.DataFrame(), _top([])])
def test_no_candidates(top):
    table = ranks.rank(top, _purity(0), [])
    assert len(table) == 0 and "purity_lo" in table


def test_answer_with_the_name_of_a_column():
    with pytest.raises(InputError, match="'purity'"):
        ranks.rank(_top([1, 2], purity=np.float32([1, 1])), _purity(2), [False] * 2)


def test_an_object_at_a_better_rank_already_is_marked():
    top = _top([1, 2, 3]).assign(ra=[10.0, 20.0, 10.0002], dec=1.0, store=["a", "a", "b"])
    assert ranks.rank(top, _purity(3), [False] * 3)["duplicate"].tolist() == [False, False, True]
    nowhere = top.assign(ra=np.nan, id=[1, 2, 1])
    assert not ranks.duplicates(nowhere).any()  # row 1 of one catalogue is not row 1 of another
    assert ranks.duplicates(nowhere.assign(lineage="the same")).tolist() == [False, False, True]
    near = top.assign(ra=[10.0, 10.001, 20.0])
    assert not ranks.duplicates(near).any() and ranks.duplicates(near, 5).tolist() == [False, True, False]
