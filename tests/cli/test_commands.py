"""The options of each command: those of its public function, and how their values arrive there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import galscan
from galscan.cli import main

NOT_OPTIONS = {"train_generator": {"widths"}, "purity": {"draws"}}  # set by recipes, or rarely needed
PASSED_ON = [
    ("train_rare", "train-rare --target ring,lens --no-synthetic --budget 1.5",
     {"target": ["ring", "lens"], "synthetic": False, "budget": 1.5}),
    ("generate", "generate --target ring --count 3 --out d --set a=0.2:0.7 --set b=1 --weight a=1.5 --from a>=0.5",
     {"out": Path("d"), "base": "a>=0.5", "values": {"a": (0.2, 0.7), "b": (1.0, 1.0)}, "weights": {"a": 1.5}}),
    ("train_generator", "train-generator --out g.safetensors --store a --store b --start base --size 32",
     {"out": Path("g.safetensors"), "store": ["a", "b"], "start": "base", "size": 32}),
    ("ablate", "ablate --target ring --positives 8 --reserved 20 --arms plain --arms maps",
     {"target": "ring", "positives": 8, "reserved": 20, "arms": ["plain", "maps"], "folds": 1}),
    ("scan", "scan --survey a --survey b --store s3://c --cone 180,-1.5,2 --cluster tcp://h:1 --dry-run",
     {"survey": ["a", "b"], "store": ["s3://c"], "cone": (180, -1.5, 2), "cluster": "tcp://h:1", "dry_run": True}),
    ("ingest", "ingest --survey local --labels efigi --column id=OBJ=ID --column ra=R",
     {"labels": ["efigi"], "columns": {"id": "OBJ=ID", "ra": "R"}}),
    ("similar", "similar --like 3,5 --like 7", {"like": ["3", "5", "7"]}),
    ("make_map", "map run --method umap --max-points 50 --thumbnails 0 --dry-run",
     {"run": Path("run"), "method": "umap", "max_points": 50, "thumbnails": 0, "dry_run": True}),
    ("vet", "vet run --objects s.csv", {"objects": Path("s.csv")}),
    ("vet", "vet run --design --import t.csv", {"run": Path("run"), "serve": False, "import_csv": Path("t.csv")}),
]  # fmt: skip


@pytest.mark.parametrize("command", main.COMMANDS, ids=lambda command: command.name)
def test_options_are_the_parameters_of_the_public_function(command, capsys):
    function = command.run.__name__
    public = dict(inspect.signature(getattr(galscan, function)).parameters)
    declared = dict(inspect.signature(command.run).parameters)
    assert declared.pop("as_json").default is False
    assert declared.keys() == public.keys() - NOT_OPTIONS.get(function, set())
    assert [name for name, p in declared.items() if p.default not in (None, public[name].default)] == []
    assert main.run([*command.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: galscan {command.name}" in text and "--json" in text


@pytest.mark.parametrize(("function", "line", "values"), PASSED_ON, ids=[name for name, *_ in PASSED_ON])
def test_values_arrive(function, line, values, answer):
    calls = answer(function, {})
    assert main.run(line.split()) == 0
    assert {name: calls[name] for name in values} == values
    assert None not in calls.values(), "what is not given is left to the function"


@pytest.mark.parametrize(
    ("function", "line", "summary", "code"),
    [
        ("doctor", "doctor", {"ok": False, "problems": ["x"]}, 1),
        ("doctor", "doctor", {"ok": True}, 0),
        ("check_target", "target check ring", {"error": "too few"}, 2),
        ("check_target", "target check ring", {"error": None}, 0),
        ("measure_feature", "feature measure --target dustlane", {"error": "too few"}, 2),
        ("measure_feature", "feature measure --target dustlane", {"error": None}, 0),
        ("scan", "scan", {"unscored": ["galaxy"]}, 1),
        ("scan", "scan", {"scanned": 3}, 0),
    ],
)
def test_exit_codes(function, line, summary, code, answer, capsys):
    answer(function, summary)
    assert main.run([*line.split(), "--json"]) == code
    assert json.loads(capsys.readouterr().out) == summary
