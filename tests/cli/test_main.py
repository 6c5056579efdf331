from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import galscan
from galscan.cli import main
from galscan.core.errors import InputError, Interrupted, StorageError

COMMANDS = {
    "demo": "demo", "ingest": "ingest", "train-rare": "train_rare", "train-generator": "train_generator",
    "generate": "generate", "evaluate": "evaluate", "ablate": "ablate", "scan": "scan", "export": "export",
    "info": "info",    "doctor": "doctor", "vet": "vet", "purity": "purity", "similar": "similar",
    "target new": "new_target", "target check": "check_target", "target list": "list_targets",
}  # fmt: skip
NEEDED = {
    "ingest": ["--survey", "simulated"],
    "train-rare": ["--target", "ring"],
    "train-generator": ["--out", "g.safetensors"],
    "generate": ["--target", "ring", "--count", "3", "--out", "d"],
    "evaluate": ["d.zarr", "--target", "ring"],
    "ablate": ["--target", "ring"],
    "export": ["run", "--out", "x.fits"],
    "info": ["x"],
    "vet": ["run"],
    "similar": ["--like", "7"],
    "purity": ["run"],
    "target new": ["mine"],
    "target check": ["ring"],
}
FOR_SCRIPTS = {"train-generator": {"widths"}, "purity": {"draws"}}  # set by recipes, and rarely needed


def command(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "galscan", *arguments], capture_output=True, text=True, **kwargs)


def test_help_is_light_and_quick():
    heavy = "{'torch','numpy','pandas','zarr','dask','astropy','matplotlib','pydantic','diffusers','scipy','PIL'}"
    code = f"import sys, galscan.cli.main; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    best = 1e9
    for _ in range(5):  # minimum of processor times, as the machine may be busy
        before = os.times()
        assert command("--help").returncode == 0
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    assert best < 0.5


def test_help_names_every_verb(capsys):
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name.split()[0]} " in text for name in COMMANDS)
    assert main.run([]) == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_has_help_an_example_and_json(name, capsys):
    assert main.run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: galscan {name}" in text and "--json" in text


@pytest.mark.parametrize(("name", "function"), COMMANDS.items())
def test_every_verb_passes_every_parameter(name, function, answer, capsys):
    wanted = {
        n for n, p in inspect.signature(getattr(galscan, function)).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    calls = answer(function, {"ok": True, "error": None})
    assert main.run([*name.split(), *NEEDED.get(name, [])]) == 0
    assert wanted - FOR_SCRIPTS.get(name, set()) <= calls.keys()


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"galscan {galscan.__version__}\n"


def test_json_is_the_last_line_and_people_read_stderr(answer, capsys):
    answer(
        "scan",
        {
            "scanned": np.int64(3),
            "rate": float("nan"),
            "where": Path("run"),
            "nested": {"a": np.array([1.5])},
            "text": "a table",
        },
    )
    assert main.run(["scan", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"scanned": 3, "rate": None, "where": "run", "nested": {"a": [1.5]}}
    assert err == "a table\n"
    assert main.run(["scan"]) == 0
    assert capsys.readouterr() == ("a table\n", "")


def test_words_for_people(answer, capsys):
    answer(
        "scan", {"scanned": 16753, "ok": True, "rate": 1234.5678, "labels": {"efigi": 14}, "none": None, "list": [1, 2]}
    )
    assert main.run(["scan"]) == 0
    out = capsys.readouterr().out
    assert "16,753" in out and "yes" in out and "1235" in out and "\n  efigi  14\n" in out and "1, 2" in out


def test_a_table_for_people(answer, capsys):
    answer("demo", {"table": [{"rank": 10, "purity": 0.912345}, {"rank": 1000, "purity": 0.5}], "runs": []})
    assert main.run(["demo"]) == 0
    out = capsys.readouterr().out
    assert "table\n   rank  purity\n     10  0.9123\n  1,000     0.5\n" in out and "none" in out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("no such\nthing; do that"), 2, "no such thing; do that"),
        (StorageError("disk is full"), 1, "disk is full"),
        (Interrupted("run it again"), 130, "run it again"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (
            RuntimeError("broken\ninside"),
            1,
            "unexpected RuntimeError: broken inside (for the developers: run it again with --traceback)",
        ),
    ],
)
def test_an_error_is_one_line(error, code, words, answer, capsys):
    answer("scan", error)
    assert main.run(["scan"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.strip().count("\n") == 0 and err.startswith("error: ") and words in err
    assert main.run(["scan", "--json"]) == code
    last = json.loads(capsys.readouterr().out)
    assert last["exit_code"] == code and words in last["error"]
    assert last["code"] == ("interrupted" if code == 130 else getattr(error, "code", "unexpected"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scam"], "No such command 'scam'"),
        (["scan", "--frob"], "--frob"),
        (["scan", "--top", "many"], "--top"),
        (["scan", "--top", "0"], "--top"),
        (["scan", "--device", "tpu"], "--device"),
        (["train-rare"], "--target"),
        (["target", "new"], "Missing argument 'name'"),
        (["target", "check", "rings", "--store", "x"], "did you mean 'ring'"),
        (["ingest"], "--survey"),
        (["export", "run"], "--out"),
        (["ingest", "--survey", "local", "--column", "id"], "--column 'id' is not of the form NAME=VALUE"),
        (["train-generator", "--out", "g.safetensors", "--count", "15"], "--count"),
        (["generate", "--target", "ring", "--out", "d"], "--count"),
        (["generate", "--target", "ring", "--count", "0", "--out", "d"], "--count"),
        (["generate", "--target", "ring", "--count", "3", "--out", "d", "--guidance", "-1"], "--guidance"),
        (["evaluate", "--target", "ring"], "Missing argument 'synthetic'"),
        (["ablate"], "--target"),
        (["ingest", "--survey", "loca"], "did you mean 'local'"),
        (["info", "/no/such/place"], "does not exist"),
        (["train-rare", "--target", "dustlanes"], "did you mean 'dustlane'"),
        (["scan", "--survey", "sdss", "--target", "dustlane"], "galscan ingest"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(arguments, words, capsys):
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.strip().count("\n") == 0
    assert main.run([*arguments, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


@pytest.mark.parametrize("arguments", [["--traceback", "scan"], ["scan", "--traceback"], ["scan"]])
def test_a_traceback_for_developers(arguments, answer, capsys, monkeypatch):
    if "--traceback" not in arguments:
        monkeypatch.setenv("GALSCAN_TRACEBACK", "1")
    answer("scan", RuntimeError("broken"))
    assert main.run(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    line = f"{sys.executable} -m galscan scan --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == ""
    code = (
        "import galscan, galscan.cli.main as c; galscan.doctor = lambda: {'ok': True, 'text': 'x' * 10**6}; "
        "raise SystemExit(c.run(['doctor']))"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" | head -c 5', code], capture_output=True, text=True)
    assert done.stdout == "xxxxx" and done.stderr == ""


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    code = (
        "import time, galscan, galscan.cli.main as c\n"
        "def slow(*a, **k): print('ready', flush=True); time.sleep(60)\n"
        "galscan.scan = slow\nraise SystemExit(c.run(['scan']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again" in err and "Traceback" not in err
