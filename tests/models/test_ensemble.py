"""Ensemble predictions: independent of the batch, standard deviation over members, vote questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.models.ensemble import answer_names, embedding_size, load_scorer, member_scores, out_of_fold
from galscan.models.network import GalaxyNet
from tests.helpers import tiny_model


def images(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


def test_scores_do_not_depend_on_the_batch(tmp_path):
    score = load_scorer([tiny_model(tmp_path / "m", members=2)], "cpu", "fp32")
    whole, part = score(images()), score(images()[:2])
    np.testing.assert_allclose(part.score, whole.score[:2], rtol=1e-4, atol=1e-5)
    assert whole.answers.shape == (5, 7) and whole.answers.dtype == np.float32
    assert ((whole.answers >= 0) & (whole.answers <= 1)).all()
    assert (whole.score_std > 0).all()


def test_one_member_has_no_spread(tmp_path):
    assert (load_scorer([tiny_model(tmp_path / "m")], "cpu", "fp32")(images()).score_std == 0).all()


def test_several_models_say_what_each_says_alone(tmp_path):
    models = [tiny_model(tmp_path / "a"), tiny_model(tmp_path / "b", "merger", seed=4, members=2)]
    together = load_scorer(models, "cpu", "fp32")(images())
    names = answer_names(models)
    assert names[: len(models[0].answers)] == models[0].answers and len(set(names)) == len(names)
    for k, model in enumerate(models):
        alone = load_scorer([model], "cpu", "fp32")(images())
        np.testing.assert_allclose(together.score[:, k], alone.score[:, 0], atol=1e-4)
        np.testing.assert_allclose(together.score_std[:, k], alone.score_std[:, 0], atol=1e-4)
        own = [n for n in model.answers if k == 0 or n not in models[0].answers]
        columns = [model.answers.index(n) for n in own]
        np.testing.assert_allclose(
            together.answers[:, [names.index(n) for n in own]], alone.answers[:, columns], atol=1e-4
        )


def test_votes_are_told_by_question_and_with_their_worth(tmp_path):
    model, schema = tiny_model(tmp_path / "m", schema="gz2", members=2), load_schema("gz2")
    said = dict(zip(answer_names([model]), load_scorer([model], "cpu", "fp32")(images()).answers.T, strict=True))
    for task in schema.tasks:
        if set(task.answers) <= set(model.answers):
            np.testing.assert_allclose(sum(said[name] for name in task.answers), 1, atol=1e-4)
            assert (said[f"{task.id}_concentration"] > 0).all()


def test_an_embedding_is_as_long_as_what_the_heads_read(tmp_path):
    model = tiny_model(tmp_path / "m")
    assert embedding_size(model) == 64
    next(model.path.glob("classifier-*")).write_bytes(b"nothing")
    with pytest.raises(InputError, match="missing or damaged"):
        embedding_size(model)


def test_out_of_fold_scores_are_those_of_the_network_of_the_fold():
    members = 3
    torch.manual_seed(0)
    networks = [GalaxyNet(8, 2, 2).eval() for _ in range(members)]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    folds = rng.integers(0, members, 20)
    scores, answers = out_of_fold(networks, images, folds, torch.device("cpu"))
    each = member_scores(networks, images, torch.device("cpu"))
    assert scores.shape == (1, 20, 2) and answers.shape == (1, 20, 2)
    np.testing.assert_allclose(scores[0], each[folds, np.arange(20)], atol=1e-5)
