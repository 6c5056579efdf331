"""Objects of a catalog: rows as read, returned as copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.surveys.catalog import CatalogSurvey


class Survey(CatalogSurvey):
    def __init__(self, table: pd.DataFrame, **columns: str):
        self.catalog = Path("mine.csv")
        self._read_positions(table, columns)
        self.labels = pd.DataFrame({"efigi/t": np.arange(len(table), dtype=np.float32)})
        self._schemas = {"efigi": ["t"]}


TABLE = pd.DataFrame({"id": [7, 8, 9], "ra": [1.0, 2.0, 3.0], "dec": [-1.0, 0.0, 1.0], "name": ["a", "b", "c"]})


def test_rows_are_those_of_the_catalog_and_a_copy():
    survey = Survey(TABLE)
    assert len(survey) == 3 and survey.id_dtype == np.int64 and survey.truth() == []
    rows = survey.objects(1, 3)
    assert rows.to_dict("list") == {"id": [8, 9], "ra": [2.0, 3.0], "dec": [0.0, 1.0], "efigi/t": [1.0, 2.0]}
    rows["ra"] = 0.0
    survey.schemas()["efigi"].append("x")
    assert survey.ra.tolist() == [1.0, 2.0, 3.0] and survey.schemas() == {"efigi": ["t"]}
    assert Survey(TABLE, id="name").ids.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("role", ["id", "ra", "dec"])
def test_a_missing_column_is_named(role):
    table = TABLE.drop(columns="name").rename(columns={role: "other"})
    with pytest.raises(InputError, match=f"--column {role}="):
        Survey(table)
