from __future__ import annotations

import json

import numpy as np
import pytest

import galscan
from galscan.cli import main
from galscan.commands import demo as module
from tests.helpers import tiny_recipe
from tests.json_page import undocumented


def test_the_demo_compares_with_the_truth_and_resumes(tmp_path, monkeypatch, scans_here, no_pages):
    recipe = tiny_recipe(tmp_path / "demo.toml", "demo", size=32)
    train = module.train_rare
    changes = {"LABELLED": 250, "LABELLED_RARE": 0.1, "SURVEY": 150, "SURVEY_RARE": 0.1, "BUDGET": None}
    for name, value in (changes | {"RANKS": (10, 150)}).items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "load_recipe", lambda name: galscan.load_recipe(str(recipe)))
    monkeypatch.setattr(module, "train_rare", lambda _, **options: train(str(recipe), **options))
    monkeypatch.setattr("galscan.reports.model.write_model_report", lambda path: None)
    first = galscan.demo(tmp_path / "demo", seed=1)

    truth = galscan.open(tmp_path / "demo" / "survey.zarr").column("truth/target_dustlane")
    targets = int(truth.sum())
    assert first["true_targets"] == targets > 0 and first["scanned"] == 150 and first["labelled"] == 250
    _, last = first["table"]
    assert (last["rank"], last["true_completeness"], last["true_purity"]) == (150, 1.0, targets / 150)
    assert last["found_real_only"] == last["found_synthetic"] == targets
    assert first["synthetic"]["injected"] > 0 and first["ap_real_plus_synthetic"] is not None
    assert {"real_only", "synthetic", "ratio"} <= first["completeness"].keys()
    assert first["fits"] in first["text"] and module.TRAINED_ON[first["chosen"]] in first["text"]
    assert undocumented("demo", first) == set()
    suggested = [line.split()[1] for line in module.NEXT if line.startswith("  galscan ")]
    assert {*suggested} <= {command.name.split()[0] for command in main.COMMANDS} and module.NEXT[-1] in first["text"]
    json.dumps(first, allow_nan=False)  # also where purity is unknown
    assert "?" in module.text(first | {"table": [last | {"purity": None, "purity_lo": None, "purity_hi": None}]})

    monkeypatch.setattr(module, "_gain", lambda *_: first["completeness"])
    assert galscan.demo(tmp_path / "demo", seed=1)["table"] == first["table"]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seed"] == 1


def test_both_trainings_are_compared_at_the_same_true_purity():
    truth = np.arange(2000) < 40
    noise = np.random.default_rng(0).normal(0, 1, 2000)
    real_only, synthetic = noise + 2.5 * truth, noise + 5.0 * truth
    found = module._gain({"real_only": real_only, "synthetic": synthetic}, truth, 0)
    assert found["synthetic"] > 0.8 > 2 * found["real_only"] > 0
    assert found["ratio"] == pytest.approx(found["synthetic"] / found["real_only"])
    assert 1 < found["ratio_lo"] <= found["ratio"] <= (found["ratio_hi"] or np.inf)
    assert module._gain({"real_only": real_only, "synthetic": real_only}, truth, 0)["ratio"] == 1
    none = module._gain({"real_only": -10.0 * truth, "synthetic": synthetic}, truth, 0)
    assert none["real_only"] == 0 and none["ratio"] is None
    json.dumps(none, allow_nan=False)
