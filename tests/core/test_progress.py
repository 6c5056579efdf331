from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from galscan.core import progress


def test_a_log_gets_a_line_at_the_end(capsys):
    with progress.track("scan", 100, "images", done=90) as advance:
        advance(4)
        advance(6, "note")
    out, err = capsys.readouterr()
    assert out == ""  # stdout is for results
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("scan: 100/100 images, ") and lines[0].endswith("0 s left note")


def test_a_long_job_is_told_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 11.0, 25.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track("ingest", 1000, "images") as advance:
        for _ in range(4):
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r" (\d+)/", line)[1] for line in lines] == ["20", "40"]
    assert "2.0/s, 490 s left" in lines[0]


def test_the_rate_leaves_out_what_was_there_before(capsys, monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track("scan", 200, "images", done=100) as advance:
        advance(40)
    assert "140/200 images, 2.0/s, 30 s left" in capsys.readouterr().err


def test_nothing_to_do(capsys):
    with progress.track("scan", 0):
        pass
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.track("scan", 10, "images") as advance:
        advance(10, "done")
    out, err = capsys.readouterr()
    assert out == "" and "scan" in err and "10/10" in err


class Shell:
    """What a notebook's kernel offers to the bar: the cell that runs, and outputs."""

    kernel = object()
    cell = 1

    def __init__(self, monkeypatch):
        self.outputs: list[str] = []
        display = SimpleNamespace(display=self.display)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: self))
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        monkeypatch.setattr(progress, "_cell", None)

    def get_parent(self):
        return {"header": {"msg_id": self.cell}}

    def display(self, data, raw, display_id):
        assert raw and display_id
        self.outputs.append(data["text/html"])
        at = len(self.outputs) - 1
        return SimpleNamespace(update=lambda data, raw: self.outputs.__setitem__(at, data["text/html"]))


def test_a_notebook_has_one_bar_per_cell(monkeypatch, capsys):
    shell = Shell(monkeypatch)
    for label in ("sample <maps>", "real only"):
        with progress.track(label, 1000, "step") as advance:
            for _ in range(1000):
                advance()
    assert len(shell.outputs) == 1 and 'value="1000" max="1000"' in shell.outputs[0] and "real only" in shell.outputs[0]
    shell.cell = 2
    with progress.track("sample <maps>", 10) as advance:
        advance(10)
    assert len(shell.outputs) == 2 and "sample &lt;maps&gt;" in shell.outputs[1]
    assert capsys.readouterr() == ("", "")


def test_ipython_on_a_terminal_is_no_notebook(monkeypatch, capsys):
    shell = Shell(monkeypatch)
    shell.kernel = None
    with progress.track("scan", 10) as advance:
        advance(10)
    assert not shell.outputs and "10/10" in capsys.readouterr().err


def test_an_error_passes_through():
    with pytest.raises(RuntimeError), progress.track("scan", 10) as advance:
        advance()
        raise RuntimeError
