from __future__ import annotations

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.vetting.csv_rows import escape_formula, read_rows

COLUMNS = ("id", "grader", "grade", "note")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\tx", "'quoted", "plain", ""])
def test_formulas_are_escaped_and_read_back(tmp_path, text):
    path = tmp_path / "g.csv"
    path.write_text(f"id,grader,grade,note\n7,ann,yes,{escape_formula(text)}\n")
    assert escape_formula(text)[:1] not in ("=", "+", "-", "@", "\t")
    assert read_rows(path, COLUMNS) == [{"id": "7", "grader": "ann", "grade": "yes", "note": text.strip()}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,grader\n1,ann\n", "'grade'"), (b"id,grader,grade\n1,ann\n", "line 2"),
        (b"id,grader,grade,key\n1,ann,yes,k", "truncated"), (b'id,grader,grade\n1,ann,"yes\n', "not a CSV table"),
        (b"\xff\xfe\x00", "not a CSV table"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "g.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "g.csv", COLUMNS)
    with pytest.raises(NotFoundError):
        read_rows(tmp_path / "none.csv", COLUMNS)
