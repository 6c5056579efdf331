"""Dask clusters: processes or GPUs of this machine, Slurm jobs, Kubernetes, or a running scheduler.

Only this module imports dask_cuda, dask_jobqueue and dask_kubernetes; all others use a `distributed.Client`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core.concurrency import cores, hidden_script
from galscan.core.errors import GalscanError, InputError, first_line, nearest
from galscan.core.version import __version__

if TYPE_CHECKING:
    from distributed import Client

KINDS = ("local", "cuda", "slurm")
SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
KUBERNETES = "kubernetes:"
TIMEOUT = "10s"  # for the connection to a scheduler

# Dask's nanny lets malloc return freed memory to the system at once; mapping it again for every batch halves the speed
# of a network on the CPU. There is one worker per core, so each library gets one thread.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",  # of zarrs
}
CONFIGURATION = {
    # By default Dask removes a worker 15 s after it died, even while its nanny restarts it. On a busy machine, or if a
    # partition kills several workers, the scan would be left without workers.
    "distributed.deploy.lost-worker-timeout": "168h",
    # By default the profiler samples workers a hundred times a second for the dashboard: 5 % of every core.
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


def check(cluster: str, workers: int | None = None) -> None:
    """Check the options for cluster and workers, before anything starts.

    Raises
    ------
    InputError
        If `cluster` is unknown, or `workers` is missing, below 1 or not supported by the cluster.
    """
    known = (*KINDS, "tcp://HOST:PORT", f"{KUBERNETES}NAME", "FILE.json")
    if cluster not in KINDS and not cluster.startswith((*SCHEMES, KUBERNETES)) and not cluster.endswith(".json"):
        raise InputError(f"cluster '{cluster}' is unknown{nearest(cluster, known)}")
    if cluster == KUBERNETES:
        raise InputError(f"--cluster {cluster}: add its name, e.g. {KUBERNETES}galscan (kubectl get daskclusters)")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    if workers is not None and cluster not in KINDS:
        raise InputError(f"--workers cannot be used with {cluster}: its workers are already running; omit it")
    if workers is None and cluster == "slurm":
        raise InputError("--cluster slurm: set the number of worker jobs with --workers")


def describe(cluster: str, workers: int | None) -> str:
    """Return a description of the workers."""
    if cluster == "local":
        return f"{workers or cores()} processes on this machine"
    if cluster == "cuda":
        return f"{workers or 'all'} GPUs of this machine"
    if cluster == "slurm":
        return f"{workers} Slurm jobs"
    return f"those of {cluster}"


def memory() -> int:
    """Return the available memory in bytes; in a container it may be below that of the machine."""
    import psutil

    import_dask()
    from distributed.system import MEMORY_LIMIT

    return min(int(psutil.virtual_memory().available), int(MEMORY_LIMIT))


def import_dask() -> None:
    """Import Dask, which reads the configuration files of the user; raise `InputError` if one is not valid."""
    try:
        # With its default configuration, which must be loaded before values are set.
        import distributed  # noqa: F401
    except ImportError:
        raise
    except Exception as error:  # of YAML, or of Dask, for values of a wrong type
        raise _invalid_configuration(error) from error


def _invalid_configuration(error: Exception) -> InputError:
    message = " ".join(str(error).split())[:300]
    return InputError(
        f"Dask cannot be used with its configuration ({type(error).__name__}: {message}); correct or remove the file "
        "in ~/.config/dask, /etc/dask or DASK_CONFIG, or the variable DASK_..."
    )


def dask_variables(*partitions: str) -> dict[str, str]:
    """Return `CONFIGURATION`, or its keys with these prefixes, as environment variables for external workers."""
    names = {key: "DASK_" + key.upper().replace(".", "__").replace("-", "_") for key in CONFIGURATION}
    return {
        names[key]: str(value) for key, value in CONFIGURATION.items() if not partitions or key.startswith(partitions)
    }


@contextmanager
def connect(
    cluster: str = "local", workers: int | None = None, *, paths: Sequence[Path | str] = ()
) -> Iterator[Client]:
    """Start a cluster and close it at the end, or connect to a running one and leave it running.

    Parameters
    ----------
    cluster : str
        ``local``; ``cuda``; ``slurm`` (with Dask's configuration of jobqueue.slurm); ``kubernetes:NAME`` (a cluster of
        the Dask operator); the address of a Dask scheduler; or a scheduler file.
    workers : int, optional
        Processes to start; all cores, or all GPUs, by default.
    paths : sequence of paths
        Files and folders that every worker must be able to read; checked on running clusters.

    Raises
    ------
    InputError
        For an unknown cluster, a missing extra, an address without a scheduler, or a path that a worker cannot read.
    GalscanError
        If there is no GPU, or the cluster has no workers.
    """
    check(cluster, workers)
    import_dask()
    import dask

    # Dask's log messages do not help users of galscan, which reports these errors itself.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        # Forked processes would inherit locks that threads of torch hold.
        method = {"distributed.worker.multiprocessing-method": "spawn"}
        stack.enter_context(dask.config.set(CONFIGURATION | method))
        stack.enter_context(hidden_script())  # until the end, because workers are restarted
        start = {"local": _local, "cuda": _cuda}.get(cluster)
        if start is not None:
            yield stack.enter_context(start(workers))
            return
        if cluster == "slurm":
            address = stack.enter_context(_slurm(workers or 1))
        elif cluster.startswith(KUBERNETES):
            address = stack.enter_context(_kubernetes(cluster.removeprefix(KUBERNETES)))
        else:
            address = cluster
        yield stack.enter_context(_remote(address, paths))


@contextmanager
def _local(workers: int | None) -> Iterator[Client]:
    from distributed import LocalCluster

    with _worker_environment() as folder:
        try:
            cluster = LocalCluster(
                n_workers=workers or cores(), threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
                local_directory=folder, silence_logs=logging.CRITICAL,
            )  # fmt: skip
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # from values of the configuration
            raise _invalid_configuration(error) from error
        with _closing(cluster) as client:
            yield client


@contextmanager
def _cuda(workers: int | None) -> Iterator[Client]:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise InputError(
            "--cluster cuda needs dask-cuda, which is not installed: pip install 'galscan[cuda]'; "
            "without it, --cluster local --device cuda uses one GPU"
        ) from None
    with _worker_environment() as folder:
        try:
            # Two partitions at a time per GPU: one is read or written while the other is scored.
            cluster = LocalCUDACluster(
                n_workers=workers, threads_per_worker=2, dashboard_address="127.0.0.1:0", local_directory=folder,
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
        except Exception as error:  # pynvml and dask_cuda raise different errors if there is no GPU
            raise GalscanError(
                f"--cluster cuda found no usable NVIDIA GPU ({type(error).__name__}: {first_line(error)}); "
                "check nvidia-smi, or use --cluster local"
            ) from error
        with _closing(cluster) as client:
            yield client


@contextmanager
def _slurm(jobs: int) -> Iterator[str]:
    """Submit worker jobs to Slurm, with queue, memory and wall time from Dask's configuration (deploy/slurm)."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InputError(
            "--cluster slurm needs dask-jobqueue, which is not installed: pip install 'galscan[slurm]'; or submit "
            "deploy/slurm/galscan.sbatch, which works without it"
        ) from None
    environment = [f"export {name}={value}" for name, value in (WORKER_ENVIRONMENT | dask_variables()).items()]
    try:
        cluster = SLURMCluster(job_script_prologue=environment, silence_logs=logging.CRITICAL)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--cluster slurm: the configuration of dask-jobqueue is incomplete ({first_line(error)}); write cores, "
            "memory and walltime into ~/.config/dask/jobqueue.yaml (deploy/slurm/jobqueue.yaml is an example)"
        ) from error
    with cluster:
        cluster.scale(jobs=jobs)
        yield str(cluster.scheduler_address)


@contextmanager
def _kubernetes(name: str) -> Iterator[str]:
    """Connect to a cluster of the Dask operator, and leave it running at the end."""
    try:
        from dask_kubernetes.operator import KubeCluster
    except ImportError:
        raise InputError(
            "--cluster kubernetes needs dask-kubernetes, which is not installed: pip install 'galscan[kubernetes]'"
        ) from None
    try:
        cluster = KubeCluster.from_name(name, shutdown_on_close=False)
    except Exception as error:  # dask_kubernetes and its Kubernetes client raise errors of many classes
        raise InputError(
            f"cannot connect to the Dask cluster '{name}' ({type(error).__name__}: {first_line(error)}); check with: "
            "kubectl get daskclusters"
        ) from error
    with cluster:
        yield str(cluster.scheduler_address)


@contextmanager
def _remote(address: str, paths: Sequence[Path | str]) -> Iterator[Client]:
    import dask
    from distributed import Client

    if address.endswith(".json") and not Path(address).is_file():
        raise InputError(
            f"there is no scheduler file {address}; start a scheduler that writes it: dask scheduler --scheduler-file"
        )
    scheduler = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    if address.startswith("tls://") and dask.config.get("distributed.comm.tls.client.cert") is None:
        raise InputError(
            f"{address} needs certificates: set them in Dask's configuration, as distributed.comm.tls.ca-file, "
            "client.cert and client.key (or DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__CERT, ...__CLIENT__KEY)"
        )
    try:
        client = Client(**scheduler, timeout=TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler responds at {address} ({first_line(error)}); check the address and that it is running"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=60)
        except TimeoutError:
            raise GalscanError(
                f"the cluster at {address} has had no worker for 60 s; start one: dask worker {address}"
            ) from None
        _check_workers(client, [str(path) for path in paths])
        yield client


def _check_workers(client: Client, paths: list[str]) -> None:
    """Check that every worker runs this version of galscan and can read every path."""
    try:
        states = client.run(_worker_state, paths)
    except ImportError as error:
        raise InputError(f"a worker cannot import galscan ({first_line(error)}); install it there too") from error
    for worker, (version, missing) in sorted(states.items()):
        if version != __version__:
            raise InputError(
                f"worker {worker} runs galscan {version}, this is {__version__}; install the same version there"
            )
        if missing:
            raise InputError(
                f"worker {worker} cannot read {missing[0]}; move it to a filesystem that all workers share"
            )


def _worker_state(paths: list[str]) -> tuple[str, list[str]]:
    """Return galscan's version and the missing paths on the worker that runs this."""
    return __version__, [path for path in paths if "://" not in path and not os.path.exists(path)]


@contextmanager
def _worker_environment() -> Iterator[str]:
    """Set the environment that worker processes inherit, and yield a scratch folder; both are removed at the end.

    Dask's configuration of the environment is not used: exported variables override it, and Dask does not restore the
    variables it sets in this process.
    """
    before = dict(os.environ)
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        with tempfile.TemporaryDirectory(prefix="galscan-", ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        # Variable by variable: other threads may be reading the environment.
        for name in os.environ.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@contextmanager
def _closing(cluster: Any) -> Iterator[Client]:
    """Yield a client of `cluster`; close both at the end, also while tasks are running."""
    from distributed import Client

    try:
        with Client(cluster, set_as_default=False) as client:
            client.register_plugin(_ignore_sigint(), name="galscan-signals")
            yield client
    finally:
        # Also after Ctrl-C: workers that do not stop within the timeout are killed.
        with contextlib.suppress(TimeoutError):
            cluster.close(timeout=10)


def _ignore_sigint() -> Any:
    """Return a plugin that lets workers ignore SIGINT, which terminals send to all processes of a command.

    What libraries print there goes to stderr: stdout is for the result of the command.
    """
    from distributed import WorkerPlugin

    class IgnoreSigint(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                sys.stdout = sys.stderr

    return IgnoreSigint()
