"""Commands for surveys: options are passed on, and failures give an exit code."""

from __future__ import annotations

import json

from galscan.cli import main
from galscan.surveys.sizes import DEFAULT_SIZE


def test_options_arrive(answer):
    calls = answer("scan", {})
    line = "scan --survey a --survey b --store c --top 7 --cluster tcp://h:1 --dry-run"
    assert main.run([*line.split(), "--store", "my store/d.zarr"]) == 0
    assert calls["survey"] == ["a", "b"] and calls["store"] == ["c", "my store/d.zarr"]
    assert calls["top"] == 7 and calls["cluster"] == "tcp://h:1" and calls["dry_run"] and calls["target"] is None
    calls = answer("ingest", {})
    line = "ingest --survey local --labels efigi --column id=OBJ=ID --column ra=R"
    assert main.run(line.split()) == 0
    assert calls["labels"] == ["efigi"] and calls["columns"] == {"id": "OBJ=ID", "ra": "R"}
    assert calls["size"] is None, "a store that is added to sets it"


def test_help_says_the_default_size(capsys):
    assert main.run(["ingest", "--help"]) == 0
    assert f"default: {DEFAULT_SIZE}, with --append that of the store" in " ".join(capsys.readouterr().out.split())


def test_doctor_fails_when_something_is_broken(answer, capsys):
    answer("doctor", {"ok": False, "problems": ["x"]})
    assert main.run(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"ok": False, "problems": ["x"]}
