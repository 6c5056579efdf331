from __future__ import annotations

import re

import numpy as np
import pandas as pd

from galscan import plots_judge
from galscan.generate.dreams import Dreams
from galscan.generate.likeness import light
from tests.test_plots import svg


def images(count: int, level: int) -> np.ndarray:
    return np.random.default_rng(level).integers(0, level, (count, 16, 16, 3), dtype=np.uint8)


def test_profiles_tell_how_far_off_they_are_and_are_the_same_again():
    told = light(images(20, 100), {"dreamt": images(12, 200)})
    plot = plots_judge.profiles(told)
    assert svg(plot) == svg(plots_judge.profiles(told))
    assert f"{told['dreamt']['max_deviation']:.2f}" in plot.caption and "12 dreamt and 20 real" in plot.caption


def test_without_dreams_there_is_no_profile():
    assert plots_judge.profiles(light(images(20, 100), {"dreamt": images(0, 200)})) is None
    assert plots_judge.adherence({}) is None


def test_histograms_tell_a_shift_of_brightness():
    caption = plots_judge.histograms(images(9, 60), images(9, 240)).caption
    dreamt, real = map(float, re.search(r"means (\d\.\d+) against (\d\.\d+)", caption).groups())
    assert dreamt < real


def test_an_answer_nothing_can_be_said_of_is_drawn_without_a_point():
    told = {"dusty": {"dreamt": {"correlation": None}, "real": {"correlation": 0.5}}}
    assert "dusty 0.00 and 0.50" in plots_judge.adherence(told).alt


def test_pictures_show_the_dropped_with_their_number():
    dreams = Dreams.drawn(images(6, 90), pd.DataFrame({"dusty": np.linspace(0, 1, 6)}), np.repeat([1.0, 0.0], 3))
    each = pd.DataFrame({"reason": ["", "copy", "", "", "copy", ""], "nearest": range(6), "distance": 1.0})
    rows = plots_judge.pictures(dreams, each, images(8, 200), np.array([0, 3]), ["dusty"])
    assert [len(row) for row in rows] == [1, 2, 2] and "2 of 2 dreams" in rows[2][1].caption
    kept = plots_judge.pictures(dreams, each.assign(reason=""), images(8, 200), np.array([0, 3]), [])
    assert [len(row) for row in kept] == [1, 2, 1]
