from __future__ import annotations

import pytest
import torch

from galscan.classify.model import GalaxyNet, to_unit


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_any_size_gives_one_logit_and_the_answers(size):
    logit, answers = GalaxyNet(8, 5).eval()(torch.rand(2, 3, size, size))
    assert logit.shape == (2,) and answers.shape == (2, 5)


def test_no_answers_is_allowed():
    logit, answers = GalaxyNet(8, 0).eval()(torch.rand(2, 3, 32, 32))
    assert logit.shape == (2,) and answers.shape == (2, 0)


def test_to_unit_is_the_root_and_channels_first():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[..., 2] = 255
    unit = to_unit(images)
    assert unit.shape == (1, 3, 4, 4)
    assert unit[0, 2].unique().tolist() == [1.0] and unit[0, 0].unique().tolist() == [0.0]
