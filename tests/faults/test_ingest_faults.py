"""Faults during ingest: kill -9, Ctrl-C, a full disk, a dead worker. Nothing incomplete is ever visible."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galscan.core import staging
from galscan.core.errors import ConflictError, GalscanError, InputError, StorageError
from galscan.store.build import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.base import Cutout

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the worker processes")


@dataclass(frozen=True)
class Noise:
    """A survey of noise, which does not compress, that takes `seconds` per shard."""

    seconds: float = 0.0
    name: str = "noise"
    size: int = 16
    id_dtype: np.dtype = field(default=np.dtype("int64"))
    count: int = 3000  # 6 shards of 512
    parent: int = 0  # in other processes than this one, reading kills the process

    def __len__(self) -> int:
        return self.count

    def describe(self) -> dict[str, Any]:
        return {"objects": self.count}

    def schemas(self) -> dict[str, list[str]]:
        return {}

    def truth(self) -> list[str]:
        return []

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        index = np.arange(start, stop)
        return pd.DataFrame({"id": index, "ra": index / 10.0, "dec": np.nan})

    def cutouts(self, start: int, stop: int) -> Iterator[Cutout]:
        time.sleep(self.seconds)
        if self.parent and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        for image in np.random.default_rng(start).integers(0, 255, (stop - start, 16, 16, 3), dtype=np.uint8):
            yield Cutout(image, 0.4)


SURVEY, LARGER = Noise(), Noise(count=5000)
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from galscan.core.errors import GalscanError
from galscan.store.build import ingest_survey
from test_ingest_faults import Noise
try:
    more = {"count": int(sys.argv[3])} if sys.argv[3:] else {}
    ingest_survey(Noise(seconds=0.7, **more), sys.argv[1], workers=2, append=bool(more))
except GalscanError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the content hashes of an undisturbed ingest, and of an append to it."""
    out = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    first = ingest_survey(SURVEY, out, workers=1).content_hash
    return first, ingest_survey(LARGER, out, workers=1, append=True).content_hash


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    # A session of its own, so that signals to it and its children do not reach pytest.
    command = [sys.executable, "-c", SCRIPT, str(out), str(Path(__file__).parent), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def markers(out: Path) -> list[Path]:
    return list(out.with_name(out.name + ".partial").glob(".ingest/shard-*.json"))


def wait_for(condition: object, seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit, "timeout"
        time.sleep(0.02)


def session_of(pid: int) -> list[int]:
    """Return the processes of the session that `pid` leads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    wait_for(lambda: not session_of(process.pid), 20)  # workers end with their parent


def test_kill_9_and_resume(tmp_path: Path, stores: tuple[str, str]) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)
    kill(process)
    assert not out.exists()
    assert 1 <= len(markers(out)) < 6, "killed too late"
    assert ingest_survey(SURVEY, out, workers=1).content_hash == stores[0]


def test_ctrl_c_and_resume(tmp_path: Path, stores: tuple[str, str]) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command to resume" in errors and "Traceback" not in errors
    assert not out.exists() and markers(out)
    assert ingest_survey(SURVEY, out, workers=1).content_hash == stores[0]


@pytest.mark.slow
def test_kill_9_during_append(tmp_path: Path, stores: tuple[str, str]) -> None:
    """Killed at ever later times; the old store stays complete and readable."""
    out = tmp_path / "s.zarr"
    ingest_survey(SURVEY, out, workers=1)
    pixels = open_store(out).images()
    kills = 0
    for wanted in (0, 1, 3, 5, 5, 5):
        process = start(out, "5000")
        staged = out.with_name("s.zarr.partial")
        wait_for(lambda: process.poll() is not None or (staged.is_dir() and len(markers(out)) >= wanted))  # noqa: B023
        kill(process)
        store = open_store(out)
        if store.content_hash == stores[1]:
            break
        kills += 1
        assert store.content_hash == stores[0] and store.count == 3000
        np.testing.assert_array_equal(store.images(), pixels)
    assert kills >= 3, "killed too late"
    store = ingest_survey(LARGER, out, workers=1, append=True)
    assert store.content_hash == stores[1] and store.column("id").tolist() == list(range(5000))
    np.testing.assert_array_equal(store.images(slice(0, 3000)), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_worker_killed_by_the_system(tmp_path: Path, stores: tuple[str, str]) -> None:
    out, survey = tmp_path / "s.zarr", Noise(parent=os.getpid())
    with pytest.raises(GalscanError, match="--workers"):
        ingest_survey(survey, out, workers=2)
    assert not out.exists()
    assert ingest_survey(survey, out, workers=1).content_hash == stores[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_during_ingest(small_disk: Path, stores: tuple[str, str], workers: int) -> None:
    out = small_disk / "s.zarr"
    with pytest.raises(StorageError) as caught:
        ingest_survey(SURVEY, out, workers=workers)
    assert "disk is full" in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()
    left = [p.name for p in small_disk.rglob("*") if p.name.endswith((".tmp", ".partial")) and p.is_file()]
    assert not left, "temporary files take space on a full disk"
    resize(small_disk, "64m")
    assert ingest_survey(SURVEY, out, workers=1).content_hash == stores[0]


def test_full_disk_during_append(small_disk: Path, stores: tuple[str, str]) -> None:
    out = small_disk / "s.zarr"
    resize(small_disk, "3m")
    ingest_survey(SURVEY, out, workers=1)
    with pytest.raises(StorageError):
        ingest_survey(LARGER, out, workers=1, append=True)
    assert open_store(out).content_hash == stores[0]
    resize(small_disk, "64m")
    assert ingest_survey(LARGER, out, workers=1, append=True).content_hash == stores[1]


def test_no_permission(tmp_path: Path) -> None:
    out = Path("/proc/galscan")  # not even root may write there
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        out = tmp_path / "closed" / "s.zarr"
    with pytest.raises(StorageError, match=r"\.partial"):
        ingest_survey(SURVEY, out, workers=1)


def test_two_at_once(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    with staging.locked(staging.partial(out)), pytest.raises(ConflictError):
        ingest_survey(SURVEY, out, workers=1)


def test_damaged_marker(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    ingest_survey(Noise(count=300), out, workers=1)
    partial = out.rename(staging.partial(out))
    (partial / ".ingest" / "shard-00001.json").write_text("{ half")
    with pytest.raises(InputError, match=r"shard-00001\.json"):
        ingest_survey(Noise(count=300), out, workers=1)
