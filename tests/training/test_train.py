from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from galscan.labels.schema import load_schema
from galscan.labels.settings import ClassifierSettings
from galscan.models.network import GalaxyNet, to_unit
from galscan.training import train
from galscan.training.train import Examples, affordable_steps, sampling_weights, train_classifier, with_hosts

CPU = torch.device("cpu")
SETTINGS = ClassifierSettings(width=8, steps=60, batch=16, learning_rate=3e-3, real_last=0.0)


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


def test_it_separates_held_out_examples():
    network = train_classifier(examples(), None, SETTINGS, steps=60, seed=0, device=CPU)
    held_out = examples(seed=1)
    s = scores(network, held_out)
    assert s[held_out.target == 1].min() > s[held_out.target == 0].max()


def test_same_seed_same_network_other_seed_another():
    a, b, c = (train_classifier(examples(), examples(seed=2), SETTINGS, steps=3, seed=s, device=CPU) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.target.weight, c.target.weight)


def test_normalisation_sees_real_images_only():
    real, made = examples(), examples(seed=3)
    dark = Examples(np.zeros_like(made.images), made.target, made.answers)
    with_dark = train_classifier(real, dark, SETTINGS, steps=2, seed=0, device=CPU)
    first = with_dark.stem[2]
    with torch.inference_mode():
        features = with_dark.stem[1](with_dark.stem[0](to_unit(torch.from_numpy(real.images)) * 4 - 1))
    torch.testing.assert_close(first.running_mean, features.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_ambiguous_examples_do_not_move_the_target():
    data = examples()
    unknown = Examples(data.images, np.full_like(data.target, np.nan), np.full_like(data.answers, np.nan))
    network = train_classifier(unknown, None, SETTINGS, steps=2, seed=0, device=CPU)
    torch.manual_seed(0)
    fresh = GalaxyNet(8, 2)
    # Only weight decay touched the head.
    torch.testing.assert_close(network.target.weight, fresh.target.weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("seconds", "least", "most"), [(None, 60, 60), (0.01, 20, 20), (1e6, 60, 60)])
def test_steps_fit_the_budget(seconds, least, most):
    assert least <= affordable_steps(examples(), SETTINGS, device=CPU, seconds=seconds) <= most


def test_weights_follow_the_sampling_method():
    data = examples()
    data.target[1] = np.nan
    natural = SETTINGS.model_copy(update={"sampling": "natural"})
    assert sampling_weights(data, None, natural).numpy() == pytest.approx(1 / len(data.target))
    oversampled = sampling_weights(data, None, SETTINGS)
    assert oversampled[data.target[:, 0] == 1].sum() == pytest.approx(SETTINGS.positive_fraction)
    # Without morphology an ambiguous galaxy has no loss.
    for settings in (natural, SETTINGS):
        weights = sampling_weights(data, None, settings.model_copy(update={"morphology_weight": 0.0}))
        assert weights[1] == 0 and (weights[2:] > 0).all()
        assert weights.sum() == pytest.approx(1)


def test_natural_is_natural_for_several_targets():
    target = np.zeros((20, 2), np.float32)
    target[:9, 0], target[8:11, 1] = 1, 1  # one galaxy is both
    data = Examples(np.zeros((20, 8, 8, 3), np.uint8), target, np.zeros((20, 1), np.float32))
    natural = SETTINGS.model_copy(update={"sampling": "natural"})
    assert sampling_weights(data, None, natural).numpy() == pytest.approx(1 / 20)


def of(positives: int, negatives: int) -> Examples:
    n = positives + negatives
    target = np.repeat([1, 0], [positives, negatives]).astype(np.float32)
    return Examples(np.zeros((n, 8, 8, 3), np.uint8), target[:, None], np.zeros((n, 1), np.float32))


def injected(positives: int, negatives: int, hosts: int) -> Examples:
    """Return synthetic positives, negatives, and the unmodified hosts of the positives, which share them in turn."""
    made = of(positives, negatives + hosts)
    host = np.full(len(made.images), -1)
    host[:positives] = positives + negatives + np.arange(positives) % hosts if hosts else -1
    return Examples(made.images, made.target, made.answers, host=host)


@given(
    st.integers(0, 30), st.integers(1, 30), st.integers(0, 90), st.integers(0, 90), st.integers(0, 9),
    st.floats(0, 0.5), st.floats(0, 0.2), st.booleans(), st.booleans(),
)  # fmt: skip
def test_composition_of_batches(
    positives, negatives, made, made_negatives, hosts, wanted, wanted_negatives, natural, only_real
):
    settings = SETTINGS.model_copy(
        update={"synthetic_positives": wanted, "synthetic_negatives": wanted_negatives,
                "sampling": "natural" if natural else "oversampled"}
    )  # fmt: skip
    real, synthetic = of(positives, negatives), injected(made, made_negatives, min(hosts, made))
    weights = sampling_weights(real, synthetic, settings, only_real=only_real).numpy()
    ours, rest, theirs, their_negatives, their_hosts = np.split(
        weights, np.cumsum([positives, negatives, made, made_negatives])
    )
    whole = positives / (positives + negatives) if natural else SETTINGS.positive_fraction
    assert ours.sum() == pytest.approx(whole if positives else 0)
    assert (weights >= 0).all() and len(set(rest)) == 1
    assert not their_hosts.any()  # they are in batches with the galaxies made from them only
    if only_real:  # but for a target of which no real one is known
        assert theirs.sum() == pytest.approx(0 if positives or not made else whole)
        assert not their_negatives.any() and weights.sum() == pytest.approx(1)
        return
    if positives:  # beside the real ones; few are sampled less often, none more often than a real one
        assert theirs.sum() == pytest.approx(min(wanted, whole * made / positives))
        assert not made or theirs.max() <= ours.max() + 1e-12
    else:  # instead of real ones
        assert theirs.sum() == pytest.approx(whole + wanted if made else 0)
    assert their_negatives.sum() == pytest.approx(wanted_negatives if made_negatives else 0)
    if weights.sum() < 1.5:  # natural sampling of almost nothing but targets
        assert weights.sum() == pytest.approx(1) or rest[0] == 0


def test_synthetic_positives_are_divided_equally_among_targets():
    real, made = np.zeros((40, 2), np.float32), np.zeros((300, 2), np.float32)
    real[:10, 0], real[10:14, 1] = 1, 1
    made[:200, 0], made[200:, 1] = 1, 1
    images = np.zeros((300, 8, 8, 3), np.uint8)
    pools = [Examples(images[: len(t)], t, np.zeros((len(t), 1), np.float32)) for t in (real, made)]
    weights = sampling_weights(*pools, SETTINGS).numpy()
    each = SETTINGS.synthetic_positives / 2
    assert [weights[40:240].sum(), weights[240:].sum()] == pytest.approx([each, each])
    assert [weights[:10].sum(), weights[10:14].sum()] == pytest.approx([SETTINGS.positive_fraction] * 2)
    assert weights.sum() == pytest.approx(1)


@given(st.lists(st.integers(0, 39), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_hosts_replace_negatives(batch, fraction, seed):
    """Rows 0-9 are real positives, 10-19 negatives, 20-34 injected; 35-39 are their hosts."""
    positive, host = torch.zeros(40, dtype=torch.bool), torch.full((40,), -1)
    positive[:10] = positive[20:35] = True
    host[20:35] = 35 + torch.arange(15) % 5
    rows = torch.tensor(batch)
    found = with_hosts(rows, host, positive, fraction, torch.Generator().manual_seed(seed))
    free = ~positive[rows]
    assert torch.equal(found[~free], rows[~free])  # no positive leaves the batch
    changed = free & (found != rows)
    assert set(found[changed].tolist()) <= set(host[rows[host[rows] >= 0]].tolist())
    wanted = min(round(fraction * int((host[rows] >= 0).sum())), int(free.sum()))
    assert int(changed.sum()) <= wanted and int((found >= 35).sum()) >= wanted
    if fraction == 0:
        assert torch.equal(found, rows)


def test_hosts_are_only_in_batches_with_galaxies_made_from_them(monkeypatch):
    """Each galaxy is of one grey, its row number."""
    batches: list[list[int]] = []

    def prediction(pixels, _):
        batches.append((pixels.amax((1, 2, 3)) ** 2 * 255).round().int().tolist())  # undoes `to_unit`
        return pixels, None

    monkeypatch.setattr(train, "rotate_flip_scale", prediction)
    real, made = of(10, 30), injected(40, 5, 8)
    for first, pool in ((0, real), (40, made)):
        pool.images[:] = (first + np.arange(len(pool.images)))[:, None, None, None]
    for fraction in (0.0, 1.0):
        batches.clear()
        settings = SETTINGS.model_copy(update={"hosts": fraction, "synthetic_positives": 0.3, "batch": 40})
        train_classifier(real, made, settings, steps=5, seed=0, device=CPU)
        shown = [{row for row in batch if row >= 85} for batch in batches]
        for batch, hosts in zip(batches, shown, strict=True):
            owners = [40 + made.host[row - 40] for row in batch if 40 <= row < 80]
            assert hosts <= set(owners)
            assert len([row for row in batch if row >= 85]) == (len(owners) if fraction else 0)
        assert any(shown) == bool(fraction)


@pytest.mark.parametrize(
    ("changes", "synthetic"),
    [
        ({"synthetic_positives": 0.0, "synthetic_negatives": 0.0}, [False] * 6),
        ({"synthetic_negatives": 0.5}, [True] * 6),
        ({"synthetic_negatives": 0.5, "real_last": 0.5}, [True] * 3 + [False] * 3),
        ({"synthetic_negatives": 0.5, "real_last": 1.0}, [False] * 6),
    ],
)
def test_the_last_steps_use_real_galaxies_only(monkeypatch, changes, synthetic):
    assert [count > 0 for count in compositions(monkeypatch, 6, **changes)] == synthetic


def compositions(monkeypatch, steps: int, *, synthetic: bool = True, seed: int = 0, **changes) -> list[int]:
    """Return how many of each batch were synthetic (the black ones)."""
    counts: list[int] = []

    def prediction(pixels, _):
        counts.append(int((pixels.amax((1, 2, 3)) == 0).sum()))
        return pixels, None

    monkeypatch.setattr(train, "rotate_flip_scale", prediction)
    data = examples()
    black = Examples(np.zeros_like(data.images), data.target, data.answers)
    settings = SETTINGS.model_copy(update=changes)
    train_classifier(data, black if synthetic else None, settings, steps=steps, seed=seed, device=CPU)
    return counts


def test_settings_of_synthetic_galaxies_have_no_effect_without_them(monkeypatch):
    changes = {"synthetic_positives": 0.4, "synthetic_negatives": 0.4, "real_last": 0.5, "hosts": 1.0}
    assert compositions(monkeypatch, 4, synthetic=False, **changes) == [0] * 4
    monkeypatch.undo()
    requested = SETTINGS.model_copy(update=changes)
    a, b = (train_classifier(examples(), None, s, steps=3, seed=0, device=CPU) for s in (SETTINGS, requested))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("real_last", [0.0, 1.0])
def test_synthetic_positives_replace_missing_real_ones(real_last):
    known, held_out = examples(), examples(seed=1)
    negative = known.target[:, 0] == 0
    real = Examples(known.images[negative], known.target[negative], known.answers[negative])
    settings = SETTINGS.model_copy(update={"real_last": real_last})
    network = train_classifier(real, examples(seed=2), settings, steps=60, seed=0, device=CPU)
    s = scores(network, held_out)
    assert s[held_out.target == 1].min() > s[held_out.target == 0].max()


def test_hosts_follow_when_examples_are_joined():
    joined = of(2, 3).joined(injected(4, 1, 2)).joined(injected(1, 0, 1))
    assert joined.host.tolist() == [-1] * 5 + [10, 11, 10, 11] + [-1] * 3 + [13, -1]
    assert of(1, 1).host.tolist() == [-1, -1]


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


def test_weighting_raises_the_scores_of_a_rare_class():
    data = examples(n=60)
    rare = Examples(data.images, np.where(np.arange(60) == 0, 1, 0).astype(np.float32)[:, None], data.answers)
    natural = {"sampling": "natural", "morphology_weight": 0.0}
    by_loss = {}
    for loss in ("plain", "weighted", "focal"):
        settings = SETTINGS.model_copy(update={"loss": loss, **natural})
        by_loss[loss] = scores(train_classifier(rare, None, settings, steps=20, seed=0, device=CPU), rare).mean()
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
