"""One table of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from galscan.core.errors import InputError
from galscan.surveys.table_files.choice import Listed, choose_table

TABLES = [Listed("A", 1, ["x"], 5), Listed("B", 2, ["ra"], 5), Listed("C", 3, ["ra"], 0)]


def test_the_one_with_the_columns_and_with_rows() -> None:
    assert choose_table(Path("t"), None, lambda names: "ra" in names, TABLES) == 1
    assert choose_table(Path("t"), "3", lambda names: 0, TABLES) == 2
    for wanted, suits in ((None, 0), (None, 1), ("D", 1)):
        with pytest.raises(InputError, match=r"1 A .*2 B "):
            choose_table(Path("t"), wanted, lambda names: suits, TABLES)  # noqa: B023
