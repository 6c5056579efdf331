"""Networks made ready for many pictures: by OpenVINO on a CPU where it is installed, by PyTorch itself elsewhere.

OpenVINO folds the normalisation into the convolutions, fuses what follows them and lays the numbers out as the
processor likes them. It computes the same in the same number format: scores differ in the seventh digit. To convert a
network takes seconds, to load a converted one a tenth of one; so it is done once, and the workers load it.

In integers of 8 bits (`quantise`) it is twice as fast again, but not the same: what that may be used for is for
`galscan.scanning.quantised` to say.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
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

SLICE = 1024  # pictures that travel to a GPU at a time
SOME = 50  # pictures at a time by which a network is quantised

Compiled = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed (``pip install 'galscan[fast]'``)."""
    return importlib.util.find_spec("openvino") is not None


def has_nncf() -> bool:
    """Tell whether networks can be quantised (``pip install 'galscan[int8]'``)."""
    return has_openvino() and importlib.util.find_spec("nncf") is not None


def _openvino() -> ModuleType:
    """Import OpenVINO, but not what tells Google Analytics of it: OpenVINO and nncf do without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino  # type: ignore[no-any-return]


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
    openvino = _openvino()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are taken for constants, as they are
        traced = torch.jit.trace(network.eval().requires_grad_(False), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    model.reshape([-1, size, size, 3])
    _save(model, path)


def quantise(converted: Path, images: np.ndarray, path: Path) -> None:
    """Write a converted network once more, to compute in integers of 8 bits.

    Parameters
    ----------
    converted : Path
        What `convert` wrote.
    images : ndarray of uint8, shape (n, S, S, 3)
        Some hundred pictures like those to come: they tell how large the numbers inside become.
    path : Path
        Ending in ``.xml``. It is there when all is.
    """
    openvino = _openvino()
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(logging.ERROR)
        how = nncf.AdvancedQuantizationParameters(
            # By default ranges are those of the average picture: what is rare and bright in one of them is cut off,
            # which is what these networks look for.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # It leaves an offset where the last numbers are maxima: changes of scores become three times as large.
            disable_bias_correction=True,
            # Processors without VNNI add up in 16 bits, and overflow; with it, all give the same.
            overflow_fix=nncf.OverflowFix.ENABLE,
        )
        some = nncf.Dataset(np.array_split(images, -(-len(images) // SOME)))
        model = openvino.Core().read_model(converted, converted.with_suffix(".bin"))
        model = nncf.quantize(
            model, some, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images), advanced_parameters=how
        )
    _save(model, path)


def _save(model: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp.xml")
    _openvino().save_model(model, temporary, compress_to_fp16=False)
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
        What `convert` made of it: used on a CPU, where OpenVINO is installed and can read it.
    """
    if dtype is torch.bfloat16 and not devices.has_fast_bf16(where):
        dtype = torch.float32
    if converted is not None and where.type == "cpu" and has_openvino():
        # A broken installation is no reason to lose a night: PyTorch computes the same.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            return _by_openvino(converted, dtype)
    network = network.eval().to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if where.type == "cuda":
        return _by_cuda(network, where, dtype)

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with devices.autocast(where, dtype):
            outputs = network(torch.from_numpy(np.ascontiguousarray(images)))
        return tuple(output.float().numpy() for output in outputs)

    return run


def _by_cuda(network: nn.Module, where: torch.device, dtype: torch.dtype) -> Compiled:
    """Slices of pictures are copied on a stream of their own, so that one travels while another is computed."""
    copies = torch.cuda.Stream(where)
    recorded = _Recorded(network, where, dtype)

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        computing, done = torch.cuda.current_stream(where), []
        for start in range(0, len(images), SLICE):
            # Nothing here waits for the device: the allocators of PyTorch know which copies are still under way.
            pinned = torch.from_numpy(np.ascontiguousarray(images[start : start + SLICE])).pin_memory()
            with torch.cuda.stream(copies):
                pixels = pinned.to(where, non_blocking=True)
            computing.wait_stream(copies)
            pixels.record_stream(computing)
            done.append(recorded(pixels))
        return tuple(torch.cat(some).float().cpu().numpy() for some in zip(*done, strict=True))

    return run


class _Recorded:
    """A network whose launches are recorded once, as a CUDA graph, and played back for every whole slice after that.

    The networks are so small that a fast GPU would else wait for Python to launch their layers. A recording needs no
    compiler, and a second; where it cannot be made, the layers are launched as ever.
    """

    def __init__(self, network: nn.Module, where: torch.device, dtype: torch.dtype):
        self.network, self.where, self.dtype = network, where, dtype
        self.graph: torch.cuda.CUDAGraph | None = None
        self.possible = True
        self.lock = threading.Lock()  # threads of a worker share the buffers of the recording

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(pixels) < SLICE or not self.possible:
            return self._launch(pixels)
        with self.lock:
            try:
                graph = self.graph = self.graph or self._record(pixels)
            except RuntimeError:  # no memory for it, or an operation that cannot be recorded
                self.possible = False
                return self._launch(pixels)
            self.pixels.copy_(pixels)
            graph.replay()
            return tuple(output.clone() for output in self.outputs)

    def _launch(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Weights that autocast keeps converted would outlive, or not, the recording that used them.
        enabled = self.dtype is not torch.float32
        with torch.autocast("cuda", dtype=self.dtype, enabled=enabled, cache_enabled=False):
            return tuple(self.network(pixels))

    def _record(self, pixels: torch.Tensor) -> torch.cuda.CUDAGraph:
        self.pixels = torch.empty_like(pixels)
        self.pixels.copy_(pixels)
        aside, computing = torch.cuda.Stream(self.where), torch.cuda.current_stream(self.where)
        aside.wait_stream(computing)
        with torch.cuda.stream(aside):  # libraries choose their algorithms in the first runs, which cannot be recorded
            for _ in range(3):
                self._launch(self.pixels)
        computing.wait_stream(aside)
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
        "ENABLE_CPU_PINNING": False,  # several processes would all be pinned to the first core
    }
    ready = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", settings)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = ready.create_infer_request().infer([np.ascontiguousarray(images)], share_inputs=True)
        return tuple(np.asarray(outputs[k], np.float32) for k in range(len(ready.outputs)))

    return run
