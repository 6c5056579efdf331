from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from galscan.errors import InputError
from galscan.generate.model import Generator
from galscan.generate.sample import _guidance_terms, draw_conditions, dream
from galscan.recipe import DreamRule
from tests.test_generate_model import config

LABELS = pd.DataFrame({"t": [-5.0, -2.0, 3.0, 5.0], "visible_dust": [0.0, np.nan, 0.75, 0.5]}, dtype=np.float32)
RULE = DreamRule.model_validate({"from": "t <= 0", "set": {"visible_dust": [0.6, 1.0]}})


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(config()).eval()


def test_conditions_start_from_real_galaxies_that_satisfy_the_rule():
    values, rows = draw_conditions(LABELS, 50, np.random.default_rng(0), RULE)
    assert set(rows) == {0, 1}
    assert set(values[:, 0]) == {-5.0, -2.0}
    assert (values[:, 1] >= 0.6).all() and (values[:, 1] <= 1.0).all()


def test_without_a_rule_conditions_are_rows():
    values, rows = draw_conditions(LABELS, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(values, LABELS.to_numpy()[rows])


def test_nothing_to_start_from_is_said():
    rule = DreamRule.model_validate({"from": "t <= -6"})
    with pytest.raises(InputError, match="t <= -6"):
        draw_conditions(LABELS, 5, np.random.default_rng(0), rule)


def test_dreams_do_not_depend_on_how_many_are_asked_for(generator):
    values, survey = np.tile([[0.0, 1.0]], (6, 1)), np.zeros(6, int)
    six = dream(generator, values, survey, steps=2, seed=5, batch=4)
    assert six.shape == (6, 16, 16, 3) and six.dtype == np.uint8
    np.testing.assert_array_equal(dream(generator, values[:4], survey[:4], steps=2, seed=5, batch=4), six[:4])
    assert not np.array_equal(dream(generator, values[:4], survey[:4], steps=2, seed=6, batch=4), six[:4])


def test_guidance_one_without_weights_is_the_plain_condition(generator):
    condition = generator.encode_conditions(np.array([[0.0, 1.0]]), np.array([0]))
    assert [f for _, f in _guidance_terms(generator, condition, 1.0, {})] == [1.0]


@pytest.mark.parametrize(("guidance", "pushed"), [(2.0, {}), (1.0, {1: 1.3}), (1.5, {0: 0.5, 1: 2.0})])
def test_guidance_factors_sum_to_one(generator, guidance, pushed):
    condition = generator.encode_conditions(np.array([[0.0, 1.0]]), np.array([0]))
    terms = _guidance_terms(generator, condition, guidance, pushed)
    assert sum(f for _, f in terms) == pytest.approx(1.0)
    assert len(terms) == 1 + len(pushed) + (guidance != 1)


def test_a_weight_of_one_changes_nothing(generator):
    values, survey = np.tile([[0.0, 1.0]], (2, 1)), np.zeros(2, int)
    plain = dream(generator, values, survey, guidance=1.5, steps=2)
    np.testing.assert_array_equal(
        dream(generator, values, survey, guidance=1.5, weights={"visible_dust": 1.0}, steps=2), plain
    )
    assert not np.array_equal(
        dream(generator, values, survey, guidance=1.5, weights={"visible_dust": 3.0}, steps=2), plain
    )


def test_time_that_does_not_suffice_ends_after_a_batch(generator):
    values, survey = np.tile([[0.0, 1.0]], (6, 1)), np.zeros(6, int)
    assert len(dream(generator, values, survey, steps=1, batch=4, seconds=0.0)) == 4
    assert len(dream(generator, values, survey, steps=1, batch=4, seconds=60.0)) == 6
