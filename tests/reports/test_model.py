"""The page of a model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from galscan.core import thumbnails
from galscan.labels.recipe import load_recipe
from galscan.reports.model import write_model_report
from galscan.stats.calibration import fit
from tests.pages import check_page


def _metrics(ap):
    curve = {"recall": [0, 0.5, 1], "precision": [1, 0.6, 0.1]}
    return {"ap": [ap, ap + 0.1], "ap_mean": ap, "ap_lo": ap - 0.1, "ap_hi": ap + 0.1, "pr_curve": curve}


def _report(path, metrics, **info) -> str:
    """Write a model without networks, and return its page."""
    path.mkdir()
    recipe, rng, targets = load_recipe("dustlane"), np.random.default_rng(0), np.repeat([1, 0], [13, 207])
    (path / "recipe.toml").write_text(recipe.text)
    info |= {
        "format": 1, "target": "dustlane", "schema": "efigi", "size": 64, "seed": 0, "answers": ["visible_dust"],
        "weights": {"classifier-0.safetensors": "e" * 64}, "recipe_hash": recipe.hash, "model_hash": "f" * 64,
        "calibration": fit(rng.normal(np.where(targets == 1, 2, -2), 1.0), targets).to_dict(), "metrics": metrics,
        "splits": {"train": {"positive": 26, "negative": 400}}, "versions": {"galscan": "0.1.0"},
    }  # fmt: skip
    (path / "model.json").write_text(json.dumps(info))
    thumbnails.contact_sheet(np.zeros((4, 16, 16, 3), np.uint8), path / "synthetic.png")
    text = write_model_report(path).read_text(encoding="utf-8")
    check_page(text)
    return text


@pytest.mark.parametrize(
    ("gain", "words", "printed"),
    [
        ({"mean": 0.2, "lo": 0.1, "hi": 0.3}, "synthetic galaxies improve it", "+0.200"),
        ({"mean": -0.2, "lo": -0.3, "hi": -0.1}, "synthetic galaxies reduce it", "−0.200"),
        ({"mean": 0.0, "lo": -0.1, "hi": 0.1}, "the effect of synthetic galaxies is not significant", "+0.000"),
    ],
)
def test_the_gain_is_printed_whatever_it_is(tmp_path, gain, words, printed):
    metrics = {
        "real_only": _metrics(0.4), "real_plus_synthetic": _metrics(0.5), "gain": gain,
        "chosen": "real_plus_synthetic", "test": {"positives": 13, "negatives": 200, "prevalence": 13 / 213},
    }  # fmt: skip
    text = _report(tmp_path / "model", metrics)
    assert words in text and printed in text and "0.400" in text and "0.500" in text and "delivered" in text
    assert text.count("data:image/svg+xml") == 2 and text.count("data:image/png") == 1


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"real_only": None, "real_plus_synthetic": None, "chosen": "real_only"},
        {"real_only": _metrics(0.4), "chosen": "real_only", "gain": None},
    ],
)
def test_sparse_models(tmp_path, metrics):
    text = _report(tmp_path / "model", metrics)
    assert ("trained on real galaxies only" in text) == bool(metrics.get("real_only"))


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ({"copy": 2, "not the class": 31}, "269 of them targets; dropped: 2 copy, 31 not the class."),
        ({}, "269 of them targets."),
    ],
)
def test_images_that_were_dropped_are_counted(tmp_path, dropped, words):
    dreams = {"all": 1900, "dropped": dropped, "kept": 1867, "kept_positive": 269}
    text = _report(tmp_path / "model", {"synthetic": dreams})
    assert f"1,867 synthetic galaxies were used, {words}" in text


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ("diffusion", "from the diffusion model"),
        ("prior", "from the prior"),
        ("measured", "like the measured ones"),
        ("both", "from the prior and the diffusion model"),
    ],
)
def test_hosts_of_injected_features_are_counted(tmp_path, maps, words):
    made = {
        "all": 2400, "dropped": {}, "kept": 2400, "kept_positive": 1900, "hosts": 1010, "hosts_unlabelled": 800,
        "maps": maps, "measured_maps": 41, "invisible": 100, "too_faint": 20, "hosts_not_measured": 7,
    }  # fmt: skip
    metrics = {
        "synthetic": made,
        "delivery_rule": "a feature <proven>",
        "real_only": _metrics(0.4),
        "chosen": "real_only",
    }
    text = _report(tmp_path / "model", metrics)
    assert "Features were injected into 1,010 real galaxies (800 of them without labels)" in text
    assert f"maps {words} (41 measured on training galaxies)" in text
    assert "20 were too faint for a target and are negatives, 100 had no visible feature and were left out" in text
    assert "7 hosts could not be measured." in text
    assert "Rule that chose the delivered networks: a feature &lt;proven&gt;." in text


def test_grades_trained_on_are_listed_with_their_hash(tmp_path):
    source = {"run": "/x/<script>", "sha256": "9" * 64, "graded": 50, "positive": 20, "negative": 30, "agreed": 3}
    text = _report(tmp_path / "model", {}, grades=[source | {"contradicted": 1}])
    words = "&lt;script&gt;: 20 targets and 30 negatives, of 50 graded; 3 agree with the labels, 1 contradict them"
    assert words in text and "not in calibration or test" in text and "9" * 64 in text
