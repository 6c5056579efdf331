"""That a training ends the same when resumed is shown in test_generate_train.py and test_generate_fine_tune.py."""

from __future__ import annotations

import itertools

import pytest
import torch

from galscan.generate import checkpoint
from galscan.generate.checkpoint import Checkpoint


def training(path, value: float) -> Checkpoint:
    weights = {"w": torch.full((2,), value, requires_grad=True)}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    return Checkpoint(
        path, weights, {"w": torch.full((2,), -value)}, optimizer, torch.Generator().manual_seed(int(value))
    )


def test_all_of_it_comes_back(tmp_path):
    first = training(tmp_path / "c.safetensors", 1.0)
    first.weights["w"].sum().backward()
    first.optimizer.step()
    first.step, first.losses = 7, [0.5, 0.25]
    first.save()
    other = training(tmp_path / "c.safetensors", 2.0)
    other.resume()
    assert (other.step, other.losses) == (7, [0.5, 0.25]) and other.seconds >= first._before
    for name in ("weights", "average"):
        assert torch.equal(getattr(other, name)["w"], getattr(first, name)["w"])
    assert torch.equal(other.random.get_state(), first.random.get_state())
    for one, two in zip(first.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[k], two[k]) for k in ("exp_avg", "exp_avg_sq", "step"))
    assert other.done()["loss"] == 0.25 and not list(tmp_path.iterdir())


def test_nothing_to_resume_is_a_beginning(tmp_path):
    at = training(tmp_path / "c.safetensors", 1.0)
    at.resume()
    assert at.step == 0 and at.weights["w"].tolist() == [1, 1] and at.done()["steps"] == 0


@pytest.mark.parametrize(("took", "pause"), [(1.0, 120.0), (60.0, 1200.0)])
def test_writing_never_takes_more_than_its_share(tmp_path, monkeypatch, took, pause):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    at, saved = training(tmp_path / "c.safetensors", 1.0), []

    def slowly(self):
        saved.append(now[0])
        now[0] += took

    monkeypatch.setattr(Checkpoint, "save", slowly)
    for _ in range(400):
        at.save_now_and_then()
        now[0] += 10
    steps = [b - a for a, b in itertools.pairwise(saved)]
    assert saved[0] > 1000 + checkpoint.SECONDS and pause < min(steps) <= max(steps) <= pause + took + 10
