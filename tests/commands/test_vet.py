from __future__ import annotations

import json
import os
import random
import signal
import time
import webbrowser
from pathlib import Path

import pytest

from galscan.commands.vet import FOLDER, _login, vet
from galscan.core.errors import ConflictError, InputError
from galscan.core.staging import locked
from galscan.scanning.run import open_run
from galscan.vetting import sampling
from galscan.vetting.gradebook import FILE, summary_lines
from tests.chromium import chromium
from tests.grading import book, grade_with_kills, served, served_here


@pytest.fixture
def run(run_copy):
    return run_copy


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def opened(monkeypatch):
    """End the server with Ctrl-C when it opens the browser; return address, mode and content of what it opens."""
    calls = []

    def stand_in(address):
        path = Path(address.removeprefix("file://"))
        calls.append((address, path.stat().st_mode & 0o777, path.read_text()))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(webbrowser, "open", stand_in)
    return calls


def change_info(run, **changes):
    """Change run.json; a value of ... removes a key."""
    info = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps({k: v for k, v in info.items() if v is not ...}))


def test_sample_is_drawn_once(run):
    summary = vet(run, serve=False, best=30, size=60)
    drawn = {s["stratum"]: (s["objects"], s["drawn"]) for s in summary["sample"]}
    assert drawn["best"] == (30, 30) and drawn["not ranked"][0] == 577 and summary["graders"] == {}
    assert "0 of 30 graded" in summary["text"] and "galscan purity" in summary["text"]
    before = (run / FILE).read_bytes()
    assert vet(run, serve=False, best=5, size=9)["sample"] == summary["sample"]
    assert (run / FILE).read_bytes() == before


def test_grades_are_exported_and_imported_as_a_table(run, tmp_path):
    vet(run, serve=False, best=30, size=60)
    with book(run) as grades:
        for item in range(1, 21):
            grades.record(f"key-{item:05d}", item, "ann", "A" if item % 2 else "not")
    summary = vet(run, export_csv=tmp_path / "g.csv")
    assert summary["graders"]["ann"]["graded"] == 20
    (run / FILE).unlink()
    vet(run, serve=False, best=30, size=60)
    assert vet(run, import_csv=tmp_path / "g.csv")["graders"] == summary["graders"]


def test_sample_is_spread_over_the_strata_and_continued_in_batches(run):
    summary = vet(run, serve=False, size=70)
    assert [s["stratum"] for s in summary["sample"]] == ["1-38", "39-120", "not ranked"]
    drawn = [s["drawn"] for s in summary["sample"]]
    assert sum(drawn) == 50 and min(drawn) >= 3 and drawn[2] <= 7
    assert summary["to_come"] >= 20 and "to come" in summary["text"]
    with book(run) as grades:
        for item in grades.items()["item"]:
            grades.record(f"key-{item:05d}", int(item), "ann", "not")
    summary = vet(run, serve=False)
    assert sum(s["drawn"] for s in summary["sample"]) == 70 and summary["to_come"] == 0


def test_half_of_the_sample_are_the_best_without_a_model(run):
    change_info(run, model=str(run / "gone"))
    summary = vet(run, serve=False, size=60)
    assert summary["sample"][0] == {"stratum": "best", "objects": 30, "drawn": 30, "graded": 0}
    assert summary["to_come"] == 0


@pytest.mark.parametrize("text", [None, "[]", '{"token": 7, "port": 1}', '{"token": "t", "port": "x"}', "{}"])
def test_secret_is_in_private_files_only_and_ctrl_c_ends_the_server(run, opened, text):
    """Other users of the machine can read the command line of the browser. A damaged address file is replaced."""
    path = run / FOLDER / "server.json"
    if text:
        path.parent.mkdir()
        path.write_text(text)
    assert "0 of 12 graded" in vet(run, best=12, size=30)["text"]
    ((address, mode, page),) = opened
    token = json.loads(path.read_text())["token"]
    assert len(token) == 32 and f"token={token}" in page and mode == path.stat().st_mode & 0o777 == 0o600
    assert "token" not in address and not (run / FOLDER / "open.html").exists()


def test_second_server_on_one_run_is_refused(run):
    with locked(run / FOLDER), pytest.raises(ConflictError):
        vet(run, serve=False)


def test_changed_store_is_refused(run):
    (store,) = json.loads((run / "run.json").read_text())["stores"]
    change_info(run, stores=[store | {"content_hash": "another"}])
    with pytest.raises(InputError, match=r"sky\.zarr"):
        vet(run, browser=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"), ({"format": "<script>"}, "format '<script>'"), ({"first_look": ...}, "stages"),
        ({"status": "running"}, "not finished"), ({"fingerprint": ...}, "galscan scan"),
    ],
)  # fmt: skip
def test_run_of_another_version_or_unfinished_is_refused(run, change, message):
    change_info(run, **change)
    with pytest.raises(InputError, match=message):
        vet(run, serve=False)
    assert not (run / FILE).exists()


def served_run(run, store):
    return served_here(run / FILE, str(open_run(run).info.fingerprint), {store.name: store}, "token")


def load(page, address, grader="ann"):
    page.open(f"{address}/?token=token" if "token" not in address else address)
    page.run(f"document.getElementById('grader').value = '{grader}', load()")


def press(page, key, count):
    """Press a key, and wait until so many objects are graded."""
    page.press(key)
    page.wait(f"Object.keys(grades).length === {count} && !busy")


def test_page_continues_with_the_next_batch(run, shared_store, page, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)
    vet(run, serve=False, size=16)
    with served_run(run, shared_store) as address:
        load(page, address)
        page.wait("items.length > 8")
        total, first = page.run("total"), page.run("items.length")
        assert first < total and page.run("document.getElementById('bar').max") == total
        for k in range(first):
            press(page, "n", k + 1)
        page.wait("items.length > Object.keys(grades).length")
        assert page.run("items[at].item") == first + 1 and not page.run("document.getElementById('end').open")
        for k in range(first, total):
            press(page, "n", k + 1)
        page.wait("document.getElementById('end').open")
    with book(run) as grades:
        assert len(grades.items()) == total == len(grades.current())


def test_results_of_graders_are_shown_at_the_end_only(run, shared_store, page):
    """Graders must not know controls and other graders' grades before."""
    vet(run, serve=False, best=6, size=12)
    with book(run) as grades:
        items = grades.items()
        for row in items.itertuples():
            grade = "A" if row.kind == "positive" or row.item % 3 else "not"
            grades.record(f"bob-{row.item:05d}", row.item, "bob", grade)
            if row.item > 1:
                grades.record(f"ann-{row.item:05d}", row.item, "ann", "not" if row.kind == "blank" else grade)
    with served_run(run, shared_store) as address:
        load(page, address)
        page.wait(f"items.length === {len(items)}")
        page.command("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.command("Emulation.clearDeviceMetricsOverride")
        assert not page.run("document.getElementById('end').open") and page.run("items[at].item") == 1
        page.press("a")
        page.wait("document.getElementById('end').open")
        shown = page.run("document.getElementById('summary').textContent")
        with book(run) as grades:
            lines = summary_lines(grades.graders(), grades.agreement())
        assert shown == "".join(lines) and len(lines) == 3
        page.press("n")  # a dialog is open: no grade
        assert page.run("grades[1].grade") == "A" and not page.run("busy")


SHOWN = "document.getElementById('picture').complete && document.getElementById('picture').naturalWidth === 32"
WIDTHS = [(1300, 900), (820, 1180)]


@pytest.mark.parametrize("size", WIDTHS)
def test_page_shows_the_first_galaxy_at_once_and_grades_as_the_login_name(run, page, monkeypatch, size):
    monkeypatch.setenv("LOGNAME", "edwin")
    width, height = size
    with served(run, best=12, size=30) as (_, address):
        page.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        page.open(address)
        page.wait(f"items.length > 12 && {SHOWN}")
        assert page.run("grader()") == "edwin" and page.run("document.activeElement.tagName") == "BODY"
        task = page.run("document.getElementById('task').textContent")
        assert "dustlane" in task and "edwin" in task
        # All that is needed to grade is visible without scrolling: the picture, the line, the buttons, the name.
        places = "['#picture', '#task', '#grades', '#artefacts', '#grader', '#undo']"
        rectangles = f"{places}.map((s) => document.querySelector(s).getBoundingClientRect().toJSON())"
        for place in page.run(rectangles):
            assert 0 <= place["left"] < place["right"] <= width and 0 <= place["top"] < place["bottom"] <= height
        assert page.run("document.getElementById('picture').getBoundingClientRect().width") > width / 3
        press(page, "a", 1)
        load(page, address, "ann")  # another name
        page.wait("Object.keys(grades).length === 0 && !busy")
        press(page, "n", 1)
        with book(run) as grades:
            assert grades.current()[["item", "grader", "grade"]].to_numpy().tolist() == [
                [1, "ann", "not"],
                [1, "edwin", "A"],
            ]
    page.command("Emulation.clearDeviceMetricsOverride")


def test_page_without_a_name_shows_the_galaxy_but_saves_nothing(run, shared_store, page):
    vet(run, serve=False, best=12, size=30)
    with served_run(run, shared_store) as address:
        page.open(f"{address}/?token=token")
        page.wait(f"items.length > 12 && {SHOWN}")
        page.press("a")
        page.wait("document.activeElement.id === 'grader'")
        assert page.run("document.getElementById('status').textContent") != ""
        assert page.run("items[at].item") == 1 and not page.run("busy")
        with book(run) as grades:
            assert grades.current().empty
        page.run("document.getElementById('grader').value = 'ann', load()")
        page.wait("document.getElementById('status').textContent === ''")
        press(page, "a", 1)


@pytest.mark.parametrize(("login", "expected"), [("edwin", "edwin"), (" edwin", ""), ("x" * 65, ""), (KeyError(), "")])
def test_login_name_is_a_valid_grader_or_none(monkeypatch, login, expected):
    def stand_in():
        if isinstance(login, Exception):
            raise login
        return login

    monkeypatch.setattr("getpass.getuser", stand_in)
    assert _login() == expected


def test_page_grades_and_survives_a_kill_of_the_server(run, page):
    with served(run, best=12, size=30) as (process, address):
        page.open(address)
        page.log.clear()
        load(page, address)
        page.wait("items.length > 30 && document.getElementById('picture').complete")
        total, shown = page.run("items.length"), page.run("items[at].item")
        page.press("a")
        page.wait(f"items[at].item !== {shown} && !busy")
        with book(run) as grades:  # on disk before the page shows the next
            assert grades.current()[["item", "grader", "grade"]].to_numpy().tolist() == [[shown, "ann", "A"]]
        press(page, "1", 2)
        press(page, "u", 1)
        page.run("document.getElementById('comment').value = '<b>=1+1</b>'")
        press(page, "n", 2)
        for key in "mmiprgvw+-z":
            page.press(key)
        assert page.run("document.getElementById('picture').style.filter").startswith("brightness")
        assert page.run("links({ra: 1.5, dec: -2}), document.querySelectorAll('#links a').length") == 4
        assert page.run("document.getElementById('bar').value") == 2
        assert [line for line in page.log if "error" in line.lower() or "exception" in line.lower()] == []
        started, count = time.monotonic(), 12
        for k in range(count):
            press(page, random.Random(k).choice("abcn"), 3 + k)
        assert (time.monotonic() - started) / count < 60 / 50  # fifty a minute must be possible
        process.kill()
        process.wait()
        page.run("void grade('A')")
        page.wait("document.getElementById('status').textContent.includes('Not saved yet')")
        with served(run) as (_, again):
            assert again == address
            page.wait(f"Object.keys(grades).length === {3 + count} && !busy")
        with book(run) as grades:
            assert len(grades.current()) == 3 + count < total
            assert "<b>=1+1</b>" in set(grades.current()["comment"])


@pytest.mark.slow
def test_no_grade_is_lost_or_doubled_when_the_server_is_killed_at_random(run, tmp_path):
    counts = grade_with_kills(run, tmp_path / "chromium", 1000, seed=7)
    assert counts["grades"] >= 1000 and counts["kills"] >= 8 and counts["lost"] == counts["doubled"] == 0
