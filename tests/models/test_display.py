from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from galscan.models.display import draw_calibration, model_card
from galscan.stats.calibration import fit
from tests.helpers import tiny_store

matplotlib.use("agg")


@pytest.fixture(scope="module")
def calibration():
    targets = np.repeat([1, 0], [40, 400])
    return fit(np.random.default_rng(0).normal(np.where(targets == 1, 2, -2), 1.5), targets)


def test_the_figure_shows_groups_with_intervals_around_them(calibration):
    from matplotlib.figure import Figure

    axes, groups = Figure().add_subplot(), calibration.reliability()
    draw_calibration(axes, groups)
    assert len(groups.predicted) > 3 and (np.diff(groups.predicted) > 0).all()
    assert ((groups.low <= groups.observed) & (groups.observed <= groups.high)).all()
    assert (axes.containers[0].lines[0].get_ydata() == groups.observed).all()


def test_html(calibration, tmp_path):
    info = {
        "target": "<t>", "schema": "gz2", "size": 64, "weights": {"a": "", "b": ""}, "answers": [],
        "metrics": {"chosen": "real_only", "real_only": {"ap_mean": 0.5, "ap_lo": 0.4, "ap_hi": 0.62}},
        "splits": {"train": {"positive": 20, "negative": 3000}},
    }  # fmt: skip
    text = model_card(tmp_path, info, "Dust & lanes", calibration)
    assert "0.500 (0.400 to 0.620)" in text and "20 / 3,000" in text and "<circle" in text and "<img" not in text
    assert "&lt;t&gt;: Dust &amp; lanes" in text
    info |= {"metrics": {"chosen": "real_only", "real_only": None}, "splits": {}}
    assert "average precision" not in model_card(tmp_path, info, "", calibration)
    (tmp_path / "synthetic.zarr").mkdir()
    assert "<img" not in model_card(tmp_path, info, "", calibration), "a damaged store is not shown"
    tiny_store(tmp_path / "synthetic.zarr", 5, 16)
    assert "<img" not in model_card(tmp_path, info, "", calibration), "a store of other galaxies"


def test_a_model_shows_itself(shared_model):
    assert repr(shared_model).startswith("<Model dustlane: 1 networks, 32 px")
    assert "Model dustlane" in shared_model._repr_html_()
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert shared_model.plot_calibration(axes) is axes and axes.get_xlabel() == "predicted probability"
