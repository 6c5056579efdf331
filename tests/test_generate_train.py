from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from galscan.generate import train
from galscan.generate.galaxies import GalaxySet
from galscan.generate.train import train_generator
from galscan.recipe import GeneratorSettings
from tests.test_generate_model import config

CPU = torch.device("cpu")


def galaxies(n: int = 24) -> GalaxySet:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.uniform(-6, 11, n), rng.uniform(0, 1, n)]).astype(np.float32)
    values[: n // 2] = np.nan
    return GalaxySet(rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8), values, np.zeros(n, int), np.ones(n))


def settings(steps: int) -> GeneratorSettings:
    return GeneratorSettings(widths=(32, 32), steps=steps, batch=4)


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_generator(galaxies(), config(), settings(6), whole, seed=3, device=CPU)

    class Stop(Exception):
        pass

    real_save, calls = train._save, []

    def save_and_stop(*arguments):
        real_save(*arguments)
        calls.append(arguments[5])
        if len(calls) == 3:
            raise Stop

    monkeypatch.setattr(train, "_save", save_and_stop)
    with pytest.raises(Stop):
        train_generator(galaxies(), config(), settings(6), parts, seed=3, device=CPU)
    assert not parts.exists()
    monkeypatch.setattr(train, "_save", real_save)
    outcome = train_generator(galaxies(), config(), settings(6), parts, seed=3, device=CPU)
    assert outcome["steps"] == 6
    for name, value in load_file(whole).items():
        assert torch.equal(load_file(parts)[name], value), name
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_a_budget_ends_training_early(tmp_path):
    outcome = train_generator(
        galaxies(), config(), settings(100_000), tmp_path / "g.safetensors", seed=0, device=CPU, seconds=1.0
    )
    assert 0 < outcome["steps"] < 100_000
    assert (tmp_path / "g.safetensors").exists()


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
