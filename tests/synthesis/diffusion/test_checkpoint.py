"""The training loop. See test_train_generator.py and test_fine_tune.py for resumed trainings."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from galscan.core.errors import GalscanError, InputError
from galscan.synthesis.diffusion import checkpoint
from galscan.synthesis.diffusion.checkpoint import Checkpoint


def training(path, value: float) -> Checkpoint:
    weights = {"w": torch.full((2,), value, requires_grad=True)}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    state = Checkpoint(path, weights, optimizer, torch.Generator().manual_seed(int(value)), 0.9)
    state.average["w"].fill_(-value)
    return state


def test_save_and_resume(tmp_path):
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
    assert other.finish()["loss"] == 0.25 and not list(tmp_path.iterdir())


def test_without_a_file_training_starts_from_the_beginning(tmp_path):
    state = training(tmp_path / "c.safetensors", 1.0)
    state.resume()
    assert state.step == 0 and state.weights["w"].tolist() == [1, 1] and state.finish()["steps"] == 0


def test_progress_is_by_steps_or_time_whichever_is_larger(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    state = training(tmp_path / "c.safetensors", 1.0)
    state._started, state.step = 1000.0, 10
    now[0] = 1030.0
    assert state.progress(100, None) == 0.1 and state.progress(100, 60.0) == 0.5 and state.progress(20, 600.0) == 0.5
    assert state.progress(10, None) == state.progress(100, 30.0) == state.progress(100, 20.0) == 1.0


def test_a_step_lowers_the_loss_and_the_average_follows(tmp_path):
    state = training(tmp_path / "c.safetensors", 1.0)
    before = state.average["w"].clone()
    assert state.update(state.weights["w"].square().sum(), 0.01) == "loss 2.0000"
    assert (state.weights["w"] < 1).all() and state.step == 1
    torch.testing.assert_close(state.average["w"], before + (1 - 2 / 11) * (state.weights["w"].detach() - before))


def test_an_overflow_is_skipped_and_many_in_a_row_end_the_training(tmp_path):
    state = training(tmp_path / "c.safetensors", 1.0)
    for k in range(2 * checkpoint.PATIENCE):  # one in two is no row
        state.update(state.weights["w"].sum() * (1.0 if k % 2 else float("inf")), 0.01)
    assert state.weights["w"].isfinite().all() and len(state.losses) == checkpoint.PATIENCE
    state.update(state.weights["w"].sum(), 0.01)
    with pytest.raises(GalscanError, match="step 30"):
        for _ in range(checkpoint.PATIENCE):
            state.update(state.weights["w"].sum() * float("nan"), 0.01)


def test_the_rate_rises_then_falls_to_its_floor_and_time_ends_the_training(tmp_path, monkeypatch):
    now, rates = [1000.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    state, update = training(tmp_path / "c.safetensors", 1.0), Checkpoint.update
    monkeypatch.setattr(
        Checkpoint, "update", lambda self, loss, rate: (rates.append(rate), update(self, loss, rate))[1]
    )
    state._started = 1000.0

    def loss():
        now[0] += 0.1
        return state.weights["w"].square().sum()

    state.run(loss, 1000, 4.0, warmup=10, floor=0.1, label="train")
    assert 35 <= state.step <= 41 and rates[0] == pytest.approx(0.01, rel=0.01) and max(rates) == max(rates[8:14])
    assert rates[-1] == pytest.approx(0.01, rel=0.1) and state.weights["w"].abs().max() < 1


def with_tensors(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"progress": '{"step": 7, "seconds": 1.5}'})


def with_progress(path, progress) -> None:
    save_file(load_file(path), path, metadata={"progress": progress} if progress else None)


DAMAGED = {
    "empty": lambda p: p.write_bytes(b""),
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-8]),
    "no header": lambda p: p.write_bytes(b"\xff" * 64),
    "no progress": lambda p: with_progress(p, None),
    "progress that is no JSON": lambda p: with_progress(p, "{"),
    "progress that is a list": lambda p: with_progress(p, "[]"),
    "a step that is text": lambda p: with_progress(p, '{"step": "7", "seconds": 1}'),
    "a step before the first": lambda p: with_progress(p, '{"step": -1, "seconds": 1}'),
    "time without end": lambda p: with_progress(p, '{"step": 7, "seconds": Infinity}'),
    "no weights": lambda p: with_tensors(p, lambda t: t.pop("model.w")),
    "weights of another shape": lambda p: with_tensors(p, lambda t: t.update({"model.w": torch.ones(1)})),
    "an average of another shape": lambda p: with_tensors(p, lambda t: t.update({"average.w": torch.ones(2, 2)})),
    "moments of another shape": lambda p: with_tensors(p, lambda t: t.update({"optimizer.0.exp_avg": torch.ones(3)})),
    "moments of no weight": lambda p: with_tensors(p, lambda t: t.update({"optimizer.9.exp_avg": torch.ones(2)})),
    "an invalid name": lambda p: with_tensors(p, lambda t: t.update({"optimizer.w": torch.ones(2)})),
    "an invalid random state": lambda p: with_tensors(
        p, lambda t: t.update({"random": torch.zeros(3, dtype=torch.uint8)})
    ),
    "no losses": lambda p: with_tensors(p, lambda t: t.pop("losses")),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_an_error_and_training_starts_over_without_it(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    first = training(path, 1.0)
    first.update(first.weights["w"].sum(), 0.1)
    first.save()
    damage(path)
    with pytest.raises(InputError, match=r"c\.safetensors") as error:
        training(path, 2.0).resume()
    assert "\n" not in str(error.value)
    path.unlink()
    new = training(path, 2.0)
    new.resume()
    assert new.step == 0 and new.weights["w"].tolist() == [2, 2]


@pytest.mark.parametrize(("took", "pause"), [(1.0, 120.0), (60.0, 1200.0)])
def test_writing_takes_a_limited_fraction_of_the_time(tmp_path, monkeypatch, took, pause):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    state, saved = training(tmp_path / "c.safetensors", 1.0), []

    def slowly(self):
        saved.append(now[0])
        now[0] += took

    monkeypatch.setattr(Checkpoint, "save", slowly)
    for _ in range(400):
        state.save_if_due()
        now[0] += 10
    steps = [b - a for a, b in itertools.pairwise(saved)]
    assert saved[0] > 1000 + checkpoint.SECONDS and pause < min(steps) <= max(steps) <= pause + took + 10
