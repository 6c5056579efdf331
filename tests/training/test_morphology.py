"""Metrics of morphology, checked on small cases."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from galscan.labels.columns import votes_column
from galscan.labels.schema import load_schema
from galscan.training import morphology

TREE = load_schema("gz2")
ODD = ["t06_odd_a14_yes", "t06_odd_a15_no"]


def raw(fractions, worth=20.0):
    """Return the outputs of a network that predicts these fractions of "odd"."""
    p = np.clip(np.asarray(fractions, float), 0.01, 0.99)
    return np.log(worth * np.stack([p, 1 - p], 1))[None]


def test_completeness_and_purity_are_of_the_leading_answer():
    labels = pd.DataFrame({ODD[0]: [0.9, 0.8, 0.2, 0.1, np.nan], ODD[1]: [0.1, 0.2, 0.8, 0.9, np.nan]})
    labels[votes_column("t06")] = [10, 10, 10, 10, 0]
    result = morphology.evaluate(raw([0.7, 0.4, 0.6, 0.1, 0.5]), labels, ODD, TREE)
    (question,) = result["questions"]
    assert (question["id"], question["n"], question["accuracy"]) == ("t06", 4, 0.5)
    yes, no = question["answers"]
    for answer in (yes, no):
        assert (answer["n"], answer["completeness"], answer["purity"]) == (2, 0.5, 0.5)
    assert question["confusion"] == [[1, 1], [1, 1]]
    assert yes["error"] == pytest.approx(np.mean([0.2, 0.4, 0.4, 0.0]), abs=1e-6)
    assert json.loads(json.dumps(result)) == result


def test_coverage_is_that_of_the_volunteers_who_voted():
    rng = np.random.default_rng(0)
    p = rng.beta(4, 4, 3000)
    votes = rng.integers(10, 41, 3000)
    found = rng.binomial(votes, p) / votes
    labels = pd.DataFrame({ODD[0]: found, ODD[1]: 1 - found, votes_column("t06"): votes})
    calibrated = morphology.evaluate(raw(np.full(3000, 0.5), 8.0), labels, ODD, TREE)["questions"][0]
    assert 0.9 <= calibrated["coverage"] < 0.96
    overconfident = morphology.evaluate(raw(np.full(3000, 0.5), 500.0), labels, ODD, TREE)["questions"][0]
    assert overconfident["coverage"] < 0.75


def test_questions_without_answers_or_votes():
    nothing = pd.DataFrame(np.nan, index=range(3), columns=ODD)
    (question,) = morphology.evaluate(raw([0.5] * 3), nothing, ODD, TREE)["questions"]
    assert (question["n"], question["accuracy"], question["coverage"]) == (0, None, None)
    assert question["answers"][0]["reliability"] == []
    uncounted = pd.DataFrame({ODD[0]: [0.6], ODD[1]: [0.4]})
    assert morphology.evaluate(raw([0.6]), uncounted, ODD, TREE)["questions"][0]["coverage"] is None


def test_attributes_have_an_error_in_their_own_units():
    schema = load_schema("efigi")
    labels = pd.DataFrame({"t": [-6.0, 10.0, np.nan], "visible_dust": [0.0, 1.0, 0.5]})
    outputs = np.zeros((2, 3, 2))  # the middle of each range
    result = morphology.evaluate(outputs, labels, ["t", "visible_dust"], schema)["answers"]
    low, high = schema.ranges["t"]
    assert result[0]["n"] == 2 and result[0]["error"] == pytest.approx(
        np.abs((low + high) / 2 - np.array([-6, 10])).mean()
    )
    assert result[1]["error"] == pytest.approx(1 / 3) and sum(n for *_, n in result[1]["reliability"]) == 3
