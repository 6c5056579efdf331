"""Fast inference of the networks: OpenVINO on a CPU where it is installed, PyTorch elsewhere.

OpenVINO folds the normalisation into the convolutions, fuses operations and chooses a memory layout for the
processor. Precision is the same: scores differ in the seventh digit. Converting a network takes seconds, loading a
converted one a tenth of a second; so it is converted once, and the workers load it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from galscan.core import device as devices

SLICE = 1024  # images copied to a GPU at a time

Compiled = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def has_openvino() -> bool:
    """Return whether OpenVINO is installed (``pip install 'galscan[fast]'``)."""
    return importlib.util.find_spec("openvino") is not None


def _openvino() -> ModuleType:
    """Import OpenVINO without its telemetry to Google Analytics; OpenVINO works without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino  # type: ignore[no-any-return]


def convert(network: nn.Module, size: int, path: Path) -> None:
    """Convert a network for OpenVINO: write `path`, and the weights beside it with the suffix ``.bin``.

    Parameters
    ----------
    network : Module
        Maps images (n, size, size, 3) uint8 to a tuple of tensors, with n first.
    size : int
        Pixels on a side.
    path : Path
        Ending in ``.xml``. It is written last.
    """
    openvino = _openvino()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings that sizes are traced as constants, which they are
        traced = torch.jit.trace(network.eval().requires_grad_(False), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    model.reshape([-1, size, size, 3])
    _save(model, path)


def _save(model: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp.xml")
    _openvino().save_model(model, temporary, compress_to_fp16=False)
    temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
    temporary.replace(path)


def compiled(network: nn.Module, device: torch.device, dtype: torch.dtype, converted: Path | None = None) -> Compiled:
    """Return `network` as a function from stored images to its outputs, as float32 arrays.

    Parameters
    ----------
    network : Module
        Maps images (n, S, S, 3) uint8 to a tuple of tensors, with n first.
    device : torch.device
    dtype : torch.dtype
        bfloat16 or float32; float32 where the device has no fast bfloat16.
    converted : Path, optional
        The network as converted by `convert`: used on a CPU where OpenVINO is installed and can read it.
    """
    if dtype is torch.bfloat16 and not devices.has_fast_bf16(device):
        dtype = torch.float32
    if converted is not None and device.type == "cpu" and has_openvino():
        # A broken OpenVINO must not stop a scan: PyTorch computes the same.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            return _by_openvino(converted, dtype)
    network = network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cuda":
        return _by_cuda(network, device, dtype)

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with devices.autocast(device, dtype):
            outputs = network(torch.from_numpy(np.ascontiguousarray(images)))
        return tuple(output.float().numpy() for output in outputs)

    return run


def _by_cuda(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Compiled:
    """Copy slices of images on a separate CUDA stream, so that copying and computing overlap."""
    copy_stream = torch.cuda.Stream(device)
    graph = _CudaGraph(network, device, dtype)

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        compute_stream, outputs = torch.cuda.current_stream(device), []
        for start in range(0, len(images), SLICE):
            # Nothing here synchronises with the device: PyTorch's allocators track which copies are still in flight.
            pinned = torch.from_numpy(np.ascontiguousarray(images[start : start + SLICE])).pin_memory()
            with torch.cuda.stream(copy_stream):
                pixels = pinned.to(device, non_blocking=True)
            compute_stream.wait_stream(copy_stream)
            pixels.record_stream(compute_stream)
            outputs.append(graph(pixels))
        return tuple(torch.cat(slices).float().cpu().numpy() for slices in zip(*outputs, strict=True))

    return run


class _CudaGraph:
    """A network captured once as a CUDA graph and replayed for every full slice.

    The networks are so small that a fast GPU would otherwise wait for Python to launch their layers. Capturing takes a
    second and needs no compiler; where it fails, the layers are launched one by one.
    """

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype):
        self.network, self.device, self.dtype = network, device, dtype
        self.graph: torch.cuda.CUDAGraph | None = None
        self.enabled = True
        self.lock = threading.Lock()  # the threads of a worker share the graph's buffers

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(pixels) < SLICE or not self.enabled:
            return self._launch(pixels)
        with self.lock:
            try:
                graph = self.graph = self.graph or self._capture(pixels)
            except RuntimeError:  # out of memory, or an operation that cannot be captured
                self.enabled = False
                return self._launch(pixels)
            self.pixels.copy_(pixels)
            graph.replay()
            return tuple(output.clone() for output in self.outputs)

    def _launch(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Weights cached by autocast could be freed before or after the graph that uses them.
        enabled = self.dtype is not torch.float32
        with torch.autocast("cuda", dtype=self.dtype, enabled=enabled, cache_enabled=False):
            return tuple(self.network(pixels))

    def _capture(self, pixels: torch.Tensor) -> torch.cuda.CUDAGraph:
        self.pixels = torch.empty_like(pixels)
        self.pixels.copy_(pixels)
        warmup, compute_stream = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        warmup.wait_stream(compute_stream)
        with torch.cuda.stream(warmup):  # the first runs choose algorithms, which cannot be captured
            for _ in range(3):
                self._launch(self.pixels)
        compute_stream.wait_stream(warmup)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.outputs = self._launch(self.pixels)
        return graph


def _by_openvino(path: Path, dtype: torch.dtype) -> Compiled:
    openvino = _openvino()
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype is torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # with pinning all processes would use the first core
    }
    compiled_model = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", settings)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = compiled_model.create_infer_request().infer([np.ascontiguousarray(images)], share_inputs=True)
        return tuple(np.asarray(outputs[k], np.float32) for k in range(len(compiled_model.outputs)))

    return run
