"""Shared by all tests: an empty data home, one thread, and real galaxies where there are some."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch or NumPy start their threads: tests share a small machine with Dask workers.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["GALSCAN_WORKERS"] = "1"  # networks are trained in the test's own process

# A process started in the background ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines of single examples, as the machine may be busy. The same examples every time; `make explore` generates
# new ones.
_settings = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("galscan", _settings, derandomize=True, max_examples=30)
settings.register_profile("explore", _settings, max_examples=400)
settings.load_profile("galscan")


@pytest.fixture(autouse=True)
def galscan_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a data home of its own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("GALSCAN_HOME", str(home))
    monkeypatch.delenv("GALSCAN_TRACEBACK", raising=False)
    return home


@pytest.fixture
def answer(monkeypatch):
    """Replace a public function, and return the arguments it is called with."""
    import galscan

    def put(name, result):
        calls = {}

        def replacement(*args, **kwargs):
            calls.update(kwargs, args=args)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(galscan, name, replacement, raising=False)
        return calls

    return put


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real galaxies; skip where there is none."""
    given = os.environ.get("GALSCAN_TEST_DATA")
    path = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real galaxies at {path}; set GALSCAN_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def cuda() -> str:
    """Return the name of the device that tests marked ``gpu`` need; skip where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


@contextmanager
def dask_here():
    """Yield the client of a Dask cluster of one thread in this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def scanning_with(client):
    """Let `galscan.scan` use `client`, instead of starting worker processes."""
    from galscan.scanning import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", contextmanager(lambda *args, **kwargs: iter([client])))
        yield patch


@pytest.fixture(scope="module")
def client():
    with dask_here() as client:
        yield client


@pytest.fixture(scope="module")
def scans_here(client):
    """Scan in this process: the cluster's own tests, and those of the whole chain, start real workers."""
    with scanning_with(client):
        yield


@pytest.fixture(scope="module")
def no_pages():
    """Write no report of a scan, which takes longer than a small scan does: the page has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("galscan.reports.scan.write_scan_report", empty_report)
        yield


def empty_report(run) -> None:
    Path(run, "report.html").write_text("")


# Made once a session, when a test first uses them; not to be changed: `run_copy` is a copy that may be.


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def shared_store(tiny_folder):
    """Return a store of 700 galaxies of 32 px, without labels; the last 3 have no usable image."""
    from tests.helpers import tiny_store

    return tiny_store(tiny_folder / "sky.zarr", 700, 32, survey="sky", unusable=3)


@pytest.fixture(scope="session")
def shared_model(tiny_folder):
    """Return a model for dustlane of one network with random weights, without synthetic galaxies."""
    from tests.helpers import tiny_model

    return tiny_model(tiny_folder / "model")


@pytest.fixture(scope="session")
def shared_run(tiny_folder, shared_store, shared_model):
    """Return the finished scan of `shared_store` with `shared_model`: 120 candidates, and an empty report page."""
    import galscan

    with dask_here() as client, scanning_with(client) as patch:
        patch.setattr("galscan.reports.scan.write_scan_report", empty_report)
        patch.setenv("GALSCAN_HOME", str(tiny_folder / "home"))
        return galscan.scan(
            store=shared_store.path, model=shared_model.path, out=tiny_folder / "run", top=120, workers=1
        )


@pytest.fixture
def run_copy(shared_run, tmp_path) -> Path:
    """Return the folder of a copy of `shared_run`, of this test alone."""
    return Path(shutil.copytree(shared_run.path, tmp_path / "run"))


@pytest.fixture(scope="session")
def services():
    """Return the survey services on loopback, in threads of this process."""
    from tests.services.loopback import loopback

    with loopback() as server:
        yield server


@pytest.fixture
def service(services, monkeypatch):
    """Return the loopback services, without failures left by other tests; the client retries after short pauses."""
    monkeypatch.setattr("galscan.surveys.services.client.FIRST_PAUSE", 0.02)
    services.behave()
    return services


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory) -> Path:
    """Return a folder with a tiny Stable Diffusion model of random weights; skip without the extra."""
    pytest.importorskip("transformers", reason="needs the extra stable-diffusion")
    pytest.importorskip("peft", reason="needs the extra stable-diffusion")
    from tests.helpers import tiny_stable_diffusion

    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd") / "tiny")
