from __future__ import annotations

from galscan.verbs.export import export
from tests.candidate_tables import write_run


def test_says_what_it_wrote_on_stderr_only(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert export(run, tmp_path / "c.reg", top=19) == tmp_path / "c.reg"
    said = capsys.readouterr()
    assert said.out == "" and "19 of 20 candidates" in said.err and "1 of them have no coordinates" in said.err
    export(run, tmp_path / "c.reg")
    assert "replaced" in capsys.readouterr().err


def test_says_when_nothing_is_pure_enough(tmp_path, capsys):
    export(write_run(tmp_path / "run"), tmp_path / "c.csv", min_purity=0.99)
    assert "none reaches purity 0.99 (the purest rank has 0.95)" in capsys.readouterr().err
