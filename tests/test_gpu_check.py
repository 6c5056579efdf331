"""The check of a GPU, without one: a step that fails or takes too long does not stop the others."""

from __future__ import annotations

import json
import sys

import pytest

from tests import gpu_check
from tests.gpu_check import RESULT, SECONDS, Step

TRAINS = f"import os; print('{RESULT}' + '{{\"given\": ' + os.environ['{SECONDS}'] + '}}')"


def test_every_step_is_reported(tmp_path, monkeypatch):
    codes = {
        "broken": "raise SystemExit('no GPU')",
        "slow": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
        "trains": TRAINS,
        "wide": "print('x' * 200_000)",
    }
    todo = [
        Step(name, [sys.executable, "-c", code], 2.0 if name == "slow" else 60.0, trains=name == "trains")
        for name, code in codes.items()
    ]
    monkeypatch.setattr(gpu_check, "steps", lambda options: todo)
    out = tmp_path / "found.json"
    given = ["--out", str(out), "--work", str(tmp_path / "work"), "--no-install", "--device", "cpu", "--short"]
    assert gpu_check.main(given) == 1
    report = json.loads(out.read_text())
    assert {name: step["code"] for name, step in report["steps"].items()} == {
        "broken": 1, "slow": 124, "trains": 0, "wide": 0,
    }  # fmt: skip
    assert report["steps"]["broken"]["output"] == ["no GPU"]
    assert report["steps"]["slow"]["seconds"] < 30
    assert report["steps"]["trains"]["figures"] == {"given": 4.0}
    assert gpu_check.main([*given, "--only", "trains", "wide"]) == 0
    assert list(json.loads(out.read_text())["steps"]) == ["trains", "wide"]


def test_steps_after_the_time_is_spent_are_reported_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "LONGEST", 0.0)
    monkeypatch.setattr(gpu_check, "steps", lambda options: [Step("late", [sys.executable, "-c", ""], 60.0)])
    assert gpu_check.main(["--out", str(tmp_path / "found.json"), "--work", str(tmp_path / "work")]) == 1
    assert json.loads((tmp_path / "found.json").read_text())["steps"]["late"]["code"] is None


@pytest.mark.parametrize("given", [["--no-deps"], ["--wheels", "."], ["--only", "dance"]])
def test_wrong_options_end_the_check_before_it_starts(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(given)
    assert stopped.value.code == 2 and not (tmp_path / "gpu-check.json").exists()


def test_a_machine_with_packages_of_its_own_installs_wheels_beside_them(tmp_path, monkeypatch):
    (tmp_path / "a-1-py3-none-any.whl").touch()
    found = []
    monkeypatch.setattr(gpu_check, "run", lambda step, *given: found.append(step) or {"code": 0})
    given = ["--wheels", str(tmp_path), "--no-deps", "--out", str(tmp_path / "f.json"), "--work", str(tmp_path)]
    assert gpu_check.main(given) == 0
    assert [step.name for step in found] == ["install", "device", "tests", "scan", "committee", "generator"]
    assert "--no-deps" in found[0].command and str(tmp_path / "a-1-py3-none-any.whl") in found[0].command
    assert all(step.command[0] == sys.executable for step in found)
    for step in found:
        if "-c" in step.command:
            compile(step.command[-1], step.name, "exec")
