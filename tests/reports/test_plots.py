from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from galscan.labels.recipe import load_recipe
from galscan.reports import plots
from galscan.stats.calibration import fit
from galscan.stats.histogram import ScoreHistogram
from tests.candidate_tables import candidates, info


@pytest.fixture
def histogram():
    histogram = ScoreHistogram.of(np.random.default_rng(0).normal(-2, 2, 5000))
    return histogram


@pytest.fixture
def bundle():
    """Return a stand-in with the attributes of a model that the figures use."""
    targets = np.repeat([1, 0], [30, 300])
    scores = np.random.default_rng(0).normal(np.where(targets == 1, 2, -2), 1.0)
    return SimpleNamespace(calibration=fit(scores, targets), recipe=load_recipe("dustlane"))


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


def test_the_same_numbers_give_the_same_bytes_whatever_style_the_caller_has():
    first = plots.purity(candidates(60), 12)
    svg(first)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.grid": False}):
        assert plots.purity(candidates(60), 12) == first
        assert matplotlib.rcParams["font.size"] == 30  # and the caller's style is left as it was
    assert plots.purity(candidates(60), 13) != first


@pytest.mark.parametrize("count", [0, 1, 60])
def test_lists_of_any_length(count, histogram):
    frame = candidates(max(count, 2)).head(count).assign(completeness=0.5)
    ends = {0: "no candidates", 1: "0.95 at rank 1 to 0.95 at rank 1", 60: "to 0.40 at rank 60"}
    drawn = plots.purity(frame, 0)
    assert svg(drawn) and ends[count] in drawn.alt
    assert svg(plots.completeness(frame, info(), None))
    assert svg(plots.scores(frame, info(), None, histogram))


def test_the_model_adds_the_interval_and_the_expected_targets(bundle, histogram):
    frame = candidates(60).assign(completeness=np.linspace(0.1, 0.8, 60))
    with_interval = plots.completeness(frame, info(histogram=histogram.to_list(), seed=0), bundle)
    assert "0.80 at rank 60" in with_interval.alt
    assert svg(with_interval) != svg(plots.completeness(frame, info(), None))
    drawn = plots.scores(frame, info(), bundle, histogram)
    assert svg(drawn) and "5,000 scores" in drawn.alt and "expected from the calibration" in drawn.caption
    assert "expected from the calibration" not in plots.scores(frame, info(purity=None), bundle, histogram).caption


def test_nothing_is_made_up_where_there_is_nothing():
    unknown = plots.completeness(candidates(5), info(), None)
    assert svg(unknown) and "unknown" in unknown.alt
    drawn = plots.scores(candidates(2).head(0), info(), None, ScoreHistogram())
    assert svg(drawn) and "Histogram of 0 scores" in drawn.alt
    assert plots.precision_recall({}, {}) is None
    assert plots.precision_recall({"real_only": None, "real_plus_synthetic": {"ap": [0.5]}}, {}) is None


def test_with_grades_both_are_drawn(bundle, histogram):
    before = candidates(60).assign(completeness=np.linspace(0.1, 0.8, 60))
    after = before.assign(purity=0.9, purity_lo=0.8, purity_hi=1.0, completeness=0.5)
    limits = pd.DataFrame({"rank": [1, 60], "low": [0.1, 0.4], "high": [0.5, 0.9]})
    for one, both in (
        (plots.purity(after, 3), plots.purity(after, 3, before)),
        (
            plots.completeness(before, info(histogram=histogram.to_list(), seed=0), bundle),
            plots.completeness(before, info(histogram=histogram.to_list(), seed=0), bundle, (after, limits)),
        ),
    ):
        assert svg(one) != svg(both) and "with the grades" in both.alt and "with the grades" not in one.alt
    assert "0.90 at rank 60" in plots.purity(after, 3, before).alt
    none = limits.head(0)
    assert "0.50 at rank 60" in plots.completeness(before, info(), None, (after, none)).alt


def test_precision_and_recall_of_the_classifiers_that_were_trained():
    curve = {"pr_curve": {"recall": [0, 0.5, 1], "precision": [1, 0.6, 0.1]}}
    names = {"real_only": "real", "real_plus_synthetic": "both"}
    one = plots.precision_recall({"real_only": curve}, names)
    both = plots.precision_recall(
        {"real_only": curve, "real_plus_synthetic": curve, "test": {"prevalence": 0.1}}, names
    )
    assert one is not None and both is not None and svg(one) != svg(both)


def test_calibration_says_on_how_many_it_rests(bundle):
    drawn = plots.calibration(bundle)
    assert svg(drawn) and "30 targets and 300 negatives" in drawn.caption
