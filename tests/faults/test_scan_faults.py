"""What happens to a scan when things go wrong: killed, interrupted, disk full, files damaged.

Scans run as commands of their own, with real worker processes. One shard of the store is a named pipe until it
is replaced: a worker that comes to it waits, so that the scan can be hit in the middle and never too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest

from galscan.commands.scan import scan
from galscan.core.errors import ConflictError, InputError
from galscan.scanning import partitions
from galscan.scanning.run import open_run
from galscan.store import layout
from tests.helpers import tiny_bundle, tiny_store

COUNT, PARTS, GATE = 1800, 8, 5
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("model") / "dustlane").path


@pytest.fixture
def store(tmp_path):
    store = tiny_store(tmp_path / "sky.zarr", COUNT, survey="sky", unusable=6)
    assert store.n_shards == PARTS
    return store


def command(store, model, out, workers=1, **changes):
    """Start a scan in a process group of its own."""
    arguments = ["scan", "--store", store.path, "--model", model, "--out", out, "--workers", workers, "--top", 200]
    environment = os.environ | EPOCH | {"PYTHONPATH": str(ROOT)} | changes
    return subprocess.Popen(
        [sys.executable, "-m", "galscan", *map(str, arguments)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code=0, seconds=120):
    """Wait for a command to end by itself, and return its output."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, err
    return out + err


@contextmanager
def gate(store):
    """Replace shard number GATE by a pipe without a writer; restore it at the end."""
    shard = store.path / "images" / "c" / str(GATE) / "0" / "0" / "0"
    aside = store.path.with_name("shard-aside")
    os.replace(shard, aside)
    os.mkfifo(shard)
    try:
        yield
    finally:
        os.replace(aside, shard)


def wait_for_gate(process, out):
    """Return when all partitions before the gate are written, while the scan is still running."""
    until = time.monotonic() + 90
    while len(list(Path(out, "scores").glob("part-*.parquet"))) < GATE:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the scan did not come to its gate"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, model):
    """The bytes of a scan that nothing happened to."""
    place = tmp_path_factory.mktemp("reference")
    store = tiny_store(place / "sky.zarr", COUNT, survey="sky", unusable=6)
    finish(command(store, model, place / "run"))
    return contents(place / "run") | {"identity": open_run(place / "run").info.identity}


def contents(out):
    """Return the bytes of all output that must not depend on interruptions of the scan."""
    names = ["candidates.fits", "candidates.parquet", "contact.png"]
    names += [f"{kind}/part-{k:05d}.parquet" for kind in ("scores", "quarantine") for k in range(PARTS)]
    return {name: Path(out, name).read_bytes() for name in names}


def assert_as_if_nothing_happened(out, reference):
    assert open_run(out).info.identity == reference["identity"]
    got = contents(out)
    assert [name for name in got if got[name] != reference[name]] == []
    seen = [pd.read_parquet(path, columns=["id"]) for path in Path(out).glob("*/part-*.parquet")]
    assert sorted(pd.concat(seen)["id"]) == list(range(1000, 1000 + COUNT))  # each once, scored or quarantined
    assert not list(Path(out).rglob("*.tmp"))


def assert_gone(group):
    """Check that no process of a group is left, nor becomes one."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("processes of the scan were left running")


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(store, model, tmp_path, reference):
    out = tmp_path / "run"
    with gate(store):
        process = command(store, model, out)
        wait_for_gate(process, out)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    with pytest.raises(InputError, match="not finished"):
        open_run(out)
    (out / "scores" / ".part-00006.parquet.dead.tmp").write_bytes(b"half a part")
    (out / ".contact.png.dead.tmp").write_bytes(b"half a sheet")
    path = partitions.scores_path(out, 2)  # and as if that were not enough, two parts are damaged
    path.write_bytes(path.read_bytes()[:-100])
    partitions.quarantine_path(out, 3).unlink()
    for path in out.rglob("*"):  # and the clock was a year ahead
        os.utime(path, (time.time() + 3e7, time.time() + 3e7))
    said = finish(command(store, model, out))
    assert f"resuming: {GATE - 2} of {PARTS} partitions are scored" in said
    assert_as_if_nothing_happened(out, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_thrice_at_any_moment(seed, store, model, tmp_path, reference):
    """The first process, one below it or all of them, from their first second on; nobody waits for orphans."""
    chance, out = random.Random(seed), tmp_path / "run"
    for _ in range(3):
        process = command(store, model, out, workers=2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(1, 12))
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            match chance.choice(["first", "below", "all"]):
                case "first":
                    process.kill()
                case "below" if below:
                    chance.choice(below).kill()
                    time.sleep(chance.uniform(0, 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL) if chance.random() < 0.5 else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(command(store, model, out, workers=2))
    assert_as_if_nothing_happened(out, reference)


@pytest.mark.slow
def test_only_the_first_process_killed_leaves_no_orphans(store, model, tmp_path):
    out = tmp_path / "run"
    with gate(store):
        process = command(store, model, out)
        wait_for_gate(process, out)
        process.kill()
        process.communicate()
        assert_gone(process.pid)


def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(store, model, tmp_path):
    out = tmp_path / "run"
    with gate(store):
        process = command(store, model, out)
        wait_for_gate(process, out)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        said = finish(process, 130, 60)
        assert_gone(process.pid)
    assert "run the same command again" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_polite_kill_is_like_ctrl_c_and_until_then_the_folder_is_taken(store, model, tmp_path):
    out = tmp_path / "run"
    with gate(store):
        process = command(store, model, out)
        wait_for_gate(process, out)
        with pytest.raises(ConflictError, match="another galscan process is working"):
            scan(store=store.path, model=model, out=out, top=200)
        process.terminate()
        said = finish(process, 130, 60)
        assert_gone(process.pid)
    assert "run the same command again" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced(store, model, tmp_path, reference):
    out = tmp_path / "run"
    with gate(store):
        process = command(store, model, out)
        wait_for_gate(process, out)
        ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
        os.kill(int(ledger[0]["worker"].rpartition(":")[2]), signal.SIGKILL)
    said = finish(process)
    assert "Traceback" not in said
    assert len({json.loads(line)["worker"] for line in (out / "ledger.jsonl").read_text().splitlines()}) == 2
    assert_as_if_nothing_happened(out, reference)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_scan_goes_on_when_there_is_room(store, model, tmp_path, reference):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one (root)")
    try:
        said = finish(command(store, model, disk / "run"), 1)
        errors = [line for line in said.splitlines() if "error" in line]
        assert len(errors) == 1 and "disk is full" in errors[0] and "run the same command again" in errors[0]
        assert "Traceback" not in said
        done = list((disk / "run" / "scores").glob("part-*.parquet"))
        assert 0 < len(done) < PARTS  # or the disk was not full in the middle
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        finish(command(store, model, disk / "run"))
        assert_as_if_nothing_happened(disk / "run", reference)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_what_does_not_fit_is_refused_before_anything_starts(store, model, tmp_path):
    out = tmp_path / "run"
    small = tiny_store(tmp_path / "small.zarr", 20, 24, survey="small")
    with pytest.raises(InputError, match=r"24 px.*32 px"):
        scan(store=small.path, model=model, out=out)
    layout.create(tmp_path / "none.zarr", survey="none", count=0, size=32, id_dtype="int64", schemas={}, provenance={})
    layout.finish(tmp_path / "none.zarr", "x")
    with pytest.raises(InputError, match="holds no objects"):
        scan(store=tmp_path / "none.zarr", model=model, out=out)
    with pytest.raises(InputError, match="not for 'ring'"):
        scan(store=store.path, model=model, target="ring", out=out)
    assert not out.exists()


def test_a_folder_that_holds_another_run_is_left_alone(store, model, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"status": "done", "fingerprint": "f", "identity": {"model": "m" * 64}}))
    with pytest.raises(ConflictError, match=r"holds another scan: model was mmmmmmmmmmmm, now"):
        scan(store=store.path, model=model, out=out)
    assert json.loads((out / "run.json").read_text())["fingerprint"] == "f"


SABOTAGE = """
import os, signal, time
import galscan.scanning.engine as engine
import galscan.scanning.worker as worker

engine.PATIENCE, engine.TICK = 25.0, 0.2  # a worker takes some time to start
pieces = worker._pieces

def sabotaged(store, part, chosen):
    if part.number == {part}:
        {what}
    return pieces(store, part, chosen)

worker._pieces = sabotaged
"""


def sabotaged(tmp_path, what, part=GATE):
    """Return the environment in which one partition kills every process that scores it."""
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "sitecustomize.py").write_text(SABOTAGE.format(part=part, what=what))
    return {"PYTHONPATH": f"{tmp_path / 'sabotage'}:{ROOT}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [("os.kill(os.getpid(), signal.SIGKILL)", partitions.FATAL), ("time.sleep(1e6)", partitions.SILENT)],
    ids=["kills", "hangs"],
)
def test_a_part_that_no_worker_survives_is_set_aside_and_the_rest_is_done(
    store, model, tmp_path, reference, what, reason
):
    out = tmp_path / "run"
    process = command(store, model, out, **sabotaged(tmp_path, what))
    said = finish(process, 1, 240)
    run = open_run(out)
    assert f"256 objects were not scored: {reason}" in said and "Traceback" not in said
    assert run.unscored == {reason: 256} and run.info.scanned + run.info.quarantined == COUNT
    aside = pd.read_parquet(partitions.quarantine_path(out, GATE))
    assert set(aside["reason"]) == {reason} and list(aside["id"]) == list(range(1000 + GATE * 256, 1256 + GATE * 256))
    for number in set(range(PARTS)) - {GATE}:
        for path in (partitions.scores_path, partitions.quarantine_path):
            name = str(path(out, number).relative_to(out))
            assert path(out, number).read_bytes() == reference[name]
    again = finish(command(store, model, out), 1)  # it says so again, and does nothing
    assert "finished; nothing to do" in again
    assert reason in (out / "report.html").read_text()
