from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from galscan.classify import train
from galscan.classify.model import to_unit
from galscan.classify.train import Examples, affordable_steps, drawing_weights, train_classifier
from galscan.labels import load_schema
from galscan.settings import ClassifierSettings

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
    return Examples(images, target[:, None], answers)


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


def test_drawing_follows_the_sampling():
    data = examples()
    data.target[1] = np.nan
    natural = SETTINGS.model_copy(update={"sampling": "natural"})
    assert drawing_weights(data, None, natural).numpy() == pytest.approx(1 / len(data.target))
    oversampled = drawing_weights(data, None, SETTINGS)
    assert oversampled[data.target[:, 0] == 1].sum() == pytest.approx(SETTINGS.positive_fraction)
    # Without morphology an ambiguous galaxy would teach nothing.
    for settings in (natural, SETTINGS):
        weights = drawing_weights(data, None, settings.model_copy(update={"morphology_weight": 0.0}))
        assert weights[1] == 0 and (weights[2:] > 0).all()
        assert weights.sum() == pytest.approx(1)


def test_natural_is_natural_for_several_targets():
    target = np.zeros((20, 2), np.float32)
    target[:9, 0], target[8:11, 1] = 1, 1  # one galaxy is both
    data = Examples(np.zeros((20, 8, 8, 3), np.uint8), target, np.zeros((20, 1), np.float32))
    natural = SETTINGS.model_copy(update={"sampling": "natural"})
    assert drawing_weights(data, None, natural).numpy() == pytest.approx(1 / 20)


def of(positives: int, others: int) -> Examples:
    n = positives + others
    target = np.repeat([1, 0], [positives, others]).astype(np.float32)
    return Examples(np.zeros((n, 8, 8, 3), np.uint8), target[:, None], np.zeros((n, 1), np.float32))


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(0, 90), st.integers(0, 90), st.floats(0, 1), st.floats(0, 1),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_batches_are_composed_as_asked(positives, others, dreamt, dreamt_others, fraction, negatives, natural, first):
    real, dreams = of(positives, others), of(dreamt, dreamt_others)
    settings = SETTINGS.model_copy(
        update={"dreamt_fraction": fraction, "dreamt_negatives": negatives,
                "sampling": "natural" if natural else "oversampled"}
    )  # fmt: skip
    weights = drawing_weights(real, dreams, settings, first=first).numpy()
    parts = np.split(weights, np.cumsum([positives, others, dreamt]))
    whole = positives / (positives + others) if natural else SETTINGS.positive_fraction
    for ours, theirs, mass, asked in (
        (parts[0], parts[2], whole, fraction),
        (parts[1], parts[3], 1 - whole, negatives),
    ):
        assert ours.sum() + theirs.sum() == pytest.approx(mass)
        if not len(theirs):
            continue
        if first or asked == 1:
            assert theirs.sum() == pytest.approx(mass)
        else:
            assert theirs.sum() <= asked * mass + 1e-9
            assert theirs.max() <= ours.max() + 1e-12  # no dream is shown more often than a real galaxy
            if asked <= len(theirs) / (len(ours) + len(theirs)):
                assert theirs.sum() == pytest.approx(asked * mass)


@pytest.mark.parametrize(
    ("changes", "black"),
    [
        ({"dreamt_fraction": 0.0, "dreamt_negatives": 0.0}, [False] * 6),
        ({"dreamt_fraction": 1.0, "dreamt_negatives": 1.0}, [True] * 6),
        ({"dreamt_fraction": 0.0, "dreamt_negatives": 0.0, "dreams_first": 0.5}, [True] * 3 + [False] * 3),
    ],
)
def test_dreams_come_first_where_they_are_to(monkeypatch, changes, black):
    assert compositions(monkeypatch, 6, **changes) == [16 * b for b in black]


def compositions(monkeypatch, steps: int, *, dreamt: bool = True, seed: int = 0, **changes) -> list[int]:
    """Return how many of each batch were dreamt (the black ones)."""
    seen: list[int] = []

    def look(pixels, _):
        seen.append(int((pixels.amax((1, 2, 3)) == 0).sum()))
        return pixels

    monkeypatch.setattr(train, "rotate_flip_scale", look)
    data = examples()
    black = Examples(np.zeros_like(data.images), data.target, data.answers)
    settings = SETTINGS.model_copy(update=changes)
    train_classifier(data, black if dreamt else None, settings, steps=steps, seed=seed, device=CPU)
    return seen


def test_without_dreams_all_is_real_whatever_is_asked(monkeypatch):
    assert compositions(monkeypatch, 4, dreamt=False, dreamt_fraction=1.0, dreams_first=1.0) == [0] * 4
    monkeypatch.undo()
    asked = SETTINGS.model_copy(update={"dreamt_fraction": 1.0, "dreams_first": 1.0})
    a, b = (train_classifier(examples(), None, s, steps=3, seed=0, device=CPU) for s in (SETTINGS, asked))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_dreams_alone_teach_and_only_pixels_of_real_ones_are_used():
    """The labels of the real galaxies are all wrong; the network is right all the same."""
    real, held_out = examples(), examples(seed=1)
    wrong = Examples(real.images, 1 - real.target, real.answers)
    settings = SETTINGS.model_copy(update={"dreamt_fraction": 1.0, "dreamt_negatives": 1.0})
    network = train_classifier(wrong, examples(seed=2), settings, steps=60, seed=0, device=CPU)
    s = scores(network, held_out)
    assert s[held_out.target == 1].min() > s[held_out.target == 0].max()


def test_losses_are_those_of_the_papers():
    logits, target = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, 0.0, float("nan")])
    p = torch.sigmoid(logits[:3])
    chance = torch.stack([p[0], 1 - p[1], 1 - p[2]])
    balance = torch.tensor(7.0)
    plain = -chance.log()
    for kind, expected in (
        ("plain", plain.mean()),
        ("weighted", (plain * torch.tensor([7.0, 1.0, 1.0])).mean()),
        ("focal", (plain * torch.tensor([0.25, 0.75, 0.75]) * (1 - chance) ** 2).mean()),
    ):
        torch.testing.assert_close(train._target_loss(logits, target, kind, balance), expected)


def test_weighting_lifts_the_scores_of_a_rare_class():
    data = examples(n=60)
    rare = Examples(data.images, np.where(np.arange(60) == 0, 1, 0).astype(np.float32)[:, None], data.answers)
    natural = {"sampling": "natural", "morphology_weight": 0.0}
    by_loss = {
        loss: scores(
            train_classifier(
                rare, None, SETTINGS.model_copy(update={"loss": loss, **natural}), steps=20, seed=0, device=CPU
            ),
            rare,
        ).mean()
        for loss in ("plain", "weighted", "focal")
    }
    assert by_loss["weighted"] > by_loss["plain"] + 0.5
    assert by_loss["focal"] != by_loss["plain"]


def test_examples_from_labels_are_scaled_to_the_ranges_of_their_answers():
    schema = load_schema("efigi")
    low, high = schema.ranges["t"]
    labels = pd.DataFrame({a: [low, (low + high) / 2, np.nan] for a in schema.names})
    made = Examples.from_labels(np.zeros((3, 8, 8, 3), np.uint8), [1, 0, np.nan], labels, ["t"], schema)
    np.testing.assert_allclose(made.answers[:, 0], [0, 0.5, np.nan])
    assert made.target.dtype == made.answers.dtype == np.float32


@pytest.mark.gpu
def test_it_learns_on_a_gpu(cuda):
    settings = ClassifierSettings(width=8, steps=60, batch=32)
    network = train_classifier(examples(), None, settings, steps=60, seed=0, device=torch.device(cuda))
    held = examples(seed=1)
    found = scores(network, held)
    assert found[held.target == 1].mean() > found[held.target == 0].mean()
