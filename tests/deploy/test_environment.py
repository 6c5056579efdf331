"""Workers that are started by the files in deploy/ are set up as those that galscan starts itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from galscan.scanning import cluster

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("name", ["slurm/galscan.sbatch", "Dockerfile"])
def test_the_settings_are_those_of_the_clusters_that_are_started_here(name):
    text = (DEPLOY / name).read_text()
    own = cluster.WORKER_ENVIRONMENT | cluster.dask_variables("distributed.worker", "distributed.admin")
    assert len(own) > 10
    for variable, value in own.items():
        assert f" {variable}={value}" in text, f"deploy/{name} lacks {variable}={value}"


def test_settings_can_be_exported_by_a_shell():
    lines = [f"{name}={value}" for name, value in cluster.dask_variables().items()]
    assert len(lines) == len(cluster.CONFIGURATION)
    script = "; ".join([*(f"export {line}" for line in lines), "env"])
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert set(lines) <= set(done.stdout.splitlines())
