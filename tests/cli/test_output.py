"""Output of results as text and as JSON, for all types of numbers."""

from __future__ import annotations

import json

import numpy as np

from galscan.cli.output import show

RESULT = {
    "rows": 12_345, "share": 0.123456, "whole": True, "nothing": None, "names": ["a", "b"],
    "inside": {"n": np.int64(3)}, "table": [{"rank": 1, "p": 0.5}, {"rank": 20, "p": float("nan")}],
}  # fmt: skip


def test_people_get_words(capsys):
    show(RESULT, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rows", "12,345"] and lines[1].split() == ["share", "0.1235"]
    assert lines[2].split() == ["whole", "yes"] and lines[3].split() == ["nothing", "none"]
    assert lines[4].split() == ["names", "a,", "b"] and lines[6].split() == ["n", "3"]
    assert [line.split() for line in lines[-3:]] == [["rank", "p"], ["1", "0.5"], ["20", "nan"]]


def test_scripts_get_json_as_the_last_line_and_no_number_that_json_has_not(capsys):
    show(RESULT | {"text": "for people"}, True)
    captured = capsys.readouterr()
    assert captured.err == "for people\n"
    told = json.loads(captured.out)
    assert told["inside"] == {"n": 3} and told["table"][1]["p"] is None and "text" not in told
