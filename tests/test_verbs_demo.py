from __future__ import annotations

import json

import galscan
from galscan.verbs import demo as verb
from tests.helpers import tiny_recipe


def test_the_demo_compares_with_the_truth_and_resumes(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path / "demo.toml", size=64)
    real_train = verb.train_rare
    monkeypatch.setattr(verb, "LABELLED", 400)
    monkeypatch.setattr(verb, "LABELLED_RARE", 0.1)
    monkeypatch.setattr(verb, "SURVEY", 300)
    monkeypatch.setattr(verb, "SURVEY_RARE", 0.1)
    monkeypatch.setattr(verb, "BUDGET", None)
    monkeypatch.setattr(verb, "train_rare", lambda _, **options: real_train(str(recipe), **options))
    first = galscan.demo(tmp_path / "demo", seed=1)

    truth = galscan.open_store(tmp_path / "demo" / "survey.zarr").column("truth/target_dustlane")
    assert first["true_targets"] == int(truth.sum()) > 0
    assert first["scanned"] == 300 and [row["rank"] for row in first["table"]] == [10, 30, 100, 300]
    assert first["table"][-1]["true_completeness"] == 1.0
    assert first["table"][-1]["true_purity"] == first["true_targets"] / 300
    assert "true purity" in first["text"] and first["fits"] in first["text"]
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seed"] == 1

    again = galscan.demo(tmp_path / "demo", seed=1)
    assert again["table"] == first["table"] and again["ap_real_only"] == first["ap_real_only"]
