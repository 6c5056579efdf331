"""The command line as a whole: help, exit codes, errors in one line, pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import galscan
from galscan.cli import main
from galscan.core.errors import InputError, Interrupted, StorageError


def test_help_is_light_and_quick():
    heavy = "{'torch','numpy','pandas','zarr','dask','astropy','matplotlib','pydantic','diffusers','scipy','PIL'}"
    code = f"import sys, galscan.cli.main as m; m.run(['--help']); raise SystemExit({heavy} & set(sys.modules) or 0)"
    for _ in range(5):  # processor time, at its best, as the machine may be busy
        before = os.times()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        if used < 0.5:
            return
    raise AssertionError(f"galscan --help takes {used:.2f} s")


def test_help_names_every_command(capsys):
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command.name.split()[0]} " in text for command in main.COMMANDS)
    assert main.run(["--version"]) == 0 and capsys.readouterr().out == f"galscan {galscan.__version__}\n"


def test_without_a_command_it_says_what_to_type_first(capsys):
    assert main.run([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    commands = [line.split("  ")[1].split()[1:] for line in lines if line.startswith("  galscan ")]
    assert len(commands) == 5 and ["demo"] in commands
    names = {command.name for command in main.COMMANDS}
    assert {" ".join(words) for words in commands} - names <= {"ingest --help", "--help"}


@pytest.mark.parametrize(
    ("words", "found"),
    [("galscan tra", "train-rare"), ("galscan target n", "new"), ("galscan scan --cas", "--cascade")],
)
def test_a_shell_completes_commands_and_options(words, found):
    variables = {"_GALSCAN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-m", "galscan"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert found in done.stdout.split() and done.stderr == ""


UNEXPECTED = "unexpected RuntimeError: broken inside"


@pytest.mark.parametrize(
    ("error", "exit_code", "code", "words"),
    [
        (InputError("no such\nthing; do that"), 2, InputError.code, "no such thing; do that"),
        (StorageError("disk is full"), 1, StorageError.code, "disk is full"),
        (Interrupted("run it again"), 130, "interrupted", "run it again"),
        (KeyboardInterrupt(), 130, "interrupted", "run the same command again"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "no-permission", "/a/b"),
        (RuntimeError("broken\ninside"), 1, "unexpected", UNEXPECTED),
    ],
)
def test_an_error_is_one_line(error, exit_code, code, words, answer, capsys):
    answer("scan", error)
    assert main.run(["scan", "--json"]) == exit_code
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("error: ") and words in err
    last = json.loads(out)
    assert (last["exit_code"], last["code"], f"error: {last['error']}\n") == (exit_code, code, err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("scam", "'scam'"),
        ("scan --frob", "--frob"),
        ("scan --top many", "--top"),
        ("scan --top 0", "--top"),
        ("target", "galscan target --help"),
        ("target new", "'name'"),
        ("ingest", "--survey"),
        ("ingest --survey local --column id", "'id'"),
        ("generate --target ring --count 3 --out d --guidance -1", "--guidance"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, words, capsys):
    assert main.run([*arguments.split(), "--json"]) == 2
    out, err = capsys.readouterr()
    assert words in json.loads(out)["error"] and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--traceback", "scan"], ["scan", "--traceback"], ["scan"]])
def test_a_traceback_for_developers(arguments, answer, capsys, monkeypatch):
    if "--traceback" not in arguments:
        monkeypatch.setenv("GALSCAN_TRACEBACK", "1")
    answer("scan", RuntimeError("broken"))
    assert main.run(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_reader_of_a_pipe_may_close_it():
    code = (
        "import galscan, galscan.cli.main as c; galscan.doctor = lambda: {'ok': True, 'text': 'x' * 10**6}; "
        "raise SystemExit(c.run(['doctor']))"
    )
    line = 'trap "" PIPE; "$0" -c "$1" | head -c 5'
    done = subprocess.run(["bash", "-c", line, sys.executable, code], capture_output=True, text=True)
    assert done.stdout == "xxxxx" and done.stderr == ""
