from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from galscan.core.errors import GalscanError
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings
from galscan.synthesis.diffusion import checkpoint, galaxy_training
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.diffusion.galaxy_model import (
    AUGMENTATION,
    Generator,
    GeneratorConfig,
    load_generator,
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


@pytest.mark.parametrize("start", [None, wider_config()], ids=["from nothing", "from other weights"])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, start):
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint, "MAX_FRACTION", 1e9)
    start = start and untrained(start, seed=4)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_generator(galaxies(), config(), settings(6), whole, seed=3, device=CPU, start=start)

    class Stop(Exception):
        pass

    real_save, calls = Checkpoint.save, []

    def save_and_stop(self):
        real_save(self)
        calls.append(self.step)
        if len(calls) == 3:
            raise Stop

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    with pytest.raises(Stop):
        train_generator(galaxies(), config(), settings(6), parts, seed=3, device=CPU, start=start)
    assert not parts.exists()
    monkeypatch.setattr(Checkpoint, "save", real_save)
    outcome = train_generator(galaxies(), config(), settings(6), parts, seed=3, device=CPU, start=start)
    assert outcome["steps"] == 6
    for name, value in load_file(whole).items():
        assert torch.equal(load_file(parts)[name], value), name
    assert not list(tmp_path.glob("*.checkpoint*"))


def trained(path, seed: int = 3, start: Generator | None = None, **changes) -> dict[str, torch.Tensor]:
    given = settings(2, **changes)
    train_generator(galaxies(), config(), given, path / "g.safetensors", seed=seed, device=CPU, start=start)
    return load_generator(path / "g.safetensors").state_dict()


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_it_goes_on_from_the_start_weights(tmp_path):
    start = untrained(config(), seed=4)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    stayed = trained(tmp_path, start=start, learning_rate=1e-12)
    assert apart(stayed, before) < 2e-3  # half precision
    assert apart(trained(tmp_path, learning_rate=1e-12), before) > 0.05  # chance, and not the start
    moved = trained(tmp_path, start=start, learning_rate=0.3)
    assert apart(moved, before) > 5e-3
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())  # its own are left alone


def test_a_start_that_knows_other_answers_is_adapted(tmp_path):
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
    given = GeneratorSettings(widths=(32, 32), steps=6, batch=12, **changes)
    train_generator(galaxies(), config(), given, tmp_path / "g.safetensors", seed=0, device=CPU)
    return torch.cat(result), torch.cat(shown)


def is_real(shown: torch.Tensor) -> torch.Tensor:
    """Return which images have the pixels of one of the galaxies."""
    real = Generator(config()).encode_images(torch.from_numpy(galaxies().images)).flatten(1)
    return (shown.flatten(1)[:, None] == real).all(2).any(1)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_without_augmentation_nothing_is_resampled_or_said_to_be(tmp_path, monkeypatch, drop):
    result, shown = watched(tmp_path, monkeypatch, augment=0.0, drop=drop)
    assert not result.any() and is_real(shown).all()


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_with_augmentation_the_enlargement_is_told(tmp_path, monkeypatch, drop):
    result, shown = watched(tmp_path, monkeypatch, augment=1.0, drop=drop)
    assert (result[:, 0] == 1).all() and not is_real(shown).any()
    assert result[:, 1].min() < -0.5 and result[:, 1].max() > 0.5 and (result[:, 1].abs() <= 1 + 1e-5).all()


def test_just_those_that_are_resampled_are_said_to_be(tmp_path, monkeypatch):
    result, shown = watched(tmp_path, monkeypatch, augment=0.5)
    assert 0.25 < result[:, 0].mean() < 0.75
    assert torch.equal(result[:, 0] == 0, is_real(shown)) and not result[result[:, 0] == 0].any()


def test_the_enlargement_told_is_the_one_done(tmp_path, monkeypatch):
    real, done = galaxy_training.rotate_flip_scale, []

    def spy(pixels, random, *, scale, shift):
        moved, enlargement = real(pixels, random, scale=scale, shift=shift)
        done.append(enlargement)
        return moved, enlargement

    monkeypatch.setattr(galaxy_training, "rotate_flip_scale", spy)
    result, _ = watched(tmp_path, monkeypatch, augment=1.0)
    torch.testing.assert_close(result[:, 1], torch.cat(done) / ENLARGEMENT)


def test_nothing_but_the_augmentation_is_told_where_all_is_dropped(tmp_path, monkeypatch):
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
def test_what_is_measured_is_told_of_the_picture_shown(tmp_path, monkeypatch, drop):
    result, shown = [], []
    forward, turn = Generator.forward, galaxy_training.quarter_turns

    def turned(x, random):
        shown.append(turn(x, random))
        return shown[-1]

    monkeypatch.setattr(galaxy_training, "quarter_turns", turned)
    monkeypatch.setattr(
        Generator, "forward", lambda self, x, t, c: (result.append(c.clone()), forward(self, x, t, c))[1]
    )
    teaching, with_shape = with_measures()
    given = GeneratorSettings(widths=(32, 32), steps=4, batch=12, augment=0.5, drop=drop)
    train_generator(teaching, with_shape, given, tmp_path / "g.safetensors", seed=0, device=CPU)
    generator, n = Generator(with_shape), len(with_shape.answers)
    conditions, pictures = torch.cat(result), generator.decode_images(torch.cat(shown)).numpy()
    found = np.full((len(pictures), n), np.nan)
    found[:, -len(MEASURED) :] = measure(pictures)
    expected = generator.encode_conditions(found, np.zeros(len(found), int))
    requested = conditions[:, 2 * n - len(MEASURED) : 2 * n]
    assert (requested == requested[:, :1]).all()  # what is measured is forgotten together
    kept = requested[:, 0] == 1
    assert kept.all() if drop == 0 else 0.05 < kept.float().mean() < 0.6
    columns = slice(n - len(MEASURED), n)
    torch.testing.assert_close(conditions[kept, columns], expected[kept, columns])
    assert not conditions[~kept, columns].any()
    labelled = conditions[:, n] == 1
    assert labelled.any() and (conditions[labelled, 0] == expected.new_tensor(2 * 9 / 17 - 1)).all()


def test_a_budget_ends_training_early(tmp_path):
    outcome = train_generator(
        galaxies(), config(), settings(100_000), tmp_path / "g.safetensors", seed=0, device=CPU, seconds=1.0
    )
    assert 0 < outcome["steps"] < 100_000
    assert (tmp_path / "g.safetensors").exists()


def overflowing(monkeypatch, which) -> None:
    """Give the gradients of these steps an infinite one among them."""
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def clip(parameters, limit):
        parameters = list(parameters)
        calls.append(None)
        if which(len(calls)):
            parameters[0].grad[...] = torch.inf
        return real(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


def test_a_batch_that_overflows_is_left_out(tmp_path, monkeypatch):
    overflowing(monkeypatch, lambda call: call in (1, 3))
    outcome = train_generator(galaxies(), config(), settings(5), tmp_path / "g.safetensors", seed=0, device=CPU)
    assert outcome["steps"] == 5 and np.isfinite(outcome["loss"])
    assert all(value.isfinite().all() for value in load_file(tmp_path / "g.safetensors").values())


def test_a_training_that_diverges_ends_and_says_what_helps(tmp_path, monkeypatch):
    overflowing(monkeypatch, lambda call: call > 2)
    with pytest.raises(GalscanError, match=r"diverged at step 11 .*smaller generator\.learning_rate"):
        train_generator(galaxies(), config(), settings(100), tmp_path / "g.safetensors", seed=0, device=CPU)
    assert not (tmp_path / "g.safetensors").exists()


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
