from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from galscan.reports import plots
from galscan.stats.calibration import fit
from galscan.stats.histogram import ScoreHistogram
from tests.candidate_tables import candidates, run_of


@pytest.fixture
def histogram():
    return ScoreHistogram.of(np.random.default_rng(0).normal(-2, 2, 5000))


@pytest.fixture
def model():
    """Return a stand-in with the attributes of a model that the figures use."""
    targets = np.repeat([1, 0], [30, 300])
    scores = np.random.default_rng(0).normal(np.where(targets == 1, 2, -2), 1.0)
    return SimpleNamespace(calibration=fit(scores, targets))


def svg(plot: plots.Plot) -> str:
    """Return the image, after checking that it is complete and loads nothing external."""
    head, _, data = plot.uri.partition(",")
    assert head == "data:image/svg+xml;base64" and plot.alt and plot.caption
    text = base64.b64decode(data, validate=True).decode()
    root = ET.fromstring(text)
    assert not [e for e in root.iter() if e.tag.rsplit("}", 1)[-1] in ("script", "a", "foreignObject")]
    links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
    assert all(link.startswith(("#", "data:")) for link in links)
    return text


def test_equal_figures_have_equal_bytes_in_any_style_of_the_caller():
    first = plots.purity(candidates(60), 12)
    svg(first)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.grid": False}):
        assert plots.purity(candidates(60), 12) == first
        assert matplotlib.rcParams["font.size"] == 30  # and the caller's style is left as it was
    assert plots.purity(candidates(60), 13) != first


@pytest.mark.parametrize(("count", "ends"), [(0, "no candidates"), (1, "0.95 at rank 1 to 0.95 at rank 1")])
def test_short_lists(count, ends, histogram):
    frame = candidates(2).head(count)
    figure = plots.purity(frame, 0)
    assert svg(figure) and ends in figure.alt
    without_values = plots.completeness(frame, run_of(), None)
    assert svg(without_values) and "unknown" in without_values.alt
    assert svg(plots.scores(frame, run_of(), None, histogram))


def test_model_adds_the_interval_and_the_expected_targets(model, histogram, monkeypatch):
    limits = SimpleNamespace(published=lambda name: np.full(60, 0.05 if name.endswith("lo") else 0.9))
    monkeypatch.setattr(plots, "estimate_by_scores", lambda run: (limits, 0.95))
    frame = candidates(60).assign(completeness=np.linspace(0.1, 0.8, 60))
    with_interval = plots.completeness(frame, run_of(histogram=histogram.to_list()), model)
    assert "0.80 at rank 60" in with_interval.alt
    assert svg(with_interval) != svg(plots.completeness(frame, run_of(), None))
    expected = plots.scores(frame, run_of(), model, histogram)
    assert svg(expected) and "5,000 scores" in expected.alt and "expected from the calibration" in expected.caption
    assert "expected from the calibration" not in plots.scores(frame, run_of(purity={}), model, histogram).caption


def test_no_scores_and_no_classifiers():
    figure = plots.scores(candidates(2).head(0), run_of(), None, ScoreHistogram.of(np.empty(0)))
    assert svg(figure) and "Histogram of 0 scores" in figure.alt
    assert plots.precision_recall({"real_only": None, "real_plus_synthetic": {"ap": [0.5]}}, {}) is None


def test_estimates_with_and_without_grades():
    before = candidates(60).assign(completeness=np.linspace(0.1, 0.8, 60))
    after = before.assign(purity=0.9, purity_lo=0.8, purity_hi=1.0, completeness=0.5)
    limits = pd.DataFrame({"rank": [1, 60], "low": [0.1, 0.4], "high": [0.5, 0.9]})
    purity = plots.purity(after, 3), plots.purity(after, 3, before)
    completeness = (plots.completeness(before, run_of(), None, graded, limits) for graded in (None, (after, limits)))
    for by_scores, graded in (purity, completeness):
        assert svg(by_scores) != svg(graded)
        assert "with the grades" in graded.alt and "with the grades" not in by_scores.alt
    assert "0.90 at rank 60" in purity[1].alt and "0.50 at rank 60" in graded.alt


def test_precision_and_recall_of_the_trained_classifiers():
    curve = {"pr_curve": {"recall": [0, 0.5, 1], "precision": [1, 0.6, 0.1]}}
    names = {"real_only": "real", "real_plus_synthetic": "both"}
    one = plots.precision_recall({"real_only": curve}, names)
    both = {"real_only": curve, "real_plus_synthetic": curve, "test": {"prevalence": 0.1}}
    assert svg(one) != svg(plots.precision_recall(both, names))


def test_calibration_states_the_number_of_objects(model):
    figure = plots.calibration(model)
    assert svg(figure) and "30 targets and 300 negatives" in figure.caption
