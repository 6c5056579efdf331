"""Compiled networks: OpenVINO, CUDA graphs and PyTorch give the same outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from galscan.models import compiled
from galscan.models.network import Ensemble, GalaxyNet
from galscan.models.prefilter import TinyNet, TinyNets

CPU = torch.device("cpu")


def _several() -> Ensemble:
    joint = GalaxyNet(8, 3, 2)
    return Ensemble([joint.only(0)], [joint.only(1)], [GalaxyNet(8, 1), GalaxyNet(8, 1)])


NETWORKS = {
    "ensemble": lambda: Ensemble([GalaxyNet(8, 3), GalaxyNet(8, 3)]),
    "several targets": _several,
    "embeddings": lambda: Ensemble([GalaxyNet(8, 3), GalaxyNet(8, 3)], [GalaxyNet(8, 1)], embeddings=True),
    "first look": lambda: TinyNets([TinyNet()]),
    "first looks": lambda: TinyNets([TinyNet(targets=2).only(1), TinyNet()]),
}


def network(name):
    torch.manual_seed(0)
    made = NETWORKS[name]()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3)
    return made.eval()


def pictures(n, size=32):
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_says_the_same(name):
    run = compiled.compiled(network(name), CPU, torch.float32)
    with torch.inference_mode():
        expected = network(name)(torch.from_numpy(pictures(5)))
    for got, wanted in zip(run(pictures(5)), expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [32, 96])
def test_a_converted_network_says_the_same_in_any_batch(name, size, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra 'fast'")
    compiled.convert(network(name), size, tmp_path / "n.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.bin", "n.xml"]
    plain = compiled.compiled(network(name), CPU, torch.float32)
    fast = compiled.compiled(network(name), CPU, torch.float32, tmp_path / "n.xml")
    for n in (1, 7, 3):
        for got, wanted in zip(fast(pictures(n, size)), plain(pictures(n, size)), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_nobody_is_told_that_openvino_is_used(tmp_path):
    """OpenVINO would send a message to Google Analytics, and keep an identity in the home folder."""
    pytest.importorskip("openvino", reason="needs the extra 'fast'")
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom galscan.models import compiled, prefilter\n"
        "path = Path(sys.argv[1], 'n.xml')\nlook = prefilter.TinyNets([prefilter.TinyNet()])\n"
        "compiled.convert(look, 32, path)\ncompiled.compiled(look, torch.device('cpu'), torch.float32, path)\n"
        "print(sorted(name for name in sys.modules if 'openvino_telemetry' in name and sys.modules[name]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert not (tmp_path / "intel").exists()


def test_without_openvino_a_converted_network_is_not_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "has_openvino", lambda: False)
    run = compiled.compiled(network("first look"), CPU, torch.float32, tmp_path / "not there.xml")
    assert run(pictures(2))[0].shape == (2, 1)


@pytest.mark.parametrize("error", [ImportError("libtbb"), RuntimeError("no plugin"), OSError("damaged")])
def test_a_broken_openvino_is_no_reason_to_stop(tmp_path, monkeypatch, error):
    def broken(*args):
        raise error

    monkeypatch.setattr(compiled, "has_openvino", lambda: True)
    monkeypatch.setattr(compiled, "_by_openvino", broken)
    run = compiled.compiled(network("first look"), CPU, torch.float32, tmp_path / "n.xml")
    plain = compiled.compiled(network("first look"), CPU, torch.float32)
    np.testing.assert_array_equal(run(pictures(3))[0], plain(pictures(3))[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_says_the_same(name, cuda, tmp_path):
    plain = compiled.compiled(network(name), CPU, torch.float32)(pictures(64))
    for dtype, near in ((torch.float32, 1e-2), (torch.bfloat16, 0.2)):  # TF32 and bfloat16 round
        run = compiled.compiled(network(name), torch.device(cuda), dtype, tmp_path / "not looked at.xml")
        for got, wanted in zip(run(pictures(64)), plain, strict=True):
            np.testing.assert_allclose(got, wanted, atol=near)


@pytest.mark.gpu
def test_a_gpu_plays_back_what_it_recorded_also_for_threads_and_pieces_of_slices(cuda):
    run = compiled.compiled(network("ensemble"), torch.device(cuda), torch.float32)
    many = np.concatenate([pictures(64)] * (2 * compiled.SLICE // 64) + [pictures(7)])
    once = [run(many[k : k + 64])[0] for k in range(0, len(many), 64)]  # too few to be recorded
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(run, [many] * 6):
            np.testing.assert_allclose(got[0], np.concatenate(once), atol=1e-2)
