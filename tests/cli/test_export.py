"""``galscan export`` and ``send`` as commands: options reach the functions, and errors have their codes."""

from __future__ import annotations

import json

import pytest

from galscan.cli import main


def test_export_writes_what_is_asked_for(shared_run, tmp_path, capsys):
    out = tmp_path / "best.csv"
    assert main.run(["export", str(shared_run.path), "--top", "5", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "options",
    [
        ["export", "--out", "best.xyz"],
        ["export", "--out", "best.csv", "--format", "docx"],
        ["export", "--out", "best.csv", "--min-purity", "2"],
        ["send", "--top", "0"],
        ["send", "--target", "nothing"],
    ],
)
def test_invalid_options_have_exit_code_2(options, shared_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run([options[0], str(shared_run.path), *options[1:]]) == 2
    assert not list(tmp_path.iterdir())
