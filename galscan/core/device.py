"""Device, precision, number of threads and out-of-memory errors of PyTorch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from galscan.core.errors import InputError, nearest
from galscan.core.files import read_json, write_json

Device = torch.device
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
TRAINING = "training_dtype.json"  # file of a staging folder: the dtype of a training that may be resumed
MIN_SPEEDUP = 1.2  # of bfloat16 over float32, from which on it is used for training
TRIAL_SECONDS, TRIAL_STEPS = 2.0, 10

_trained_in: torch.dtype | None = None  # of this process, on the CPU


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
    """Return the dtype for training networks on `device`, and for sampling from generators.

    On the CPU it is bfloat16 if a trial of two seconds, once per process, shows that a training step is at least
    `MIN_SPEEDUP` times as fast as in float32. `recorded_training_dtype` and `training_in` replace the trial.
    """
    global _trained_in
    if device.type == "cuda":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if _trained_in is None:
        _trained_in = torch.bfloat16 if bf16_speedup() >= MIN_SPEEDUP else torch.float32
    return _trained_in


@contextmanager
def training_in(dtype: torch.dtype) -> Iterator[None]:
    """Use `dtype` for training on the CPU within the block, without a trial."""
    global _trained_in
    before, _trained_in = _trained_in, dtype
    try:
        yield
    finally:
        _trained_in = before


@contextmanager
def recorded_training_dtype(folder: Path, device: torch.device) -> Iterator[None]:
    """Train within the block in the dtype recorded in `folder`, or record the one of `training_dtype`.

    So an interrupted training that is resumed has one dtype, whatever a second trial would show.
    """
    path = folder / TRAINING
    if device.type != "cpu":
        yield
        return
    if not path.is_file():
        names = {dtype: name for name, dtype in PRECISIONS.items()}
        write_json(path, {device.type: names[training_dtype(device)]})
    with training_in(precision(str(read_json(path).get(device.type)))):
        yield


def bf16_speedup() -> float:
    """Return how many times as fast a training step on one core is in bfloat16 as in float32.

    Of a small convolutional network, forward and backward, by the processor time of the fastest steps: other processes
    hardly change it. The state of random number generators is not changed.
    """
    fastest = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    with one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, after, stride in ((12, 16, 1), (16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        network = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.rand(8, 3, 64, 64).to(memory_format=torch.channels_last)
        started = time.monotonic()
        for step in range(TRIAL_STEPS):
            for dtype in fastest:
                network.zero_grad(set_to_none=True)
                began = time.thread_time()
                with autocast(torch.device("cpu"), dtype):
                    loss = network(images).float().square().mean()
                loss.backward()
                if step:  # the first one prepares the kernels
                    fastest[dtype] = min(fastest[dtype], time.thread_time() - began)
            if step and time.monotonic() - started > TRIAL_SECONDS:
                break
    return fastest[torch.float32] / max(fastest[torch.bfloat16], 1e-9)


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
