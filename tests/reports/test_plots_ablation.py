from __future__ import annotations

import copy

import pytest
from PIL import Image

from galscan.reports import plots_ablation
from tests.reports.test_plots import svg
from tests.training.ablation.test_arms import evaluated, scored


@pytest.fixture(scope="module")
def result() -> dict:
    return evaluated(scored(plain=1.5, attributes=2.0, maps=3.0)) | {"repeats": [{}, {}, {}]}


def test_curves_name_the_best_baseline_and_are_the_same_again(result, tmp_path):
    plot = plots_ablation.curves(result)
    assert svg(plot) == svg(plots_ablation.curves(result))
    assert "'attributes', the best baseline" in plot.caption and "3 repeats" in plot.caption
    plots_ablation.write_curves(result, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_gains_tell_their_range_and_an_open_end_is_an_arrow(result):
    plot = plots_ablation.gains(result, "ap", "average precision")
    gain = result["gains"]["maps"]["best_baseline"]["ap"]
    assert f"to {100 * gain['hi']:.0f} %" in plot.alt
    opened = copy.deepcopy(result)
    for against in opened["gains"]["maps"].values():  # the best baseline is the network without synthetic galaxies
        against["ap"]["hi"] = None
    again = plots_ablation.gains(opened, "ap", "average precision")
    assert svg(again) != svg(plot) and f"to {100 * gain['hi']:.0f} %" not in again.alt


def test_without_any_ratio_there_is_no_figure(result):
    none = copy.deepcopy(result)
    for against in none["gains"].values():
        for gain in against.values():
            gain["completeness"] |= {"gain": None, "lo": None, "hi": None}
    assert plots_ablation.gains(none, "completeness", "detections") is None
