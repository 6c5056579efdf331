"""Commands for training: options are passed on, and a target that fails its check gives an exit code."""

from __future__ import annotations

import json
from pathlib import Path

from galscan.cli import main


def test_options_arrive(answer):
    calls = answer("train_rare", {})
    assert main.run(["train-rare", "--target", "ring", "--no-synthetic", "--budget", "1.5"]) == 0
    assert calls["args"] == ("ring",) and calls["synthetic"] is False and calls["budget"] == 1.5
    calls = answer("generate", {})
    line = "generate --target ring --count 3 --out d --set a=0.2:0.7 --set b=1 --weight a=1.5 --from a>=0.5"
    assert main.run(line.split()) == 0
    assert calls["args"] == ("ring",) and (calls["count"], calls["out"], calls["base"]) == (3, Path("d"), "a>=0.5")
    assert calls["values"] == {"a": (0.2, 0.7), "b": (1.0, 1.0)} and calls["weights"] == {"a": 1.5}
    assert calls["guidance"] is None and calls["steps"] is None and calls["model"] is None
    calls = answer("train_generator", {})
    line = "train-generator --out g.safetensors --store a --store b --start base --size 32"
    assert main.run(line.split()) == 0
    assert calls["args"] == (Path("g.safetensors"),) and calls["store"] == ["a", "b"]
    assert calls["kind"] == "flow" and calls["steps"] is None and calls["lora"] is None
    assert calls["start"] == "base" and calls["size"] == 32 and calls["budget"] is None and calls["schema"] is None


def test_options_of_an_ablation_arrive(answer):
    calls = answer("ablate", {})
    line = "ablate --target ring --positives 8 --negatives 90 --reserved 20 --arms plain --arms maps"
    assert main.run(line.split()) == 0
    assert calls["args"] == ("ring",) and (calls["positives"], calls["negatives"], calls["reserved"]) == (8, 90, 20)
    assert calls["arms"] == ["plain", "maps"] and calls["method"] is None and calls["folds"] == 1
    assert main.run(["ablate", "--target", "ring"]) == 0 and calls["reserved"] == 0 and calls["positives"] is None


def test_a_target_that_cannot_be_trained_exits_with_2(answer, capsys):
    answer("check_target", {"error": "too few", "text": "a table"})
    assert main.run(["target", "check", "ring", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "too few"} and err == "a table\n"
    assert main.run(["target"]) == 2
    assert capsys.readouterr().err == "error: Missing command (see: galscan target --help)\n"
