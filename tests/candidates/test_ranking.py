from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.candidates import ranking
from galscan.candidates.columns import COLUMNS
from galscan.core.errors import InputError
from galscan.stats.purity import Purity


def rank(top: pd.DataFrame) -> pd.DataFrame:
    line = np.linspace(0.9, 0.5, len(top))
    purity = Purity(
        0.01, 0.005, 0.02, line, line, line - 0.2, line + 0.1, line, line, line, 1 - line, line - line, 1 - line, []
    )
    return ranking.rank(top, purity, np.arange(len(top)) == 1)


def top_rows(ids, **more) -> pd.DataFrame:
    n = len(ids)
    return pd.DataFrame({
        "store": ["s"] * n, "index": np.arange(n), "id": ids, "ra": [10.0, np.nan, 30.0][:n],
        "dec": [-1.0, np.nan, 3.0][:n], "score": np.float32([3, 2, 1][:n]), "score_std": np.float32([0.1] * n), **more,
    })  # fmt: skip


def test_columns_order_and_values():
    table = rank(top_rows([7, 8, 9], flags=np.uint8([0, 32, 0]), dust=np.float32([0.5, 0.6, np.nan])))
    later = ("known_name", "known_ref", "known_sep", "known_type", "grade", "votes", "comment")
    assert list(table) == [c.name for c in COLUMNS if c.name not in later] + ["dust"]
    assert table["objid"].dtype == np.int64 and table["objid"].tolist() == [7, 8, 9]
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["in_train"].tolist() == [False, True, False]
    assert table["designation"].tolist() == ["J004000.00-010000.0", "", "J020000.00+030000.0"]
    assert table["flags"].tolist() == [0, 32, 0]
    assert "flags" not in rank(top_rows([7]))  # unknown is not zero


@pytest.mark.parametrize("ids", [["007", "NGC 1", "x"], [587_722_982_273_122_463]])
def test_ids_are_exact(ids):
    assert rank(top_rows(ids))["objid"].tolist() == ids


@pytest.mark.parametrize("top", [pd.DataFrame(), top_rows([])])
def test_no_candidates(top):
    table = rank(top)
    assert len(table) == 0 and "purity_lo" in table


def test_answer_with_the_name_of_a_column():
    with pytest.raises(InputError, match="'purity'"):
        rank(top_rows([1, 2], purity=np.float32([1, 1])))


def test_duplicates():
    top = top_rows([1, 2, 3]).assign(ra=[10.0, 20.0, 10.0002], dec=1.0, store=["a", "a", "b"])
    assert rank(top)["duplicate"].tolist() == [False, False, True]
    without_position = top.assign(ra=np.nan, id=[1, 2, 1])
    assert not ranking.duplicates(without_position).any()  # row 1 of one catalogue is not row 1 of another
    assert ranking.duplicates(without_position.assign(lineage="the same")).tolist() == [False, False, True]
    near = top.assign(ra=[10.0, 10.001, 20.0])
    assert not ranking.duplicates(near).any() and ranking.duplicates(near, 5).tolist() == [False, True, False]
