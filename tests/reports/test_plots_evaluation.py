from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
from PIL import Image

from galscan.reports import plots_evaluation
from galscan.synthesis.features.comparison import compare_features
from galscan.synthesis.similarity import light
from galscan.synthesis.synthetic_set import HOST, INJECTED, SyntheticSet
from tests.reports.test_plots import svg


def images(count: int, level: int) -> np.ndarray:
    return np.random.default_rng(level).integers(0, level, (count, 16, 16, 3), dtype=np.uint8)


def test_profiles_tell_how_far_off_they_are_and_are_the_same_again():
    result = light(images(20, 100), {"synthetic": images(12, 200)})
    plot = plots_evaluation.profiles(result)
    assert svg(plot) == svg(plots_evaluation.profiles(result))
    assert f"{result['synthetic']['max_deviation']:.2f}" in plot.caption and "12 synthetic and 20 real" in plot.caption


def test_without_synthetic_galaxies_there_is_no_profile():
    assert plots_evaluation.profiles(light(images(20, 100), {"synthetic": images(0, 200)})) is None
    assert plots_evaluation.adherence({}) is None


def test_histograms_tell_a_shift_of_brightness():
    caption = plots_evaluation.histograms(images(9, 60), images(9, 240)).caption
    synthetic, real = map(float, re.search(r"means (\d\.\d+) against (\d\.\d+)", caption).groups())
    assert synthetic < real


def test_an_answer_nothing_can_be_said_of_is_drawn_without_a_point():
    result = {"dusty": {"synthetic": {"correlation": None}, "real": {"correlation": 0.5}}}
    assert "dusty 0.00 and 0.50" in plots_evaluation.adherence(result).alt


def test_pictures_show_the_dropped_with_their_number():
    synthetic_set = SyntheticSet.of_origin(
        images(6, 90), pd.DataFrame({"dusty": np.linspace(0, 1, 6)}), np.repeat([1.0, 0.0], 3)
    )
    each = pd.DataFrame({"reason": ["", "copy", "", "", "copy", ""], "nearest": range(6), "distance": 1.0})
    rows = plots_evaluation.pictures(synthetic_set, each, images(8, 200), np.array([0, 3]), ["dusty"])
    assert [len(row) for row in rows] == [1, 2, 2] and "2 of 2 synthetic galaxies" in rows[2][1].caption
    kept = plots_evaluation.pictures(synthetic_set, each.assign(reason=""), images(8, 200), np.array([0, 3]), [])
    assert [len(row) for row in kept] == [1, 2, 1]


def injected(count: int, level: int) -> SyntheticSet:
    """Make `count` targets of one grey level, each with a host that is black."""
    pixels = np.repeat(np.array([level, 0], np.uint8), count)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    origin = np.repeat([INJECTED, HOST], count)
    host = np.where(origin == INJECTED, count + np.arange(2 * count) % count, -1)
    labels = pd.DataFrame({"dusty": np.linspace(0, 1, 2 * count)})
    return SyntheticSet(pixels, labels, (origin == INJECTED).astype(np.float32), origin, host, np.full(2 * count, 0.3))


def test_the_answer_key_is_right_and_the_order_is_always_the_same():
    real = np.full((40, 16, 16, 3), 60, np.uint8)
    quiz = plots_evaluation.quiz(injected(30, 250), real, np.arange(5, 40))
    assert sorted(quiz.synthetic + quiz.real) == list(range(1, 49)) and len(quiz.synthetic) == len(quiz.real) == 24
    assert quiz.synthetic != list(range(1, 25)) and quiz == plots_evaluation.quiz(
        injected(30, 250), real, np.arange(5, 40)
    )
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(quiz.plot.uri.partition(",")[2]))))
    bright = []
    for number in range(1, 49):  # by where pictures lie on the sheet: 8 in a row
        y, x = 16 + (number - 1) // 8 * (118 + 10 + 15) + 59, 16 + (number - 1) % 8 * (118 + 10) + 59
        bright += [number] if sheet[y, x, 0] > 155 else []
    assert bright == quiz.synthetic
    assert quiz.enough == 31  # of 48; 30 or more happen in 5.6 % of tries


def test_as_many_real_as_synthetic_galaxies_are_shown():
    quiz = plots_evaluation.quiz(injected(3, 250), images(9, 90), np.arange(9))
    assert len(quiz.synthetic) == len(quiz.real) == 3
    assert plots_evaluation.quiz(injected(3, 250), images(9, 90), np.arange(0)) is None


def test_injected_ones_are_shown_with_their_hosts_and_not_as_copies():
    made = injected(4, 250)
    seams = SyntheticSet.of_origin(
        images(2, 90), made.labels[:2], np.zeros(2, np.float32), INJECTED
    )  # negatives, no hosts
    each = pd.DataFrame({"reason": [""] * 6, "nearest": range(6), "distance": 0.1})
    rows = plots_evaluation.pictures(
        SyntheticSet.joined([made, seams]), each, images(8, 200), np.array([0, 3]), ["dusty"]
    )
    assert [len(row) for row in rows] == [1, 2]
    assert "the unchanged host of each" in rows[0][0].caption and "nearest" not in rows[0][0].caption
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(rows[0][0].uri.partition(",")[2]))))
    tops, middles = sheet[16 + 37, 16 + 37 :: 84][:4, 0], sheet[16 + 37 + 74 + 25, 16 + 37 :: 84][:4, 0]
    assert (tops == 250).all() and (middles == 0).all()


def test_features_are_drawn_with_their_distance():
    def table(values):
        return pd.DataFrame({"host": True, "usable": True, "log_depth": values, "reddening": values / 2})

    values = {"synthetic": table(np.arange(12.0)), "real": table(np.arange(12.0) + 6)}
    result = compare_features(**values, hosts=table(np.arange(0.0)))
    plot = plots_evaluation.features(values, result)
    assert svg(plot) == svg(plots_evaluation.features(values, result))
    assert "depth, ln of attenuation 0.50, 1 − optical depth, red / blue 0.50" in plot.alt
    assert "12 synthetic and 12 real" in plot.caption
    empty = table(np.full(3, np.nan))
    assert plots_evaluation.features({"synthetic": empty, "real": empty}, compare_features(empty, empty, empty)) is None
