from __future__ import annotations

import pytest
import torch

from galscan.models.network import Ensemble, GalaxyNet, to_unit


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_any_size_gives_logits_and_the_answers(size):
    logit, answers = GalaxyNet(8, 5, 3).eval()(torch.rand(2, 3, size, size))
    assert logit.shape == (2, 3) and answers.shape == (2, 5)


def test_no_answers_is_allowed():
    logit, answers = GalaxyNet(8, 0).eval()(torch.rand(2, 3, 32, 32))
    assert logit.shape == (2, 1) and answers.shape == (2, 0)


def test_to_unit_is_the_root_and_channels_first():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    images[..., 2] = 255
    unit = to_unit(images)
    assert unit.shape == (1, 3, 4, 4)
    assert unit[0, 2].unique().tolist() == [1.0] and unit[0, 0].unique().tolist() == [0.0]


def test_what_models_share_is_computed_once_and_they_say_what_each_says_alone():
    torch.manual_seed(0)
    joint, other = [GalaxyNet(8, 4, 3).eval() for _ in range(2)], [GalaxyNet(8, 2).eval()]
    models = [[network.only(k) for network in joint] for k in range(3)] + [other]
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        together = Ensemble(*models).eval()
        assert (len(together.trunks), together.answer_models) == (3, [0, 3])
        *logits, answers, others = together(images)
        assert answers.shape == (5, 2, 4) and others.shape == (5, 1, 2)
        for k, model in enumerate(models):
            alone = Ensemble(model).eval()(images)
            torch.testing.assert_close(logits[k], alone[0])
            torch.testing.assert_close(answers if k < 3 else others, alone[1])
        for m, network in enumerate(joint):
            torch.testing.assert_close(torch.stack(logits[:3], 2)[:, m], network(to_unit(images))[0])


def test_embeddings_are_what_the_heads_of_the_first_network_read_and_come_last():
    torch.manual_seed(0)
    first, other = GalaxyNet(8, 4).eval(), GalaxyNet(16, 4).eval()
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        *told, embedding = Ensemble([first, other], [other], embeddings=True).eval()(images)
        plain = Ensemble([first, other], [other]).eval()(images)
        torch.testing.assert_close(embedding, first.features(to_unit(images)))
        torch.testing.assert_close(told, list(plain))
        torch.testing.assert_close(first.target(embedding)[:, 0], told[0][:, 0])
