from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.synthesis import evaluation as module
from galscan.synthesis import similarity
from galscan.synthesis.evaluation import ReferenceClassifier, evaluate, filter_synthetic
from galscan.synthesis.synthetic_set import HOST, INJECTED, MINED, SyntheticSet

SCHEMA = load_schema("simulated")
RULES = load_recipe("dustlane").schemas["simulated"]
ANSWERS = ["early_type", "dust_lane"]


class Colours(nn.Module):
    """A network that reads the answers from the colours of `galaxies`: red is early, a lane has no green light."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 4).flatten(1)

    def _answers(self, features: torch.Tensor) -> torch.Tensor:
        red, green, blue = features.unflatten(1, (3, 16))[:, :, [5, 6, 9, 10]].mean(2).unbind(1)
        return torch.stack([(red - blue) / (red + blue) + 0.5, 1.5 - 2 * green / (red + blue)], 1).clamp(0.02, 0.98)

    def morphology(self, features: torch.Tensor) -> torch.Tensor:
        return self._answers(features).logit()

    def target(self, features: torch.Tensor) -> torch.Tensor:
        return 20 * (self._answers(features).amin(1, keepdim=True) - 0.4)


def galaxies(count: int, seed: int, *, early=None, lane=None, light: float = 1.0) -> SyntheticSet:
    """Return blobs with three companions at random positions, whose colours encode their labels."""
    random = np.random.default_rng(seed)
    early = random.choice([0.1, 0.9], count) if early is None else np.full(count, early)
    lane = random.choice([0.1, 0.9], count) if lane is None else np.full(count, lane)
    y, x = np.mgrid[:24, :24] - 11.5
    width, flat = random.uniform(3, 6, (count, 1, 1)), random.uniform(0.5, 1, (count, 1, 1))
    blob = np.exp(-(x**2 + (y / flat) ** 2) / (2 * width**2))
    for at_x, at_y in random.uniform(-10, 10, (3, 2, count, 1, 1)):
        blob += 0.7 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 4)
    # Colours are of square-rooted pixels, which is what the network gets.
    colour = np.stack([0.5 + (early - 0.5) / 2, 0.75 - lane / 2, 0.5 - (early - 0.5) / 2], 1)
    roots = (
        light * random.uniform(0.8, 1, (count, 1, 1, 1)) * np.sqrt(blob.clip(0, 1))[..., None] * colour[:, None, None]
    )
    noise = random.normal(0, 0.01, roots.shape)
    labels = pd.DataFrame(np.nan, index=range(count), columns=SCHEMA.names, dtype=np.float32)
    labels["early_type"], labels["dust_lane"] = early.astype(np.float32), lane.astype(np.float32)
    target = ((early >= 0.5) & (lane >= 0.5)).astype(np.float32)
    return SyntheticSet.of_origin(((roots + noise).clip(0, 1) ** 2 * 255).round().astype(np.uint8), labels, target)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(similarity, "DRAWS", 1)
    monkeypatch.setattr(similarity, "SUBSETS", 10)


@pytest.fixture(scope="module")
def classifier() -> ReferenceClassifier:
    return ReferenceClassifier(Colours(), ANSWERS, SCHEMA, torch.device("cpu"))


@pytest.fixture(scope="module")
def real() -> SyntheticSet:
    return galaxies(360, 0)


def positives(count: int = 60, **options) -> SyntheticSet:
    return galaxies(count, 1, early=0.9, lane=0.9, **options)


def replaced(synthetic: SyntheticSet, rows, images: np.ndarray) -> SyntheticSet:
    changed = synthetic.images.copy()
    changed[rows] = images
    return SyntheticSet.of_origin(changed, synthetic.labels, synthetic.target)


def evaluated(synthetic: SyntheticSet, real: SyntheticSet, classifier: ReferenceClassifier) -> dict:
    held_out = np.arange(240, 360)
    return evaluate(
        synthetic, real.images, real.labels, real.target, classifier, RULES, SCHEMA, reference=held_out, seed=0
    )


def test_the_classifier_predicts_the_answers(classifier, real):
    prediction = classifier.predict(real.images)
    assert prediction.features.shape == (360, 48) and list(prediction.answers) == ANSWERS
    for answer in ANSWERS:
        assert np.abs(prediction.answers[answer] - real.labels[answer]).mean() < 0.15
    np.testing.assert_array_equal(prediction.logit > 0, real.target == 1)


def test_answers_are_in_their_own_units(classifier, real):
    efigi = load_schema("efigi")
    predictions = (
        ReferenceClassifier(Colours(), ["t", "visible_dust"], efigi, torch.device("cpu")).predict(real.images).answers
    )
    assert (
        predictions["t"].min() < -3 and predictions["t"].max() > 8 and predictions["visible_dust"].between(0, 1).all()
    )


def test_real_galaxies_pass_the_filter(classifier, real):
    kept = filter_synthetic(galaxies(200, 7), real.images, classifier, RULES, SCHEMA)
    assert list(kept) == ["kept", "reason"] and kept["kept"].mean() > 0.93
    assert (kept["reason"] == "").equals(kept["kept"])


def test_copies_are_dropped_at_any_orientation(classifier, real):
    examples = real.images[np.flatnonzero(real.target == 1)[:8]]
    copied = [np.rot90(image, k % 4)[:, :: 1 if k < 4 else -1] for k, image in enumerate(examples)]
    dimmed = (np.stack(copied) * 0.96).astype(np.uint8)
    reasons = filter_synthetic(replaced(positives(), slice(8), dimmed), real.images, classifier, RULES, SCHEMA)
    assert (reasons["reason"][:8] == "copy").all()
    assert (reasons["reason"][8:] != "copy").all()


def test_duplicates_do_not_hide_copies(classifier, real):
    doubled = np.concatenate([real.images, real.images[:40]])
    synthetic = replaced(positives(), 0, real.images[0])
    assert filter_synthetic(synthetic, doubled, classifier, RULES, SCHEMA)["reason"][0] == "copy"


def test_the_wrong_class_is_dropped(classifier, real):
    plain = galaxies(5, 2, early=0.9, lane=0.1)
    reasons = filter_synthetic(replaced(positives(), slice(5), plain.images), real.images, classifier, RULES, SCHEMA)[
        "reason"
    ]
    assert (reasons[:5] != "").all() and (reasons[:5] == "not the class").sum() >= 4
    assert (reasons[5:] == "").mean() > 0.9


def test_a_negative_that_looks_positive_is_dropped(classifier, real):
    synthetic = galaxies(20, 5, early=0.1)
    assert (synthetic.target == 0).all()
    wrong = replaced(synthetic, slice(4), positives(4).images)
    reasons = filter_synthetic(wrong, real.images, classifier, RULES, SCHEMA)["reason"]
    assert (reasons[:4] == "looks positive").all() and not (reasons[4:] == "looks positive").any()
    partial = ReferenceClassifier(Colours(), ["early_type", "spiral"], SCHEMA, torch.device("cpu"))
    assert not (filter_synthetic(wrong, real.images, partial, RULES, SCHEMA)["reason"] == "looks positive").any()


def test_noise_and_dark_images_are_unlike_any_galaxy(classifier, real):
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    synthetic = replaced(replaced(positives(), slice(4), noise), slice(4, 8), positives(4).images // 20)
    assert (
        filter_synthetic(synthetic, real.images, classifier, RULES, SCHEMA)["reason"][:8] == "unlike any galaxy"
    ).all()


def test_other_real_galaxies_are_evaluated_like_those_held_out(classifier, real):
    out = evaluated(galaxies(240, 9), real, classifier)
    json.dumps(out, allow_nan=False)
    assert out["counts"]["training"]["all"] == 240
    assert out["counts"]["real"]["positive"] + out["counts"]["real"]["negative"] == 120
    for kind in ("positive", "negative"):
        near, spread, light = (out[part][kind] for part in ("fidelity", "diversity", "light"))
        assert near["synthetic"]["kid"] == pytest.approx(near["real"]["kid"], abs=0.3)
        assert spread["synthetic"]["coverage"] == pytest.approx(spread["real"]["coverage"], abs=0.15)
        assert spread["synthetic"]["n"] == spread["real"]["n"]
        assert light["synthetic"]["max_deviation"] < 0.7
    result = out["adherence"]
    assert result["synthetic_positive"]["in_class_by_answers"]["fraction"] > 0.9
    assert result["synthetic_negative"]["in_class_by_target"]["fraction"] < 0.05
    assert result["answers"]["dust_lane"]["synthetic"]["correlation"] > 0.9
    assert out["copies"]["pixels"]["synthetic"]["below_p1"]["fraction"] < 0.05
    assert out["filter"]["synthetic"]["kept"] > 0.9 * 240


def test_copies_are_counted_and_named(classifier, real):
    synthetic = replaced(positives(), slice(3), np.rot90(real.images[10:13], 1, (1, 2))[:, :, ::-1])
    out = evaluated(synthetic, real, classifier)
    copies = out["copies"]["pixels"]
    assert 3 <= copies["synthetic"]["below_p1"]["count"] <= 5 and copies["synthetic"]["min_ratio"] < 0.1
    assert copies["real"]["below_p1"]["count"] <= 6 and copies["real"]["min_ratio"] > 0.1
    assert out["each"]["nearest"][:3] == [10, 11, 12] and out["each"]["reason"][:3] == ["copy"] * 3
    assert out["filter"]["synthetic"]["dropped"]["copy"] == copies["synthetic"]["below_p1"]["count"]
    assert len(out["each"]["distance"]) == len(synthetic)


def test_a_galaxy_held_out_is_no_training_galaxy(classifier, real):
    out = evaluated(replaced(positives(), 0, real.images[300]), real, classifier)
    assert out["copies"]["pixels"]["synthetic"]["min_ratio"] > 0.1


def test_dreams_of_another_class_are_answers(classifier, real):
    wrong = galaxies(60, 4, early=0.9, lane=0.1)
    requested = positives()
    out = evaluated(SyntheticSet.of_origin(wrong.images, requested.labels, requested.target), real, classifier)
    result = out["adherence"]
    assert result["synthetic_positive"]["in_class_by_answers"]["fraction"] == 0
    assert result["synthetic_positive"]["in_class_by_target"]["fraction"] == 0
    assert result["real_positive"]["in_class_by_answers"]["fraction"] > 0.9
    assert result["answers"]["dust_lane"]["synthetic"]["difference"] > 0.5
    assert out["filter"]["synthetic"]["dropped"]["not the class"] > 50


def test_a_shift_of_brightness_is_answers(classifier, real):
    light = evaluated(positives(light=0.7), real, classifier)["light"]["positive"]
    synthetic, held = (light[which]["measured"]["image_brightness"]["mean"] for which in ("synthetic", "real"))
    assert synthetic < 0.85 * held
    assert light["synthetic"]["max_deviation"] > 3 * light["real"]["max_deviation"]
    assert light["start"]["n"] > light["training"]["n"]


def test_one_class_is_enough(classifier, real):
    out = evaluated(positives(), real, classifier)
    assert out["adherence"]["synthetic_negative"]["in_class_by_target"]["fraction"] is None
    assert out["fidelity"]["negative"]["synthetic"]["kid"] is None and out["fidelity"]["negative"]["real"]["n"] > 8
    assert out["light"]["negative"]["synthetic"]["measured"] is None


def test_fractions_carry_an_interval():
    entry = module._fraction(np.array([True] * 3 + [False] * 9))
    assert entry["fraction"] == 0.25 and 0.05 < entry["low"] < 0.25 < entry["high"] < 0.55


def injected(real: SyntheticSet) -> SyntheticSet:
    """Make targets of clean early types, of which two are training galaxies, with these hosts and a mined negative."""
    clean = np.flatnonzero((real.labels["early_type"] > 0.5) & (real.labels["dust_lane"] < 0.5))
    hosts = np.concatenate([real.images[clean[:2]], galaxies(18, 3, early=0.9, lane=0.1).images])
    made, mined = positives(40), galaxies(5, 6, early=0.1)
    labels = pd.concat([made.labels, made.labels[:20], mined.labels], ignore_index=True)
    origin = np.repeat([INJECTED, HOST, MINED], [40, 20, 5])
    host = np.where(origin == INJECTED, 40 + np.arange(65) % 20, -1)
    return SyntheticSet(
        np.concatenate([made.images, hosts, mined.images]), labels, (origin == INJECTED).astype(np.float32), origin,
        host, np.where(origin == INJECTED, 0.3, np.nan),
    )  # fmt: skip


def test_only_what_is_synthetic_is_evaluated_and_hosts_must_not_be_accepted(classifier, real):
    out = evaluated(injected(real), real, classifier)
    json.dumps(out, allow_nan=False)
    assert out["counts"]["synthetic"] == {"positive": 40, "negative": 0}
    assert out["counts"]["origin"] == {"generated": 0, "injected": 40}
    assert out["counts"]["hosts"] == {"all": 20, "trained_on": 2}
    assert out["each"]["row"] == list(range(40)) and len(out["each"]["distance"]) == 40
    accepted = out["acceptance"]
    assert accepted["synthetic"]["at_zero"]["fraction"] > 0.9 and accepted["real"]["at_zero"]["fraction"] > 0.9
    assert (
        accepted["hosts"]["at_zero"] == out["acceptance"]["hosts"]["at_median"] == module._fraction(np.zeros(20, bool))
    )
    # What is injected into a training galaxy is meant to be one: no copies are counted, and none is dropped as such.
    assert out["copies"]["pixels"]["synthetic"]["below_p1"]["n"] == 0
    assert out["filter"]["synthetic"]["dropped"]["copy"] == 0 and out["copies"]["pixels"]["real"]["below_p1"]["n"] > 0


def test_the_median_of_the_real_ones_is_a_threshold_that_does_not_depend_on_calibration(classifier, real):
    class Shifted(Colours):
        def target(self, features: torch.Tensor) -> torch.Tensor:
            return super().target(features) - 100

    strict = ReferenceClassifier(Shifted(), ANSWERS, SCHEMA, torch.device("cpu"))
    plain, shifted = (evaluated(positives(), real, c)["acceptance"] for c in (classifier, strict))
    assert plain["synthetic"]["at_zero"]["fraction"] > 0.9 and shifted["synthetic"]["at_zero"]["count"] == 0
    assert plain["synthetic"]["at_median"] == shifted["synthetic"]["at_median"]
    assert shifted["median_logit"] == pytest.approx(plain["median_logit"] - 100, abs=1e-3)
    assert plain["real"]["at_median"]["fraction"] == pytest.approx(0.5, abs=0.05)
    assert plain["hosts"]["at_zero"]["fraction"] is None
