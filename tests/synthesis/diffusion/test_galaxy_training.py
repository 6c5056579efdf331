from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import GalscanError
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings
from galscan.synthesis.diffusion import galaxy_training
from galscan.synthesis.diffusion.galaxy_model import (
    AUGMENTATION,
    Generator,
    GeneratorConfig,
    make_config,
)
from galscan.synthesis.diffusion.galaxy_training import ENLARGEMENT, train_generator
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure
from tests.synthesis.diffusion.test_galaxy_model import config, untrained, wider_config

CPU = torch.device("cpu")


def galaxies(n: int = 24) -> GalaxySet:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.uniform(-6, 11, n), rng.uniform(0, 1, n)]).astype(np.float32)
    values[: n // 2] = np.nan
    return GalaxySet(rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8), values, np.zeros(n, int), np.ones(n))


def settings(steps: int, **changes) -> GeneratorSettings:
    return GeneratorSettings(widths=(32, 32), steps=steps, batch=4, **changes)


def trained(path, seed: int = 3, start: Generator | None = None, steps: int = 2, **changes) -> dict[str, torch.Tensor]:
    given = settings(steps, **changes)
    train_generator(galaxies(), config(), given, path / "g.safetensors", seed=seed, device=CPU, start=start)
    return Generator.load(path / "g.safetensors").state_dict()


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_training_starts_from_the_given_weights(tmp_path):
    start = untrained(config(), seed=4)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    stayed = trained(tmp_path, start=start, learning_rate=1e-12)
    assert apart(stayed, before) < 2e-3  # half precision
    assert apart(trained(tmp_path, learning_rate=1e-12), before) > 0.05  # random, and not the start
    moved = trained(tmp_path, start=start, learning_rate=0.3)
    assert apart(moved, before) > 5e-3
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())  # unchanged


def test_initial_weights_with_other_answers_are_adapted(tmp_path):
    start, expected = untrained(wider_config(), seed=4), Generator(config())
    expected.start_from(start)
    assert apart(trained(tmp_path, start=start, learning_rate=1e-12), expected.state_dict()) < 2e-3


def watched(tmp_path, monkeypatch, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Train a few steps; return the augmentation entries of the conditions, and the images before rotation."""
    result, shown = [], []
    forward, turn = Generator.forward, galaxy_training.quarter_turns

    def spy(self, x, t, condition):
        result.append(condition[:, -AUGMENTATION:].clone())
        return forward(self, x, t, condition)

    monkeypatch.setattr(Generator, "forward", spy)
    monkeypatch.setattr(
        galaxy_training, "quarter_turns", lambda x, random: (shown.append(x.clone()), turn(x, random))[1]
    )
    given = GeneratorSettings(widths=(32, 32), steps=3, batch=12, **changes)
    train_generator(galaxies(), config(), given, tmp_path / "g.safetensors", seed=0, device=CPU)
    return torch.cat(result), torch.cat(shown)


def is_real(shown: torch.Tensor) -> torch.Tensor:
    """Return which images have the pixels of one of the galaxies."""
    real = Generator(config()).encode_images(torch.from_numpy(galaxies().images)).flatten(1)
    return (shown.flatten(1)[:, None] == real).all(2).any(1)


@pytest.mark.parametrize("drop", [0.0, 1.0])
@pytest.mark.parametrize(("augment", "low", "high"), [(0.0, 0, 0), (0.5, 0.25, 0.75), (1.0, 1, 1)])
def test_just_the_resampled_images_have_the_condition_of_augmentation(tmp_path, monkeypatch, augment, low, high, drop):
    real, done = galaxy_training.rotate_flip_scale, []

    def spy(pixels, random, *, scale, shift):
        moved, enlargement = real(pixels, random, scale=scale, shift=shift)
        done.append(enlargement)
        return moved, enlargement

    monkeypatch.setattr(galaxy_training, "rotate_flip_scale", spy)
    result, shown = watched(tmp_path, monkeypatch, augment=augment, drop=drop)
    resampled = result[:, 0] == 1
    assert low <= resampled.float().mean() <= high and torch.equal(~resampled, is_real(shown))
    assert not result[~resampled].any()
    torch.testing.assert_close(result[resampled, 1], torch.cat(done)[resampled] / ENLARGEMENT)
    assert (result[:, 1].abs() <= 1 + 1e-5).all()


def test_a_training_that_diverges_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "forward", lambda self, x, t, condition: x * self.condition[0].weight.sum() * np.nan)
    with pytest.raises(GalscanError, match="step 9"):
        trained(tmp_path, steps=20)
    assert not (tmp_path / "g.safetensors").exists()


def test_only_the_augmentation_is_a_condition_where_all_answers_are_dropped(tmp_path, monkeypatch):
    whole = []
    forward = Generator.forward
    monkeypatch.setattr(
        Generator, "forward", lambda self, x, t, c: (whole.append(c.clone()), forward(self, x, t, c))[1]
    )
    trained(tmp_path, drop=1.0)
    answers = len(config().answers)
    assert not torch.cat(whole)[:, : 2 * answers].any()
    whole.clear()
    trained(tmp_path, drop=0.0)
    result = torch.cat(whole)
    assert result[:, answers : 2 * answers].any() and (result[:, 2 * answers] == 1).all()


def with_measures() -> tuple[GalaxySet, GeneratorConfig]:
    """Return galaxies with wrong measured values: conditions must be measured on the augmented image."""
    images, n = galaxies().images, 24
    schema = load_schema("efigi")
    values = np.full((n, len(schema.names) + len(MEASURED)), np.nan, np.float32)
    values[:, 0], values[:, len(schema.names) :] = 3.0, 0.123
    return GalaxySet(images, values, np.zeros(n, int), np.ones(n)), make_config(images, schema, ["a"], (32, 32))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_measured_conditions_are_those_of_the_augmented_image(tmp_path, monkeypatch, drop):
    result, shown = [], []
    forward, turn = Generator.forward, galaxy_training.quarter_turns

    def turned(x, random):
        shown.append(turn(x, random))
        return shown[-1]

    monkeypatch.setattr(galaxy_training, "quarter_turns", turned)
    monkeypatch.setattr(
        Generator, "forward", lambda self, x, t, c: (result.append(c.clone()), forward(self, x, t, c))[1]
    )
    training_set, with_shape = with_measures()
    given = GeneratorSettings(widths=(32, 32), steps=3, batch=12, augment=0.5, drop=drop)
    train_generator(training_set, with_shape, given, tmp_path / "g.safetensors", seed=0, device=CPU)
    generator, n = Generator(with_shape), len(with_shape.answers)
    conditions, found_images = torch.cat(result), generator.decode_images(torch.cat(shown)).numpy()
    found = np.full((len(found_images), n), np.nan)
    found[:, -len(MEASURED) :] = measure(found_images)
    expected = generator.encode_conditions(found, np.zeros(len(found), int))
    requested = conditions[:, 2 * n - len(MEASURED) : 2 * n]
    assert (requested == requested[:, :1]).all()  # measured properties are dropped together
    kept = requested[:, 0] == 1
    assert kept.all() if drop == 0 else 0.05 < kept.float().mean() < 0.6
    columns = slice(n - len(MEASURED), n)
    torch.testing.assert_close(conditions[kept, columns], expected[kept, columns])
    assert not conditions[~kept, columns].any()
    labelled = conditions[:, n] == 1
    assert labelled.any() and (conditions[labelled, 0] == expected.new_tensor(2 * 9 / 17 - 1)).all()


@pytest.mark.slow
def test_loss_falls_on_one_picture(tmp_path):
    flat = galaxies()
    flat = GalaxySet(np.full_like(flat.images, 60), flat.values, flat.survey, flat.weight)
    quick = GeneratorSettings(widths=(32, 32), steps=60, batch=8, learning_rate=2e-3)
    few = train_generator(
        flat, config(), quick.model_copy(update={"steps": 5}), tmp_path / "a.safetensors", seed=0, device=CPU
    )
    many = train_generator(flat, config(), quick, tmp_path / "b.safetensors", seed=0, device=CPU)
    assert many["loss"] < 0.7 * few["loss"]
