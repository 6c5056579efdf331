"""Networks made ready for many pictures: by OpenVINO on a CPU where it is installed, by PyTorch itself elsewhere.

OpenVINO folds the normalisation into the convolutions, fuses what follows them and lays the numbers out as the
processor likes them. It computes the same in the same number format: scores differ in the seventh digit. To convert a
network takes seconds, to load a converted one a tenth of one; so it is done once, and the workers load it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from galscan import device as devices

Compiled = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed (``pip install 'galscan[fast]'``)."""
    return importlib.util.find_spec("openvino") is not None


def convert(network: nn.Module, size: int, path: Path) -> None:
    """Convert a network for OpenVINO: `path`, and its weights beside it in a file that ends in ``.bin``.

    Parameters
    ----------
    network : Module
        Maps pictures (n, size, size, 3) uint8 to a tuple of tensors, with n first.
    size : int
        Pixels on a side.
    path : Path
        Ending in ``.xml``. It is there when all is.
    """
    import openvino

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are taken for constants, as they are
        traced = torch.jit.trace(network.eval().requires_grad_(False), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    model.reshape([-1, size, size, 3])
    temporary = path.with_name(f".{path.name}.tmp.xml")
    openvino.save_model(model, temporary, compress_to_fp16=False)
    temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
    temporary.replace(path)


def compiled(network: nn.Module, where: torch.device, dtype: torch.dtype, converted: Path | None = None) -> Compiled:
    """Return `network` as a function from stored pictures to its outputs, as float32 arrays.

    Parameters
    ----------
    network : Module
        Maps pictures (n, S, S, 3) uint8 to a tuple of tensors, with n first.
    where : torch.device
    dtype : torch.dtype
        bfloat16 or float32; float32 where the device has no fast bfloat16.
    converted : Path, optional
        What `convert` made of it: used on a CPU, where OpenVINO is installed.
    """
    if dtype is torch.bfloat16 and not devices.has_fast_bf16(where):
        dtype = torch.float32
    if converted is not None and where.type == "cpu" and has_openvino():
        return _by_openvino(converted, dtype)
    network = network.eval().to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        if where.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(where, non_blocking=True)
        with devices.autocast(where, dtype):
            outputs = network(pixels)
        return tuple(output.float().cpu().numpy() for output in outputs)

    return run


def _by_openvino(path: Path, dtype: torch.dtype) -> Compiled:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several processes would all be pinned to the first core
    }
    ready = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", settings)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = ready.create_infer_request().infer([np.ascontiguousarray(images)], share_inputs=True)
        return tuple(np.asarray(outputs[k], np.float32) for k in range(len(ready.outputs)))

    return run
