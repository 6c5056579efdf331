"""Who does the work: processes of this machine, its GPUs, or a Dask cluster that runs already or is started.

The only module that knows dask_cuda, dask_jobqueue and dask_kubernetes. Everything else sees a `distributed.Client`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core.errors import GalscanError, InputError, nearest
from galscan.core.version import __version__

if TYPE_CHECKING:
    from distributed import Client

KINDS = ("local", "cuda", "slurm")
SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
KUBERNETES = "kubernetes:"
TIMEOUT = "10s"  # for a scheduler to answer

# Dask's nanny returns freed memory to the system at once, which halves the speed of a network on the CPU:
# every batch pays for fresh pages. One worker a core, so one thread for each library.
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
    # Dask gives a worker up for good that is away 15 s after it died, also while its nanny is starting it anew: on a
    # busy machine, or with a part that kills one worker after the other, that leaves a scan without workers.
    "distributed.deploy.lost-worker-timeout": "168h",
    # It looks at its workers a hundred times a second, for pages that nobody opens: that takes 5 % of every core.
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "500ms",
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


def check(cluster: str, workers: int | None = None) -> None:
    """Refuse a cluster or a number of workers that cannot be, before anything starts.

    Raises
    ------
    InputError
        If `cluster` is none that is known, or `workers` is below 1 or has no meaning.
    """
    known = (*KINDS, "tcp://HOST:PORT", f"{KUBERNETES}NAME", "FILE.json")
    if cluster not in KINDS and not cluster.startswith((*SCHEMES, KUBERNETES)) and not cluster.endswith(".json"):
        raise InputError(f"cluster '{cluster}' is unknown{nearest(cluster, known)}")
    if cluster == KUBERNETES:
        raise InputError(f"--cluster {cluster}: say which, e.g. {KUBERNETES}galscan (kubectl get daskclusters)")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    if workers is not None and cluster not in KINDS:
        raise InputError(f"--workers has no meaning with {cluster}: the cluster has the workers it has; leave it out")
    if workers is None and cluster == "slurm":
        raise InputError("--cluster slurm: say with --workers how many worker jobs to ask for")


def describe(cluster: str, workers: int | None) -> str:
    """Return who will do the work, in words."""
    if cluster == "local":
        return f"{workers or cores()} processes on this machine"
    if cluster == "cuda":
        return f"{workers or 'all'} GPUs of this machine"
    if cluster == "slurm":
        return f"{workers} jobs of Slurm"
    return f"those of {cluster}"


def cores() -> int:
    """Return the cores this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Return the bytes of memory that may still be used here (a container may be allowed less than the machine has)."""
    import psutil
    from distributed.system import MEMORY_LIMIT

    return min(int(psutil.virtual_memory().available), int(MEMORY_LIMIT))


def dask_variables(*parts: str) -> dict[str, str]:
    """Return `CONFIGURATION`, or parts of it, as environment variables for workers that others start."""
    names = {key: "DASK_" + key.upper().replace(".", "__").replace("-", "_") for key in CONFIGURATION}
    return {names[key]: str(value) for key, value in CONFIGURATION.items() if not parts or key.startswith(parts)}


@contextmanager
def connect(
    cluster: str = "local", workers: int | None = None, *, paths: Sequence[Path | str] = ()
) -> Iterator[Client]:
    """Start or join a cluster, and close it at the end (one that was joined goes on running).

    Parameters
    ----------
    cluster : str
        ``local``; ``cuda``; ``slurm`` (jobs as Dask's configuration for jobqueue.slurm says); ``kubernetes:NAME`` (a
        cluster of the Dask operator); the address of a Dask scheduler; or the file that a scheduler wrote.
    workers : int, optional
        Processes to start; all cores, or all GPUs, by default.
    paths : sequence of paths
        What every worker must see; checked on clusters that were joined.

    Raises
    ------
    InputError
        For an unknown cluster, a missing extra, an address where nobody answers, or a path workers do not see.
    GalscanError
        If there is no GPU, or the cluster has no workers.
    """
    import dask
    import distributed  # noqa: F401  # its configuration has to be there before some of it is set

    check(cluster, workers)
    # Dask's words are for its developers ("Removing worker ... caused the cluster to lose ..."); ours follow.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(CONFIGURATION))
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

    with _surroundings() as folder:
        cluster = LocalCluster(
            n_workers=workers or cores(), threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
            local_directory=folder, silence_logs=logging.CRITICAL,
        )  # fmt: skip
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
    with _surroundings() as folder:
        try:
            # Two parts in flight a GPU: one is read and written while the other is computed.
            cluster = LocalCUDACluster(
                n_workers=workers, threads_per_worker=2, dashboard_address="127.0.0.1:0", local_directory=folder,
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
        except Exception as error:  # pynvml and dask_cuda each have their own way of saying that there is none
            raise GalscanError(
                f"--cluster cuda found no usable NVIDIA GPU ({type(error).__name__}: {_line(error)}); "
                "look at nvidia-smi, or use --cluster local"
            ) from error
        with _closing(cluster) as client:
            yield client


@contextmanager
def _slurm(jobs: int) -> Iterator[str]:
    """Ask Slurm for worker jobs; queue, memory and wall time are those of Dask's configuration (deploy/slurm)."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise InputError(
            "--cluster slurm needs dask-jobqueue, which is not installed: pip install 'galscan[slurm]'; or submit "
            "deploy/slurm/galscan.sbatch, which needs nothing"
        ) from None
    environment = [f"export {name}={value}" for name, value in (WORKER_ENVIRONMENT | dask_variables()).items()]
    try:
        cluster = SLURMCluster(job_script_prologue=environment, silence_logs=logging.CRITICAL)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"--cluster slurm: dask-jobqueue is not told enough ({_line(error)}); write cores, memory and walltime "
            "into ~/.config/dask/jobqueue.yaml (deploy/slurm/jobqueue.yaml is an example)"
        ) from error
    with cluster:
        cluster.scale(jobs=jobs)
        yield str(cluster.scheduler_address)


@contextmanager
def _kubernetes(name: str) -> Iterator[str]:
    """Join a cluster that the Dask operator runs; it goes on running."""
    try:
        from dask_kubernetes.operator import KubeCluster
    except ImportError:
        raise InputError(
            "--cluster kubernetes needs dask-kubernetes, which is not installed: pip install 'galscan[kubernetes]'"
        ) from None
    try:
        cluster = KubeCluster.from_name(name, shutdown_on_close=False)
    except Exception as error:  # of its own kinds, and those of the client of Kubernetes below it
        raise InputError(
            f"no Dask cluster '{name}' can be joined ({type(error).__name__}: {_line(error)}); look at: "
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
            f"there is no scheduler file {address}; a scheduler writes it: dask scheduler --scheduler-file"
        )
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    if address.startswith("tls://") and dask.config.get("distributed.comm.tls.client.cert") is None:
        raise InputError(
            f"{address} wants certificates: name them in Dask's configuration, as distributed.comm.tls.ca-file, "
            "client.cert and client.key (or DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__CERT, ...__CLIENT__KEY)"
        )
    try:
        client = Client(**where, timeout=TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        why = f"({_line(error)}); check the address and that it runs"
        raise InputError(f"no Dask scheduler answers at {address} {why}") from error
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
    """Ask every worker which version of galscan it runs and whether it sees every path."""
    try:
        answers = client.run(_look, paths)
    except ImportError as error:
        raise InputError(f"a worker cannot import galscan ({_line(error)}); install it there too") from error
    for worker, (version, missing) in sorted(answers.items()):
        if version != __version__:
            raise InputError(
                f"worker {worker} runs galscan {version}, this is {__version__}; install the same version there"
            )
        if missing:
            raise InputError(f"worker {worker} does not see {missing[0]}; put it where all workers can read it")


def _look(paths: list[str]) -> tuple[str, list[str]]:
    """Runs on a worker."""
    return __version__, [path for path in paths if "://" not in path and not os.path.exists(path)]


@contextmanager
def _surroundings() -> Iterator[str]:
    """Set the environment that worker processes inherit, and give a scratch folder; both are undone at the end.

    The environment and not Dask's configuration: Dask lets an exported variable win over its configuration,
    and leaves what it sets behind in this process.
    """
    before = dict(os.environ)
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        with tempfile.TemporaryDirectory(prefix="galscan-", ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _closing(cluster: Any) -> Iterator[Client]:
    """Give a client of `cluster`, and close both, also when the last tasks are still running."""
    from distributed import Client

    try:
        with Client(cluster, set_as_default=False) as client:
            client.register_plugin(_deaf_to_ctrl_c(), name="galscan-signals")
            yield client
    finally:
        # The window of Ctrl-C reaches here too: workers are told to stop, then made to.
        with contextlib.suppress(TimeoutError):
            cluster.close(timeout=10)


def _deaf_to_ctrl_c() -> Any:
    """A terminal sends Ctrl-C to all processes of a command; workers leave it to the one that started them."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()


def _line(error: BaseException) -> str:
    """Return the first line of an error, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
