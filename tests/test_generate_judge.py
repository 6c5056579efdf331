from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from galscan.generate import judge as judges
from galscan.generate import likeness
from galscan.generate.dreams import Dreams
from galscan.generate.judge import Critic, judge, screen
from galscan.labels import load_schema
from galscan.recipe import load_recipe

SCHEMA = load_schema("simulated")
RULES = load_recipe("dustlane").schemas["simulated"]
ANSWERS = ["early_type", "dust_lane"]


class Colours(nn.Module):
    """Sees the answers that `galaxies` paints: red is early, and a lane takes the green light away."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 4).flatten(1)

    def _seen(self, features: torch.Tensor) -> torch.Tensor:
        red, green, blue = features.unflatten(1, (3, 16))[:, :, [5, 6, 9, 10]].mean(2).unbind(1)
        return torch.stack([(red - blue) / (red + blue) + 0.5, 1.5 - 2 * green / (red + blue)], 1).clamp(0.02, 0.98)

    def morphology(self, features: torch.Tensor) -> torch.Tensor:
        return self._seen(features).logit()

    def target(self, features: torch.Tensor) -> torch.Tensor:
        return 20 * (self._seen(features).amin(1, keepdim=True) - 0.4)


def galaxies(count: int, seed: int, *, early=None, lane=None, light: float = 1.0) -> Dreams:
    """Draw blobs, each with three companions somewhere, whose colours are their labels."""
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
    return Dreams.drawn(((roots + noise).clip(0, 1) ** 2 * 255).round().astype(np.uint8), labels, target)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(likeness, "DRAWS", 1)
    monkeypatch.setattr(likeness, "SUBSETS", 10)


@pytest.fixture(scope="module")
def critic() -> Critic:
    return Critic(Colours(), ANSWERS, SCHEMA, torch.device("cpu"))


@pytest.fixture(scope="module")
def real() -> Dreams:
    return galaxies(360, 0)


def positives(count: int = 60, **options) -> Dreams:
    return galaxies(count, 1, early=0.9, lane=0.9, **options)


def replaced(dreams: Dreams, rows, images: np.ndarray) -> Dreams:
    changed = dreams.images.copy()
    changed[rows] = images
    return Dreams.drawn(changed, dreams.labels, dreams.target)


def verdict(dreams: Dreams, real: Dreams, critic: Critic) -> dict:
    return judge(
        dreams, real.images, real.labels, real.target, critic, RULES, SCHEMA, reference=np.arange(240, 360), seed=0
    )  # fmt: skip


def test_the_critic_sees_what_is_painted(critic, real):
    look = critic.look(real.images)
    assert look.features.shape == (360, 48) and list(look.answers) == ANSWERS
    for answer in ANSWERS:
        assert np.abs(look.answers[answer] - real.labels[answer]).mean() < 0.15
    np.testing.assert_array_equal(look.logit > 0, real.target == 1)


def test_answers_are_in_their_own_units(critic, real):
    efigi = load_schema("efigi")
    seen = Critic(Colours(), ["t", "visible_dust"], efigi, torch.device("cpu")).look(real.images).answers
    assert seen["t"].min() < -3 and seen["t"].max() > 8 and seen["visible_dust"].between(0, 1).all()


def test_real_galaxies_pass_the_screen(critic, real):
    kept = screen(galaxies(200, 7), real.images, critic, RULES, SCHEMA)
    assert list(kept) == ["kept", "reason"] and kept["kept"].mean() > 0.93
    assert (kept["reason"] == "").equals(kept["kept"])


def test_copies_are_dropped_however_they_are_turned(critic, real):
    examples = real.images[np.flatnonzero(real.target == 1)[:8]]
    planted = [np.rot90(image, k % 4)[:, :: 1 if k < 4 else -1] for k, image in enumerate(examples)]
    dimmed = (np.stack(planted) * 0.96).astype(np.uint8)
    reasons = screen(replaced(positives(), slice(8), dimmed), real.images, critic, RULES, SCHEMA)
    assert (reasons["reason"][:8] == "copy").all()
    assert (reasons["reason"][8:] != "copy").all()


def test_galaxies_that_are_there_twice_do_not_hide_copies(critic, real):
    doubled = np.concatenate([real.images, real.images[:40]])
    dreams = replaced(positives(), 0, real.images[0])
    assert screen(dreams, doubled, critic, RULES, SCHEMA)["reason"][0] == "copy"


def test_the_wrong_class_is_dropped(critic, real):
    plain = galaxies(5, 2, early=0.9, lane=0.1)
    reasons = screen(replaced(positives(), slice(5), plain.images), real.images, critic, RULES, SCHEMA)["reason"]
    assert (reasons[:5] != "").all() and (reasons[:5] == "not the class").sum() >= 4
    assert (reasons[5:] == "").mean() > 0.9


def test_a_negative_that_looks_positive_is_dropped(critic, real):
    dreams = galaxies(20, 5, early=0.1)
    assert (dreams.target == 0).all()
    wrong = replaced(dreams, slice(4), positives(4).images)
    reasons = screen(wrong, real.images, critic, RULES, SCHEMA)["reason"]
    assert (reasons[:4] == "looks positive").all() and not (reasons[4:] == "looks positive").any()
    blind = Critic(Colours(), ["early_type", "spiral"], SCHEMA, torch.device("cpu"))
    assert not (screen(wrong, real.images, blind, RULES, SCHEMA)["reason"] == "looks positive").any()


def test_noise_and_the_dark_are_unlike_any_galaxy(critic, real):
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    dreams = replaced(replaced(positives(), slice(4), noise), slice(4, 8), positives(4).images // 20)
    assert (screen(dreams, real.images, critic, RULES, SCHEMA)["reason"][:8] == "unlike any galaxy").all()


def test_real_galaxies_as_dreams_do_as_well_as_those_held_out(critic, real):
    out = verdict(galaxies(240, 9), real, critic)
    json.dumps(out, allow_nan=False)
    assert out["counts"]["training"]["all"] == 240
    assert out["counts"]["real"]["positive"] + out["counts"]["real"]["negative"] == 120
    for kind in ("positive", "negative"):
        near, spread, light = (out[part][kind] for part in ("fidelity", "diversity", "light"))
        assert near["dreamt"]["kid"] == pytest.approx(near["real"]["kid"], abs=0.3)
        assert spread["dreamt"]["coverage"] == pytest.approx(spread["real"]["coverage"], abs=0.15)
        assert spread["dreamt"]["n"] == spread["real"]["n"]
        assert light["dreamt"]["max_deviation"] < 0.7
    told = out["adherence"]
    assert told["dreamt_positive"]["in_class_by_answers"]["share"] > 0.9
    assert told["dreamt_negative"]["in_class_by_target"]["share"] < 0.05
    assert told["answers"]["dust_lane"]["dreamt"]["correlation"] > 0.9
    assert out["copies"]["pixels"]["dreamt"]["below_p1"]["share"] < 0.05
    assert out["screen"]["dreamt"]["kept"] > 0.9 * 240


def test_copies_are_counted_and_named(critic, real):
    dreams = replaced(positives(), slice(3), np.rot90(real.images[10:13], 1, (1, 2))[:, :, ::-1])
    out = verdict(dreams, real, critic)
    copies = out["copies"]["pixels"]
    assert 3 <= copies["dreamt"]["below_p1"]["count"] <= 5 and copies["dreamt"]["min_ratio"] < 0.1
    assert copies["real"]["below_p1"]["count"] <= 6 and copies["real"]["min_ratio"] > 0.1
    assert out["each"]["nearest"][:3] == [10, 11, 12] and out["each"]["reason"][:3] == ["copy"] * 3
    assert out["screen"]["dreamt"]["dropped"]["copy"] == copies["dreamt"]["below_p1"]["count"]
    assert len(out["each"]["distance"]) == len(dreams)


def test_a_galaxy_held_out_is_no_training_galaxy(critic, real):
    out = verdict(replaced(positives(), 0, real.images[300]), real, critic)
    assert out["copies"]["pixels"]["dreamt"]["min_ratio"] > 0.1


def test_dreams_of_another_class_are_seen(critic, real):
    wrong = galaxies(60, 4, early=0.9, lane=0.1)
    asked = positives()
    out = verdict(Dreams.drawn(wrong.images, asked.labels, asked.target), real, critic)
    told = out["adherence"]
    assert told["dreamt_positive"]["in_class_by_answers"]["share"] == 0
    assert told["dreamt_positive"]["in_class_by_target"]["share"] == 0
    assert told["real_positive"]["in_class_by_answers"]["share"] > 0.9
    assert told["answers"]["dust_lane"]["dreamt"]["difference"] > 0.5
    assert out["screen"]["dreamt"]["dropped"]["not the class"] > 50


def test_noise_fails_everywhere(critic, real):
    noise = np.random.default_rng(0).integers(0, 256, (60, 24, 24, 3), dtype=np.uint8)
    asked = positives()
    out = verdict(Dreams.drawn(noise, asked.labels, asked.target), real, critic)
    near, spread = out["fidelity"]["positive"], out["diversity"]["positive"]
    assert near["dreamt"]["kid"] > 10 * abs(near["real"]["kid"]) + 1
    assert spread["dreamt"]["coverage"] < 0.1 < spread["real"]["coverage"]
    assert out["screen"]["dreamt"]["kept"] == 0


def test_a_shift_of_brightness_is_seen(critic, real):
    light = verdict(positives(light=0.7), real, critic)["light"]["positive"]
    dreamt, held = (light[which]["measured"]["image_brightness"]["mean"] for which in ("dreamt", "real"))
    assert dreamt < 0.85 * held
    assert light["dreamt"]["max_deviation"] > 3 * light["real"]["max_deviation"]
    assert light["start"]["n"] > light["training"]["n"]


def test_only_one_kind_of_dream_is_enough(critic, real):
    out = verdict(positives(), real, critic)
    assert out["adherence"]["dreamt_negative"]["in_class_by_target"]["share"] is None
    assert out["fidelity"]["negative"]["dreamt"]["kid"] is None and out["fidelity"]["negative"]["real"]["n"] > 8
    assert out["light"]["negative"]["dreamt"]["measured"] is None


def test_shares_carry_an_interval():
    share = judges._share(np.array([True] * 3 + [False] * 9))
    assert share["share"] == 0.25 and 0.05 < share["low"] < 0.25 < share["high"] < 0.55
