from __future__ import annotations

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.vetting.csv_rows import escape_formula, read_rows

COLUMNS = ("id", "grader", "grade", "note")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\tx", "'quoted", "plain", ""])
def test_what_a_spreadsheet_would_run_is_quoted_and_read_as_it_was(tmp_path, text):
    path = tmp_path / "g.csv"
    path.write_text(f"id,grader,grade,note\n7,ann,yes,{escape_formula(text)}\n")
    assert escape_formula(text)[:1] not in ("=", "+", "-", "@", "\t")
    (row,) = read_rows(path, COLUMNS)
    assert row == {"id": "7", "grader": "ann", "grade": "yes", "note": text.strip()}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("id,grader\n1,ann\n", "no column 'grade'"),
        ("id,grader,grade\n1,ann\n", "line 2"),
        ("id,grader,grade,key\n1,ann,yes,k", "truncated"),
        ('id,grader,grade\n1,ann,"yes\n', "not a CSV table"),
    ],
)
def test_what_is_no_table_of_grades_is_refused(tmp_path, text, error):
    path = tmp_path / "g.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=error):
        read_rows(path, COLUMNS)
    with pytest.raises(NotFoundError):
        read_rows(tmp_path / "none.csv", COLUMNS)
