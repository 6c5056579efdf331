"""Clusters: what cannot be is said in one line, what is started is also closed."""

from __future__ import annotations

import builtins
import os
import sys
import types

import dask
import pytest

from galscan.core.errors import GalscanError, InputError
from galscan.scanning import cluster


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        ("locale", None, "did you mean 'local'"),
        ("http://x", None, "unknown"),
        ("local", 0, "at least 1"),
        ("tcp://host:1", 3, "cannot be used with"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(kind, workers, message):
    with pytest.raises(InputError, match=message), cluster.connect(kind, workers):
        pass


def test_a_plan_can_say_who_does_the_work():
    assert cluster.describe("local", 3) == "3 processes on this machine"
    assert cluster.describe("local", None) == f"{cluster.cores()} processes on this machine"
    assert "GPUs" in cluster.describe("cuda", None)
    assert "tcp://host:1" in cluster.describe("tcp://host:1", None)


def test_workers_have_memory_settings_for_networks_and_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # what the user exported for other programs
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    before = dict(os.environ)
    with cluster.connect("local", 1) as client:
        (told,) = client.run(
            lambda keys: {key: dask.config.get(key) for key in keys}, [*cluster.CONFIGURATION]
        ).values()
        (seen,) = client.run(lambda: dict(os.environ)).values()
        (handler,) = client.run(_interrupt_handler).values()
        (folder,) = client.run(lambda dask_worker: dask_worker.local_directory).values()
        assert client.nthreads() and set(client.nthreads().values()) == {1}
    assert {name: seen[name] for name in cluster.WORKER_ENVIRONMENT} == cluster.WORKER_ENVIRONMENT
    assert handler == "SIG_IGN"  # a terminal sends Ctrl-C to workers too: only the first process may react
    assert not os.path.exists(folder)
    assert told == cluster.CONFIGURATION
    assert dict(os.environ) == before and dask.config.get("distributed.worker.profile.enabled") is True


def _interrupt_handler() -> str:
    import signal

    return signal.Handlers(signal.getsignal(signal.SIGINT)).name


def test_cuda_without_the_extra_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def no_dask_cuda(name, *args, **kwargs):
        if name.startswith("dask_cuda"):
            raise ImportError("cannot import name 'bindings' from 'cuda'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "dask_cuda", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_dask_cuda)
    with pytest.raises(InputError, match=r"pip install 'galscan\[cuda\]'"), cluster.connect("cuda"):
        pass


def test_cuda_without_a_gpu_is_one_line(monkeypatch):
    class NVMLError_LibraryNotFound(Exception):
        pass

    def none(**options):
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")

    fake = types.ModuleType("dask_cuda")
    fake.LocalCUDACluster = none
    monkeypatch.setitem(sys.modules, "dask_cuda", fake)
    with (
        pytest.raises(GalscanError, match=r"no usable NVIDIA GPU \(NVMLError_LibraryNotFound: NVML.*nvidia-smi"),
        cluster.connect("cuda"),
    ):
        pass


def test_an_address_where_nobody_answers_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", "300ms")
    with (
        pytest.raises(InputError, match=r"no Dask scheduler responds at tcp://127\.0\.0\.1:9") as caught,
        cluster.connect("tcp://127.0.0.1:9"),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def running():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp") as it:
        yield it


@pytest.mark.gpu
def test_every_gpu_gets_a_worker(cuda):
    import torch

    pytest.importorskip("dask_cuda", reason="needs the extra 'cuda'")
    with cluster.connect("cuda") as client:
        seen = client.run(torch.cuda.is_available)
    assert len(seen) == torch.cuda.device_count() and all(seen.values())


def test_a_running_cluster_is_joined_and_goes_on_running(running, tmp_path):
    for _ in range(2):
        with cluster.connect(running.scheduler_address, paths=[tmp_path]) as client:
            assert client.submit(sum, [1, 2]).result() == 3


def test_a_cluster_behind_tls_is_joined_with_the_certificates_of_the_configuration(tmp_path):
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    pytest.importorskip("cryptography", reason="makes the certificates")
    security = Security.temporary()
    names = {"ca-file": security.tls_ca_file, "client.cert": security.tls_client_cert,
             "client.key": security.tls_client_key}  # fmt: skip
    settings = {}
    for name, text in names.items():
        (tmp_path / name).write_text(text)
        settings[f"distributed.comm.tls.{name}"] = str(tmp_path / name)
    how = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**how, protocol="tls", security=security) as it:
        with (
            pytest.raises(InputError, match=r"tls://.* needs certificates"),
            cluster.connect(it.scheduler_address),
        ):
            pass
        with dask.config.set(settings), cluster.connect(it.scheduler_address) as client:
            assert client.submit(sum, [1, 2]).result() == 3


def test_a_path_that_a_worker_does_not_see_is_named_with_the_worker(running, tmp_path):
    (address,) = running.scheduler_info["workers"]
    missing = tmp_path / "elsewhere"
    with (
        pytest.raises(InputError, match=f"worker {address} cannot read {missing}"),
        cluster.connect(running.scheduler_address, paths=[tmp_path, missing]),
    ):
        pass


def test_a_worker_of_another_version_is_refused(running, monkeypatch):
    monkeypatch.setattr(cluster, "_worker_state", lambda paths: ("0.0.1", []))
    with (
        pytest.raises(InputError, match=r"runs galscan 0\.0\.1.*install the same version"),
        cluster.connect(running.scheduler_address),
    ):
        pass
