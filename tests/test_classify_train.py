from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.classify.model import to_unit
from galscan.classify.train import Examples, affordable_steps, train_classifier
from galscan.recipe import ClassifierSettings

CPU = torch.device("cpu")
SETTINGS = ClassifierSettings(width=8, steps=60, batch=16, learning_rate=3e-3)


def examples(n: int = 60, seed: int = 0) -> Examples:
    """Bright and faint blobs; the target is the bright ones, the answer how bright."""
    rng = np.random.default_rng(seed)
    target = (np.arange(n) % 4 == 0).astype(np.float32)
    y, x = np.mgrid[:16, :16] - 7.5
    blob = np.exp(-(x**2 + y**2) / 12)[None, ..., None] * np.where(target, 200, 60)[:, None, None, None]
    images = np.clip(blob + rng.normal(12, 3, (n, 16, 16, 3)), 0, 255).astype(np.uint8)
    answers = np.column_stack([target, np.full(n, np.nan)]).astype(np.float32)
    return Examples(images, target, answers)


def scores(network, data: Examples) -> np.ndarray:
    with torch.inference_mode():
        return network(to_unit(torch.from_numpy(data.images)))[0].numpy()


def test_it_learns_and_generalises():
    network = train_classifier(examples(), None, SETTINGS, steps=60, seed=0, device=CPU)
    held_out = examples(seed=1)
    s = scores(network, held_out)
    assert s[held_out.target == 1].min() > s[held_out.target == 0].max()


def test_same_seed_same_network_other_seed_another():
    a, b, c = (train_classifier(examples(), examples(seed=2), SETTINGS, steps=3, seed=s, device=CPU) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.target.weight, c.target.weight)


def test_normalisation_sees_real_images_only():
    real, dreamt = examples(), examples(seed=3)
    dark = Examples(np.zeros_like(dreamt.images), dreamt.target, dreamt.answers)
    with_dark = train_classifier(real, dark, SETTINGS, steps=2, seed=0, device=CPU)
    first = with_dark.stem[2]
    with torch.inference_mode():
        seen = with_dark.stem[1](with_dark.stem[0](to_unit(torch.from_numpy(real.images)) * 4 - 1))
    torch.testing.assert_close(first.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_ambiguous_examples_do_not_move_the_target():
    data = examples()
    unknown = Examples(data.images, np.full_like(data.target, np.nan), np.full_like(data.answers, np.nan))
    network = train_classifier(unknown, None, SETTINGS, steps=2, seed=0, device=CPU)
    torch.manual_seed(0)
    from galscan.classify.model import GalaxyNet

    fresh = GalaxyNet(8, 2)
    # Only weight decay touched the head.
    torch.testing.assert_close(network.target.weight, fresh.target.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("seconds", "least", "most"), [(None, 60, 60), (0.01, 20, 20), (1e6, 60, 60)])
def test_steps_fit_the_budget(seconds, least, most):
    assert least <= affordable_steps(examples(), SETTINGS, device=CPU, seconds=seconds) <= most
