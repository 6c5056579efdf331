from __future__ import annotations

import pytest
import torch

from galscan.core import device
from galscan.core.errors import InputError


def test_auto_is_what_is_there():
    assert device.pick("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.pick("cpu").type == "cpu"


def test_unknown_device_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        device.pick("cudda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_cuda_absent_is_the_users_mistake():
    with pytest.raises(InputError, match="no CUDA device"):
        device.pick("cuda")


def test_unknown_precision():
    with pytest.raises(InputError, match="bf16"):
        device.precision("fp8")


def test_out_of_memory_is_told_from_other_errors():
    assert device.is_out_of_memory(torch.OutOfMemoryError("x"))
    assert device.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert device.is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate ..."))
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))


CPU = torch.device("cpu")
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture
def no_choice(monkeypatch):
    monkeypatch.setattr(device, "_trained_in", None)


def test_the_trial_changes_no_random_numbers(no_choice, monkeypatch):
    monkeypatch.setattr(device, "TRIAL_STEPS", 2)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.inference_mode():  # a generator samples in it
        assert 0 < device.bf16_speedup() < 100
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("speedup", "dtype"), [(1.19, FLOAT32), (1.2, BFLOAT16), (0.2, FLOAT32)])
def test_bfloat16_must_be_faster_in_a_trial_that_is_made_once(no_choice, monkeypatch, speedup, dtype):
    trials = []
    monkeypatch.setattr(device, "bf16_speedup", lambda: trials.append(1) or speedup)
    assert [device.training_dtype(CPU) for _ in range(3)] == [dtype] * 3
    assert len(trials) == 1


def test_a_resumed_training_has_the_dtype_it_began_with(no_choice, monkeypatch, tmp_path):
    speedup = 2.0
    monkeypatch.setattr(device, "bf16_speedup", lambda: speedup)
    with device.recorded_training_dtype(tmp_path, CPU):
        assert device.training_dtype(CPU) is BFLOAT16
    speedup = 0.5
    monkeypatch.setattr(device, "_trained_in", None)
    with device.recorded_training_dtype(tmp_path / "other", CPU):
        assert device.training_dtype(CPU) is FLOAT32
        with device.recorded_training_dtype(tmp_path, CPU):
            assert device.training_dtype(CPU) is BFLOAT16
        assert device.training_dtype(CPU) is FLOAT32
