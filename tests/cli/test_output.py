"""Output of results as text and as JSON, for all types of numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from galscan.cli.output import show

RESULT = {
    "rows": 12_345, "fraction": 0.123456, "whole": True, "nothing": None, "names": ["a", "b"],
    "inside": {"n": np.int64(3)}, "table": [{"rank": 1, "p": 0.5}, {"rank": 2000, "p": float("nan")}],
    "empty": [], "where": Path("run"), "array": np.array([1.5]),
}  # fmt: skip


def test_text(capsys):
    show(RESULT, False)
    assert capsys.readouterr().out.splitlines() == [
        "rows      12,345", "fraction  0.1235", "whole     yes", "nothing   none", "names     a, b",
        "inside", "  n  3", "table", "   rank    p", "      1  0.5", "  2,000  nan",
        "empty     none", "where     run", "array     [1.5]",
    ]  # fmt: skip


def test_json_is_the_last_line_and_has_no_number_that_json_lacks(capsys):
    show(RESULT | {"text": "for people"}, True)
    captured = capsys.readouterr()
    assert captured.err == "for people\n"
    expected = {**RESULT, "table": [{"rank": 1, "p": 0.5}, {"rank": 2000, "p": None}], "where": "run", "array": [1.5]}
    assert json.loads(captured.out) == expected
