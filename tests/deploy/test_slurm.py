"""The Slurm files, followed on a real Slurm of two nodes on this machine; a node that is killed costs nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from galscan.scanning.run import open_run
from tests.helpers import tiny_model, tiny_store

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "deploy" / "slurm" / "galscan.sbatch"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
        reason="needs root and Slurm (Debian: slurm-wlm, munge)",
    ),
]

CONF = """
ClusterName=galscan
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket
SlurmctldPort={ports[0]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MpiDefault=none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


def pid(path: Path) -> int:
    return int(path.read_text().strip())


@pytest.fixture
def slurm(tmp_path):
    """Environment of a Slurm with the nodes n1 and n2."""
    place = tmp_path / "slurm"
    for name in ("munge", "state", "spool-n1", "spool-n2"):
        (place / name).mkdir(parents=True)
    (place / "munge").chmod(0o711)
    key = place / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = place / "slurm.conf"
    conf.write_text(CONF.format(host=socket.gethostname().split(".")[0], place=place, ports=free_ports(3)))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    munge = place / "munge"
    commands = [
        ["munged", f"--key-file={key}", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
         f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--force"],
        ["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"],
    ]  # fmt: skip
    try:
        for command in commands:
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        until = time.monotonic() + 60
        while "idle" not in (nodes := run(environment, "sinfo", "-h", "-o", "%T %D")) or "2" not in nodes:
            assert time.monotonic() < until, (nodes, (place / "slurmctld.log").read_text()[-2000:])
            time.sleep(0.5)
        yield environment, place
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
        time.sleep(2)
        for path in (*place.glob("slurmd-*.pid"), place / "slurmctld.pid", munge / "pid"):
            if path.is_file():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid(path), signal.SIGKILL)


def run(environment, *command, wait=60) -> str:
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=wait)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(environment, place, store, model, out) -> str:
    command = ["sbatch", "--parsable", "--nodes", "2", "--cpus-per-task", "1", "--mem-per-cpu", "1500M",
               "--output", place / "job-%j.out", SBATCH, "--store", store, "--model", model, "--out", out]  # fmt: skip
    return run(environment, *command, "--top", 200).strip()


def wait(environment, place, job, seconds=240) -> str:
    until = time.monotonic() + seconds
    active = ("PENDING", "RUNNING", "COMPLETING")
    while run(environment, "squeue", "-h", "-j", job, "-t", "all", "-o", "%T").strip() in active:
        assert time.monotonic() < until, (place / f"job-{job}.out").read_text()[-3000:]
        time.sleep(0.5)
    return (place / f"job-{job}.out").read_text()


def contents(out):
    paths = [out / "candidates.fits", out / "candidates.parquet", *sorted(out.glob("*/part-*.parquet"))]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


@pytest.fixture
def survey(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    store = tiny_store(tmp_path / "sky.zarr", 20_000, survey="sky", unusable=5)
    return store, tiny_model(tmp_path / "model", members=3).path


def by_hand(store, model, out):
    arguments = ["scan", "--store", store.path, "--model", model, "--out", out, "--workers", 1, "--top", 200]
    subprocess.run([sys.executable, "-m", "galscan", *map(str, arguments)], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.timeout(600)
def test_two_nodes_scan_to_the_end_and_a_node_killed_in_the_middle_costs_nothing(slurm, survey, tmp_path):
    environment, place = slurm
    environment["SOURCE_DATE_EPOCH"] = "1700000000"
    store, model = survey
    by_hand(store, model, tmp_path / "by-hand")
    whole = wait(environment, place, submit(environment, place, store.path, model, tmp_path / "whole"))
    assert open_run(tmp_path / "whole").info.scanned == 19_995, whole
    assert contents(tmp_path / "whole") == contents(tmp_path / "by-hand")

    job = submit(environment, place, store.path, model, tmp_path / "run")
    until = time.monotonic() + 120
    while len(list((tmp_path / "run" / "scores").glob("part-*"))) < 2:
        assert time.monotonic() < until, (place / f"job-{job}.out").read_text()
        time.sleep(0.02)
    # The daemon of node 2 and all that runs below it.
    daemon = pid(place / "slurmd-n2.pid")
    steps = run(environment, "pgrep", "-f", r"slurmstepd: \[").split()
    of_node = [int(p) for p in steps if f"{place}/spool-n2" in Path(f"/proc/{p}/environ").read_text(errors="ignore")]
    for victim in [daemon, *of_node]:
        subprocess.run(["pkill", "-KILL", "-P", str(victim)])
        os.kill(victim, signal.SIGKILL)
    output = wait(environment, place, job)
    assert open_run(tmp_path / "run").info.scanned == 19_995, output
    assert contents(tmp_path / "run") == contents(tmp_path / "by-hand")


@pytest.mark.timeout(600)
def test_worker_by_worker(slurm, survey, tmp_path):
    """`--cluster slurm`, with the size of a worker set by the file beside the sbatch."""
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    environment, place = slurm
    store, model = survey
    by_hand(store, model, tmp_path / "by-hand")
    config = yaml.safe_load((ROOT / "deploy" / "slurm" / "jobqueue.yaml").read_text())
    config["jobqueue"]["slurm"] |= {"cores": 1, "processes": 1, "memory": "1500MB", "log-directory": str(place)}
    (place / "dask").mkdir()
    (place / "dask" / "jobqueue.yaml").write_text(yaml.safe_dump(config))
    environment |= {"SOURCE_DATE_EPOCH": "1700000000", "DASK_CONFIG": str(place / "dask")}
    arguments = ["scan", "--store", store.path, "--model", model, "--out", tmp_path / "run", "--top", 200]
    command = [sys.executable, "-m", "galscan", *arguments, "--cluster", "slurm", "--workers", 2]
    output = run(environment, *command, wait=300)
    workers = {json.loads(line)["worker"] for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()}
    assert len(workers) == 2, output
    assert contents(tmp_path / "run") == contents(tmp_path / "by-hand")
    assert run(environment, "squeue", "-h", "-t", "pending,running").strip() == ""
