from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from galscan.core import device as devices
from galscan.core.errors import InputError
from galscan.labels.settings import SyntheticRule
from galscan.synthesis.diffusion.galaxy_model import GUIDED, SETTLED, Generator, shifted
from galscan.synthesis.galaxies import MEASURED, SHAPE
from galscan.synthesis.sampling import sample_conditions, sample_images, satisfies_base
from tests.synthesis.diffusion.test_galaxy_model import config, untrained, velocity

LABELS = pd.DataFrame({"t": [-5.0, -2.0, 3.0, 5.0], "visible_dust": [0.0, np.nan, 0.75, 0.5]}, dtype=np.float32)
RULE = SyntheticRule.model_validate({"from": "t <= 0", "set": {"visible_dust": [0.6, 1.0]}})


@pytest.fixture(scope="module")
def generator() -> Generator:
    return untrained(config())


def test_conditions_start_from_real_galaxies_that_satisfy_the_rule():
    values, rows = sample_conditions(LABELS, 50, np.random.default_rng(0), RULE)
    assert set(rows) == {0, 1}
    assert set(values[:, 0]) == {-5.0, -2.0}
    assert (values[:, 1] >= 0.6).all() and (values[:, 1] <= 1.0).all()


def test_without_a_rule_conditions_are_rows():
    values, rows = sample_conditions(LABELS, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(values, LABELS.to_numpy()[rows])


def test_shapes_are_turned_by_any_angle():
    random = np.random.default_rng(0)
    labels = pd.DataFrame(random.uniform(0.1, 0.3, (5, 7)).astype(np.float32), columns=["bar", *MEASURED])
    rule = SyntheticRule.model_validate({"from": "bar >= 0"})
    for given in (None, rule):
        values, rows = sample_conditions(labels, 200, np.random.default_rng(1), given)
        real = labels.to_numpy()[rows]
        shape = [labels.columns.get_loc(name) for name in SHAPE[1:]]
        np.testing.assert_array_equal(np.delete(values, shape, 1), np.delete(real, shape, 1))
        np.testing.assert_allclose(np.hypot(*values[:, shape].T), np.hypot(*real[:, shape].T), atol=1e-6)
        angle = np.arctan2(*values[:, shape[::-1]].T)
        assert np.histogram(angle, 4, (-np.pi, np.pi))[0].min() > 25


def test_a_base_rule_without_galaxies_is_an_error():
    rule = SyntheticRule.model_validate({"from": "t <= -6"})
    with pytest.raises(InputError, match="t <= -6"):
        sample_conditions(LABELS, 5, np.random.default_rng(0), rule)


def test_galaxies_whose_answer_was_not_asked_do_not_satisfy_the_base_rule():
    assert satisfies_base(LABELS, RULE).tolist() == [True, True, False, False]
    for rule in ("t <= -6", "visible_dust > 0.8", "t <= -2 and visible_dust > 0"):
        assert not satisfies_base(LABELS, SyntheticRule.model_validate({"from": rule})).any()
    assert not satisfies_base(LABELS[:0], RULE).any()


def test_images_do_not_depend_on_their_number(generator, monkeypatch):
    monkeypatch.setattr(generator, "batch", 4)
    values, survey = np.tile([[0.0, 1.0]], (6, 1)), np.zeros(6, int)
    six = sample_images(generator, values, survey, steps=2, seed=5)
    assert six.shape == (6, 16, 16, 3) and six.dtype == np.uint8
    for n in (3, 4, 5):
        np.testing.assert_array_equal(sample_images(generator, values[:n], survey[:n], steps=2, seed=5), six[:n])
    assert not np.array_equal(sample_images(generator, values[:4], survey[:4], steps=2, seed=6), six[:4])


@pytest.mark.parametrize("settled", [SETTLED, 1.0])
@torch.inference_mode()
def test_guidance_one_without_weights_is_plain_sampling(generator, monkeypatch, settled):
    """Euler's method where the galaxy is settled (everywhere, if that is time 1), and new noise before."""
    monkeypatch.setattr("galscan.synthesis.diffusion.galaxy_model.SETTLED", settled)
    values, survey = np.array([[0.0, 1.0], [5.0, np.nan]]), np.array([0, 1])
    cpu = torch.device("cpu")
    condition = generator.encode_conditions(values, survey)
    random = torch.Generator().manual_seed(2 * 1_000_003)
    x = torch.randn(64, 3, 16, 16, generator=random)[:2]
    for k in range(4):
        here, there = shifted(torch.tensor([1 - k / 4, 1 - (k + 1) / 4]))
        with devices.autocast(cpu, devices.training_dtype(cpu)):
            v = generator(x, here.expand(2), condition).float()
        if there > settled:
            new = torch.randn(64, 3, 16, 16, generator=random)[:2]
            x = torch.lerp(x - here * v, new, there)
        else:
            x = x + (there - here) * v
    plain = generator.decode_images(x).numpy().astype(int)
    generated = sample_images(generator, values, survey, guidance=1.0, steps=4, seed=2).astype(int)
    assert np.abs(generated - plain).max() <= 1 and plain.std() > 5
    assert np.abs(sample_images(generator, values, survey, guidance=4.0, steps=4, seed=2) - plain).max() > 1


def test_guidance_acts_between_its_times_only(generator, monkeypatch):
    requested = []

    def spy(self, x, t, condition):
        requested.append((float(t[0]), len(x)))
        return torch.zeros_like(x)

    monkeypatch.setattr(Generator, "forward", spy)
    sample_images(generator, np.zeros((3, 2)), np.zeros(3, int), guidance=2.0, weights={"t": 2.0}, steps=40)
    assert len(requested) == 40 and requested[0][0] == 1.0
    assert {n for t, n in requested if GUIDED[0] <= t <= GUIDED[1]} == {9}
    assert {n for t, n in requested if t < GUIDED[0]} == {n for t, n in requested if t > GUIDED[1]} == {3}


@pytest.mark.parametrize("weighted", [{}, {1.5: [1]}, {1.5: [0, 1]}, {0.5: [0], 3.0: [1]}])
def test_guidance_is_the_formula(generator, weighted):
    """v(none) + g [v(all) - v(none)] + sum_w g (w - 1) [v(all) - v(all but those of weight w)]."""
    values, survey, g = np.array([[4.0, 0.9]]), np.array([1]), 1.7
    condition = generator.encode_conditions(values, survey)
    whole, none = (
        velocity(generator, condition),
        velocity(generator, generator.encode_conditions(values * np.nan, survey)),
    )
    expected = none + g * (whole - none)
    for w, answers in weighted.items():
        without = values.copy()
        without[:, answers] = np.nan
        expected += g * (w - 1) * (whole - velocity(generator, generator.encode_conditions(without, survey)))
    terms = generator.guidance_terms(condition, g, weighted)
    guided = sum(factor * velocity(generator, result) for result, factor in terms)
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)


def test_answers_of_one_weight_are_guided_together(generator, monkeypatch):
    dropped = []
    mask = generator.mask
    monkeypatch.setattr(generator, "mask", lambda c, drop: (dropped.append(drop[0].tolist()), mask(c, drop))[1])
    weights = {"t": 2.0, "visible_dust": 2.0}
    sample_images(generator, np.array([[0.0, 1.0]]), np.array([0]), weights=weights, steps=4)
    assert dropped and all(both == [True, True] for both in dropped)
    dropped.clear()
    sample_images(generator, np.array([[0.0, 1.0]]), np.array([0]), weights=weights | {"t": 3.0}, steps=4)
    assert {tuple(d) for d in dropped} == {(True, False), (False, True)}


def test_a_weight_of_one_changes_nothing(generator):
    values, survey = np.tile([[0.0, 1.0]], (2, 1)), np.zeros(2, int)
    plain = sample_images(generator, values, survey, guidance=1.5, steps=2)
    np.testing.assert_array_equal(
        sample_images(generator, values, survey, guidance=1.5, weights={"visible_dust": 1.0}, steps=2), plain
    )
    assert not np.array_equal(
        sample_images(generator, values, survey, guidance=1.5, weights={"visible_dust": 3.0}, steps=2), plain
    )


def test_a_time_limit_ends_after_a_batch(generator, monkeypatch):
    monkeypatch.setattr(generator, "batch", 4)
    values, survey = np.tile([[0.0, 1.0]], (6, 1)), np.zeros(6, int)
    assert len(sample_images(generator, values, survey, steps=1, seconds=0.0)) == 4
    assert len(sample_images(generator, values, survey, steps=1, seconds=60.0)) == 6
