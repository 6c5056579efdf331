from __future__ import annotations

import numpy as np
import pytest

from galscan.synthesis import similarity

RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(300, 24)).astype(np.float32)
SAME = RANDOM.normal(size=(120, 24)).astype(np.float32)


def compare(**others: np.ndarray) -> dict:
    return similarity.compare(REAL, others, similarity.principal_axes(REAL), np.random.default_rng(0))


def test_every_metric_recognises_a_shift_and_nothing_in_galaxies_of_the_same_kind():
    out = compare(same=SAME, shifted=SAME + 3)
    assert out["same"]["n"] == 120 and abs(out["same"]["kid"]) < 0.05 and out["same"]["fid"] < 2
    assert out["same"]["coverage"] > 0.7 and 0.7 < out["same"]["density"] < 1.3
    assert out["shifted"]["kid"] > 10 * abs(out["same"]["kid"]) + 1
    assert out["shifted"]["fid"] > 50
    assert out["shifted"]["density"] < 0.1 and out["shifted"]["coverage"] < 0.1


def test_sets_of_unequal_size_are_compared_in_equal_numbers():
    out = compare(many=SAME, few=SAME[:40])
    assert out["many"]["n"] == out["few"]["n"] == 40
    assert out["many"]["coverage"] == pytest.approx(out["few"]["coverage"], abs=0.15)


def test_metrics_of_too_few_galaxies_are_none():
    out = compare(none=SAME[:0], few=SAME[:7], some=SAME[:12])
    assert out["none"]["kid"] is None and out["few"]["coverage"] is None
    assert out["some"]["fid"] is None and out["some"]["coverage"] is not None and out["some"]["n"] == 12


def test_the_same_seed_gives_the_same_figures(capsys):
    assert compare(same=SAME) == compare(same=SAME)
    assert capsys.readouterr().out == ""


def test_radial_profiles_are_means_over_rings():
    image = np.zeros((1, 48, 48, 3), np.uint8)
    image[:, 22:26, 22:26, 0] = 255
    profile = similarity.radial_profiles(image)
    assert profile.shape == (1, 12, 3)
    assert profile[0, 0, 0] == pytest.approx(1) and (profile[0, 3:] == 0).all() and (profile[..., 1:] == 0).all()


def test_a_shift_of_brightness_is_in_units_of_the_scatter():
    real = np.random.default_rng(1).integers(60, 140, (80, 1, 1, 1), dtype=np.uint8) * np.ones((1, 24, 24, 3), np.uint8)
    out = similarity.light(real[:40], {"same": real[40:], "bright": real[40:] + 80, "none": real[:0]})
    assert out["same"]["max_deviation"] < 0.8 < 2 < out["bright"]["max_deviation"]
    assert out["bright"]["measured"]["image_brightness"]["mean"] > out["same"]["measured"]["image_brightness"]["mean"]
    assert out["none"] == {"n": 0, "measured": None, "profile": None, "max_deviation": None}
