from __future__ import annotations

import json

import numpy as np
import pytest

import galscan
from galscan.commands import demo as module
from tests.helpers import tiny_recipe


def test_the_demo_compares_with_the_truth_and_resumes(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path / "demo.toml", "demo", size=64)
    real_train = module.train_rare
    monkeypatch.setattr(module, "LABELLED", 400)
    monkeypatch.setattr(module, "LABELLED_RARE", 0.1)
    monkeypatch.setattr(module, "SURVEY", 300)
    monkeypatch.setattr(module, "SURVEY_RARE", 0.1)
    monkeypatch.setattr(module, "BUDGET", None)
    monkeypatch.setattr(module, "train_rare", lambda _, **options: real_train(str(recipe), **options))
    first = galscan.demo(tmp_path / "demo", seed=1)

    truth = galscan.open_store(tmp_path / "demo" / "survey.zarr").column("truth/target_dustlane")
    assert first["true_targets"] == int(truth.sum()) > 0
    assert first["scanned"] == 300 and [row["rank"] for row in first["table"]] == [10, 30, 100, 300]
    assert first["table"][-1]["true_completeness"] == 1.0
    assert first["table"][-1]["true_purity"] == first["true_targets"] / 300
    assert "true purity" in first["text"] and first["fits"] in first["text"]
    assert first["table"][-1]["found_real_only"] == first["true_targets"]  # both ways to train have found all by then
    assert (
        first["synthetic"]["injected"] > 0 and first["ap_real_plus_synthetic"] is not None and first["labelled"] == 400
    )
    assert first["table"][-1]["found_synthetic"] == first["true_targets"]
    assert {"real_only", "synthetic", "ratio"} <= first["completeness"].keys()
    assert f"delivered and used for the scan: {module.DELIVERED[first['chosen']]}" in first["text"]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seed"] == 1

    again = galscan.demo(tmp_path / "demo", seed=1)
    assert again["table"] == first["table"] and again["ap_real_only"] == first["ap_real_only"]


def test_lists_of_both_ways_to_train_are_compared_at_the_same_true_purity():
    truth = np.arange(2000) < 40
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, 2000)
    scores = {"real_only": noise + 2.5 * truth, "synthetic": noise + 5.0 * truth}
    found = module._gain(scores, truth, 0)
    assert found["synthetic"] > 0.8 > 2 * found["real_only"] > 0
    assert found["ratio"] == pytest.approx(found["synthetic"] / found["real_only"])
    assert 1 < found["ratio_lo"] <= found["ratio"] and (
        found["ratio_hi"] is None or found["ratio"] <= found["ratio_hi"]
    )
    assert module._gain({"real_only": scores["real_only"], "synthetic": scores["real_only"]}, truth, 0)["ratio"] == 1
    none = module._gain({"real_only": -10.0 * truth, "synthetic": scores["synthetic"]}, truth, 0)
    assert none["real_only"] == 0 and none["ratio"] is None
    json.dumps(none, allow_nan=False)
