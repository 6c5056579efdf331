"""Device, precision, number of threads and out-of-memory errors of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from galscan.core.errors import InputError, nearest

Device = torch.device
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pick(name: str = "auto") -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Raises `InputError` if the name is unknown, or CUDA is requested and not available.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device '{name}'{nearest(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is available (see: galscan doctor); use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def precision(name: str) -> torch.dtype:
    """Return the dtype for ``bf16`` or ``fp32``."""
    try:
        return PRECISIONS[name]
    except KeyError:
        raise InputError(f"unknown precision '{name}'{nearest(name, PRECISIONS)}") from None


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context for networks; disabled for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware supports bfloat16; otherwise it is emulated, and slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")) and _cpu_flag("avx512_bf16")


def _cpu_flag(flag: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as handle:
            return any(line.startswith("flags") and flag in line.split() for line in handle)
    except OSError:
        return False


def training_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest safe dtype for training on `device`."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def batch(name: str, images: int) -> int:
    """Return the batch size of a device: `images`, which fit a processor's cache, on CPU, and 16 times more on GPU."""
    return images * 16 if pick(name).type == "cuda" else images


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread within the block: parallel processes are faster than threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is an out-of-memory error of the device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in str(error).lower() for words in ("out of memory", "not enough memory")
        )  # messages of CUDA and of the CPU
    )
