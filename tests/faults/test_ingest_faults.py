"""Ingest under fire: kill -9, Ctrl-C, a full disk, a dead worker, two at once. Nothing half-made is ever visible."""

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

from galscan.core.errors import ConflictError, GalscanError, StorageError
from galscan.store.build import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.base import Cutout

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@dataclass(frozen=True)
class Noise:
    """A survey of noise, which does not compress, that takes `seconds` a shard: time to be shot at."""

    seconds: float = 0.0
    name: str = "noise"
    size: int = 16
    id_dtype: np.dtype = field(default=np.dtype("int64"))
    count: int = 3000  # 6 shards of 512

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
        for image in np.random.default_rng(start).integers(0, 255, (stop - start, 16, 16, 3), dtype=np.uint8):
            yield Cutout(image, 0.4)


SURVEY = Noise()
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from galscan.core.errors import GalscanError
from galscan.store.build import ingest_survey
from galscan.store.layout import open_store
from test_ingest_faults import Noise
try:
    more = {"count": int(sys.argv[3])} if sys.argv[3:] else {}
    ingest_survey(Noise(seconds=0.7, **more), sys.argv[1], workers=2, append=bool(more))
except GalscanError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The content hash of an undisturbed ingest."""
    return ingest_survey(SURVEY, tmp_path_factory.mktemp("calm") / "s.zarr", workers=1).content_hash


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    # A session of its own, so that signals meant for it and its children do not reach pytest.
    command = [sys.executable, "-c", SCRIPT, str(out), str(Path(__file__).parent), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def markers(out: Path) -> list[Path]:
    return list(out.with_name(out.name + ".partial").glob(".ingest/shard-*.json"))


def wait_for(condition: object, seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def family(pid: int) -> list[int]:
    """Return the processes of the session that `pid` leads (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the worker processes")
def test_kill_9_then_the_same_command(tmp_path: Path, expected: str) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)
    assert not out.exists()
    process.kill()
    process.communicate()
    wait_for(lambda: not family(process.pid), 20)  # no worker goes on writing for a parent that is gone
    done = len(markers(out))
    assert 1 <= done < 6, "killed too late for the test to mean anything"
    assert ingest_survey(SURVEY, out, workers=1).content_hash == expected


def test_ctrl_c_in_the_terminal(tmp_path: Path, expected: str) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "run the same command to resume" in said and "Traceback" not in said
    assert not out.exists() and markers(out)
    assert ingest_survey(SURVEY, out, workers=1).content_hash == expected


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The content hash of an undisturbed ingest and append."""
    out = tmp_path_factory.mktemp("grown") / "s.zarr"
    ingest_survey(SURVEY, out, workers=1)
    return ingest_survey(Noise(count=5000), out, workers=1, append=True).content_hash


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see the worker processes")
def test_kill_9_while_a_store_grows(tmp_path: Path, expected: str, grown: str) -> None:
    """Killed again and again, ever later; between, the store is the old one, whole, and can be read."""
    out = tmp_path / "s.zarr"
    ingest_survey(SURVEY, out, workers=1)
    pixels = open_store(out).images()
    kills = 0
    for wanted in (0, 1, 3, 5, 5, 5):
        process = start(out, "5000")
        place = out.with_name("s.zarr.partial")
        wait_for(lambda: process.poll() is not None or (place.is_dir() and len(markers(out)) >= wanted))  # noqa: B023
        process.kill()
        process.communicate()
        wait_for(lambda: not family(process.pid), 20)  # noqa: B023
        store = open_store(out)
        if store.content_hash == grown:
            break
        kills += 1
        assert store.content_hash == expected and store.count == 3000
        np.testing.assert_array_equal(store.images(), pixels)
    assert kills >= 3, "killed too late for the test to mean anything"
    store = ingest_survey(Noise(count=5000), out, workers=1, append=True)
    assert store.content_hash == grown and store.column("id").tolist() == list(range(5000))
    np.testing.assert_array_equal(store.images(slice(0, 3000)), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_ctrl_c_while_a_store_grows(tmp_path: Path, expected: str, grown: str) -> None:
    out = tmp_path / "s.zarr"
    ingest_survey(SURVEY, out, workers=1)
    process = start(out, "5000")
    wait_for(lambda: markers(out) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "which is unchanged until they are complete; run the same command to resume" in said
    assert open_store(out).content_hash == expected
    assert ingest_survey(Noise(count=5000), out, workers=1, append=True).content_hash == grown


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_leaves_the_old_store(small_disk: Path, expected: str, grown: str, workers: int) -> None:
    out = small_disk / "s.zarr"
    subprocess.run(["mount", "-o", "remount,size=3m", str(small_disk)], check=True)
    ingest_survey(SURVEY, out, workers=1)
    with pytest.raises(StorageError, match="disk is full"):
        ingest_survey(Noise(count=5000), out, workers=workers, append=True)
    assert open_store(out).content_hash == expected
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert ingest_survey(Noise(count=5000), out, workers=workers, append=True).content_hash == grown


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find a worker process")
def test_a_worker_killed_by_the_system(tmp_path: Path, expected: str) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)

    def is_worker(pid: int) -> bool:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()

    os.kill(next(p for p in family(process.pid) if is_worker(p)), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process died" in said and "fewer --workers" in said
    assert not out.exists()
    assert ingest_survey(SURVEY, out, workers=1).content_hash == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_then_space_is_made(small_disk: Path, expected: str, workers: int) -> None:
    out = small_disk / "s.zarr"
    with pytest.raises(StorageError) as caught:
        ingest_survey(SURVEY, out, workers=workers)
    message = str(caught.value)
    assert "disk is full" in message and "run the same command again" in message and "\n" not in message
    assert not out.exists()
    left = [p.name for p in small_disk.rglob("*") if p.name.endswith((".tmp", ".partial")) and p.is_file()]
    assert not left, "temporary files take space on a full disk"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert ingest_survey(SURVEY, out, workers=workers).content_hash == expected


def test_a_place_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        place = Path("/proc/galscan")  # root may write everywhere but here
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        place = tmp_path / "closed" / "s.zarr"
    with pytest.raises(StorageError, match=r"cannot write .*\.partial"):
        ingest_survey(SURVEY, place, workers=1)


def test_two_at_once(tmp_path: Path, expected: str) -> None:
    out = tmp_path / "s.zarr"
    process = start(out)
    wait_for(lambda: markers(out) or process.poll() is not None)
    with pytest.raises(ConflictError, match="another galscan process is working"):
        ingest_survey(SURVEY, out, workers=1)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert ingest_survey(SURVEY, out, workers=1).content_hash == expected


def test_a_damaged_marker_is_named(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    partial = out.with_name("s.zarr.partial")
    ingest_survey(SURVEY, out, workers=1)
    out.rename(partial)
    (partial / ".ingest" / "shard-00002.json").write_text("{ half")
    with pytest.raises(GalscanError, match=r"shard-00002.json is not valid JSON"):
        ingest_survey(SURVEY, out, workers=1)
