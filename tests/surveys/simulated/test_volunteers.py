"""Simulated votes: counts add up, the tree is followed, answers depend on the galaxy."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.labels.columns import votes_column
from galscan.labels.schema import load_schema
from galscan.surveys.simulated import volunteers
from galscan.surveys.simulated.survey import SimulatedSurvey

TREE = load_schema("gz2")


def test_fractions_are_of_whole_votes_and_add_up(voted):
    for task in TREE.tasks:
        votes = voted[f"gz2/{votes_column(task.id)}"].to_numpy(float)
        fractions = voted[[f"gz2/{a}" for a in task.answers]].to_numpy(float)
        enough = np.isfinite(fractions).all(1)
        assert (enough == (votes >= TREE.min_votes)).all() and enough.any()
        counts = fractions[enough] * votes[enough, None]
        np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
        np.testing.assert_allclose(counts.sum(1), votes[enough], rtol=1e-5)
    first = voted[f"gz2/{votes_column('t01')}"]
    assert first.min() >= volunteers.FEWEST and first.max() <= volunteers.MOST


def test_votes_follow_the_tree(voted):
    votes = {task.id: voted[f"gz2/{votes_column(task.id)}"].to_numpy(float) for task in TREE.tasks}
    np.testing.assert_array_equal(votes["t03"], votes["t04"])
    np.testing.assert_array_equal(votes["t10"], votes["t11"])
    assert (votes["t02"] + votes["t07"] <= votes["t01"]).all() and (votes["t08"] <= votes["t06"]).all()
    np.testing.assert_array_equal(votes["t05"] + votes["t07"] + votes["t09"], votes["t06"])


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("simulated/early_type", "t01_smooth_or_features_a01_smooth"),
        ("simulated/edge_on", "t02_edgeon_a04_yes"),
        ("simulated/spiral", "t04_spiral_a08_spiral"),
        ("simulated/bar", "t03_bar_a06_bar"),
        ("simulated/bulge_to_total", "t05_bulge_prominence_a12_obvious"),
        ("simulated/ring", "t06_odd_a14_yes"),
        ("simulated/dust_lane", "t08_odd_feature_a38_dust_lane"),
        ("simulated/merger", "t08_odd_feature_a24_merger"),
    ],
)
def test_votes_correlate_with_the_truth(voted, truth, answer):
    both = voted[[truth, f"gz2/{answer}"]].dropna()
    assert len(both) > 50 and both.corr().iloc[0, 1] > 0.2


def test_votes_change_nothing_else_and_are_repeatable(voted):
    survey = SimulatedSurvey(1024, seed=4, rare_fraction=0.2, votes=True)
    plain = SimulatedSurvey(1024, seed=4, rare_fraction=0.2).objects(0, 300)
    assert plain.equals(voted[:300][plain.columns])
    assert set(survey.schemas()["gz2"]) == {c[4:] for c in voted if c.startswith("gz2/")}
    assert voted[100:200].reset_index(drop=True).equals(survey.objects(100, 200))
    assert list(survey.objects(0, 0)) == list(voted)
