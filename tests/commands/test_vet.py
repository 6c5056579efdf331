"""`galscan vet`: the sample is drawn once, the page works in a real browser, and no grade is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path

import pytest

from galscan.commands.scan import scan
from galscan.commands.vet import FOLDER, vet
from galscan.core.errors import ConflictError, InputError
from galscan.core.staging import locked
from galscan.vetting import sampling
from galscan.vetting.gradebook import FILE, summary_lines
from tests.chromium import chromium
from tests.grading import ROOT, book, grade_under_fire, served
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, scans_here, no_pages):
    place = tmp_path_factory.mktemp("vet")
    store = tiny_store(place / "sky.zarr", 700, 32, unusable=3)
    scan(store=store.path, model=tiny_bundle(place / "model").path, out=place / "run", top=120, workers=1)
    return place


@pytest.fixture
def run(scanned, tmp_path):
    """A copy of the run, so that each test has grades of its own."""
    return Path(shutil.copytree(scanned / "run", tmp_path / "run"))


def test_the_sample_is_drawn_once_and_told(run):
    told = vet(run, serve=False, best=30, size=60)
    # Two of the best and eight of the rest have a known label: the model was trained on them.
    drawn = {s["stratum"]: (s["objects"], s["drawn"]) for s in told["sample"]}
    assert drawn["best"] == (28, 28) and drawn["not ranked"][0] == 569 and told["graders"] == {}
    assert "0 of 28 graded" in told["text"] and "galscan purity" in told["text"]
    before = (run / FILE).read_bytes()
    assert vet(run, serve=False, best=5, size=9)["sample"] == told["sample"] and (run / FILE).read_bytes() == before


def test_grades_go_out_and_in_as_a_table(run, tmp_path):
    vet(run, serve=False, best=30, size=60)
    with book(run) as one:
        for item in range(1, 21):
            one.record(f"key-{item:05d}", item, "ann", "A" if item % 2 else "not")
    told = vet(run, export_csv=tmp_path / "g.csv")
    assert told["graders"]["ann"]["graded"] == 20
    (run / FILE).unlink()
    vet(run, serve=False, best=30, size=60)
    assert vet(run, import_csv=tmp_path / "g.csv")["graders"] == told["graders"]


def test_a_sample_is_spread_over_the_strata_and_the_rest_is_to_come(run):
    told = vet(run, serve=False, size=70)
    assert [s["stratum"] for s in told["sample"]] == ["1-38", "39-120", "not ranked"]
    drawn = [s["drawn"] for s in told["sample"]]
    assert sum(drawn) == 50 and min(drawn) >= 3 and drawn[2] <= 7
    assert told["to_come"] >= 20 and "more, in batches" in told["text"]
    with book(run) as one:
        for item in one.items()["item"]:
            one.record(f"key-{item:05d}", int(item), "ann", "not")
    told = vet(run, serve=False)
    assert sum(s["drawn"] for s in told["sample"]) == 70 and told["to_come"] == 0


def test_without_a_model_half_of_the_sample_are_the_best(run):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"model": str(run / "gone")}))
    told = vet(run, serve=False, size=60)
    assert told["sample"][0] == {"stratum": "best", "objects": 28, "drawn": 28, "graded": 0} and told["to_come"] == 0


def test_the_page_goes_on_to_the_next_batch(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)
    vet(run, serve=False, size=16)
    with served(run) as (_, address), chromium(tmp_path / "chromium") as page:
        page.open(address)
        page.run("document.getElementById('grader').value = 'ann', load()")
        page.wait("items.length > 8")
        total, first = page.run("total"), page.run("items.length")
        assert first < total and page.run("document.getElementById('bar').max") == total
        for k in range(first):
            page.press("n")
            page.wait(f"Object.keys(grades).length === {k + 1} && !busy")
        page.wait("items.length > Object.keys(grades).length")
        assert page.run("items[at].item") == first + 1 and not page.run("document.getElementById('end').open")
        for k in range(first, total):
            page.press("n")
            page.wait(f"Object.keys(grades).length === {k + 1} && !busy")
        page.wait("document.getElementById('end').open")
    with book(run) as one:
        assert len(one.items()) == total == len(one.current())


@pytest.mark.parametrize("text", ["[]", '{"token": 7, "port": 1}', '{"token": "t", "port": "x"}', "{}"])
def test_an_address_file_that_was_tampered_with_is_made_anew(run, text):
    (run / FOLDER).mkdir()
    (run / FOLDER / "server.json").write_text(text)
    with served(run, size=20) as (_, address):
        assert len(address.partition("token=")[2]) == 32


def test_two_servers_on_one_run_are_one_too_many(run):
    with locked(run / FOLDER), pytest.raises(ConflictError, match="another galscan process is working"):
        vet(run, serve=False)


def test_a_store_that_changed_is_said(run, scanned):
    info = json.loads((run / "run.json").read_text())
    info["stores"][0]["content_hash"] = "another"
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"sky\.zarr changed since the scan"):
        vet(run, browser=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is a scan of format 2, not 1; use the galscan version that wrote it"),
        ({"format": "<script>"}, "is a scan of format '<script>'"),
        ({"first_look": ...}, "did not record the stages of objects; scan again"),
        ({"status": "running"}, "is not finished"),
        ({"fingerprint": ...}, "was not written by galscan scan"),
    ],
)
def test_a_run_of_another_version_or_an_unfinished_one_is_refused(run, change, message):
    info = json.loads((run / "run.json").read_text()) | change
    (run / "run.json").write_text(json.dumps({k: v for k, v in info.items() if v is not ...}))
    with pytest.raises(InputError, match=message):
        vet(run, serve=False)
    assert not (run / FILE).exists()


def test_a_second_server_is_refused_and_the_first_goes_on(run):
    with served(run, size=20) as (process, address):
        second = [sys.executable, "-m", "galscan", "vet", str(run), "--no-browser"]
        told = subprocess.run(second, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert told.returncode == 2 and "Traceback" not in told.stderr
        assert "another galscan process is working" in told.stderr
        assert urllib.request.urlopen(address, timeout=20).status == 200 and process.poll() is None


def test_the_end_says_how_the_graders_saw_and_agreed(run, tmp_path):
    """Only at the end: graders must not know controls and other graders' grades before."""
    vet(run, serve=False, best=6, size=12)
    with book(run) as one:
        items = one.items()
        for row in items.itertuples():
            said = "A" if row.kind == "positive" or row.item % 3 else "not"
            one.record(f"bob-{row.item:05d}", row.item, "bob", said)
            if row.item > 1:
                one.record(f"ann-{row.item:05d}", row.item, "ann", "not" if row.kind == "blank" else said)
    with served(run) as (_, address), chromium(tmp_path / "chromium") as page:
        page.open(address)
        page.run("document.getElementById('grader').value = 'ann', load()")
        page.wait(f"items.length === {len(items)}")
        page.command("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert not page.run("document.getElementById('end').open") and page.run("items[at].item") == 1
        page.press("a")
        page.wait("document.getElementById('end').open")
        said = page.run("document.getElementById('summary').textContent")
        with book(run) as one:
            assert said == "".join(words := summary_lines(one.graders(), one.agreement())) and len(words) == 3
        page.press("n")  # a dialog is open: no grade
        assert page.run("grades[1].grade") == "A" and not page.run("busy")


def test_the_page_grades_in_a_real_browser(run, tmp_path):
    with served(run, best=12, size=30) as (process, address), chromium(tmp_path / "chromium") as page:
        page.open(address)
        assert (
            "Give your name" in page.run("document.getElementById('status').textContent")
            or page.run("document.activeElement.id") == "grader"
        )
        page.run("grader_ = document.getElementById('grader'), grader_.value = 'ann', load()")
        page.wait("items.length > 30 && document.getElementById('picture').complete")
        total = page.run("items.length")
        shown = page.run("items[at].item")
        page.press("a")
        page.wait(f"items[at].item !== {shown} && !busy")
        with book(run) as one:  # on disk before the page moved on
            assert one.current()[["item", "grader", "grade"]].to_numpy().tolist() == [[shown, "ann", "A"]]
        page.press("1")
        page.wait("Object.keys(grades).length === 2 && !busy")
        page.press("u")
        page.wait("Object.keys(grades).length === 1 && !busy")
        page.run("document.getElementById('comment').value = '<b>=1+1</b>'")
        page.press("n")
        page.wait("Object.keys(grades).length === 2 && !busy")
        for key in "mmiprgvw+-z":
            page.press(key)
        assert page.run("document.getElementById('picture').style.filter").startswith("brightness")
        assert page.run("links({ra: 1.5, dec: -2}), document.querySelectorAll('#links a').length") == 4
        assert page.run("document.getElementById('bar').value") == 2
        assert [line for line in page.log if "error" in line.lower() or "exception" in line.lower()] == []
        started, count = time.monotonic(), 12
        for k in range(count):
            page.press(random.Random(k).choice("abcn"))
            page.wait(f"Object.keys(grades).length === {3 + k} && !busy")
        assert (time.monotonic() - started) / count < 60 / 50  # fifty a minute must be possible
        # The server dies and is started anew: the page keeps its grades and reconnects.
        process.kill()
        process.wait()
        page.run("void grade('A')")
        page.wait("document.getElementById('status').textContent.includes('Not saved yet')")
        with served(run) as (_, again):
            assert again == address
            page.wait(f"Object.keys(grades).length === {3 + count} && !busy")
        with book(run) as one:
            assert len(one.current()) == 3 + count < total
            assert "<b>=1+1</b>" in set(one.current()["comment"])


def test_ctrl_c_ends_the_server_and_says_what_is_graded(run):
    with served(run, best=12, size=30) as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "0 of 11 graded" in out and "Traceback" not in err


@pytest.mark.slow
def test_a_thousand_grades_with_the_server_killed_at_random(run, tmp_path):
    """Through the real page; each grade is there once, as it was given."""
    told = grade_under_fire(run, tmp_path / "chromium", 1000, seed=7)
    print(told)
    assert told["grades"] >= 1000 and told["kills"] >= 8 and told["lost"] == told["doubled"] == 0


def test_the_browser_gets_the_token_from_a_private_file(run, monkeypatch):
    """Its command line is there for every user of the machine to read."""
    opened = []

    def look(address):
        path = Path(address.removeprefix("file://"))
        opened.append((address, path.stat().st_mode & 0o777, path.read_text()))
        os.kill(os.getpid(), signal.SIGINT)  # the server ends

    monkeypatch.setattr(webbrowser, "open", look)
    vet(run, size=20)
    ((address, mode, text),) = opened
    assert "token" not in address and mode == 0o600 and "token=" in text
    assert not (run / FOLDER / "open.html").exists()
