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
