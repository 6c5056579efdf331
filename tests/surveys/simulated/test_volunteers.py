"""Simulated votes: counts add up, the tree is followed, answers depend on the galaxy."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.labels.columns import votes_column
from galscan.labels.schema import load_schema
from galscan.surveys.simulated import volunteers
from galscan.surveys.simulated.survey import SimulatedSurvey

TREE = load_schema("gz2")


@pytest.fixture(scope="module")
def sky():
    return SimulatedSurvey(1024, seed=4, rare_fraction=0.2, votes=True).objects(0, 1024)


def test_fractions_are_of_whole_votes_and_add_up(sky):
    for task in TREE.tasks:
        votes = sky[f"gz2/{votes_column(task.id)}"].to_numpy(float)
        fractions = sky[[f"gz2/{a}" for a in task.answers]].to_numpy(float)
        asked = np.isfinite(fractions).all(1)
        assert (asked == (votes >= TREE.min_votes)).all() and asked.any()
        given = fractions[asked] * votes[asked, None]
        np.testing.assert_allclose(given, given.round(), atol=1e-4)
        np.testing.assert_allclose(given.sum(1), votes[asked], rtol=1e-5)
    first = sky[f"gz2/{votes_column('t01')}"]
    assert first.min() >= volunteers.FEWEST and first.max() <= volunteers.MOST


def test_as_many_are_asked_as_were_led_there(sky):
    votes = {task.id: sky[f"gz2/{votes_column(task.id)}"].to_numpy(float) for task in TREE.tasks}
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
def test_people_see_what_is_there(sky, truth, answer):
    both = sky[[truth, f"gz2/{answer}"]].dropna()
    assert len(both) > 50 and both.corr().iloc[0, 1] > 0.2


def test_votes_change_nothing_else_and_come_again():
    plain, voted = (SimulatedSurvey(300, seed=4, votes=v) for v in (False, True))
    a, b = plain.objects(0, 300), voted.objects(0, 300)
    assert a.equals(b[a.columns]) and set(voted.schemas()["gz2"]) == {c[4:] for c in b if c.startswith("gz2/")}
    assert b.iloc[100:200].reset_index(drop=True).equals(voted.objects(100, 200))
    assert list(voted.objects(0, 0)) == list(b)
