"""The page of a scan: all of it, sparse ones, and hostile ones; in a real browser, narrow, and on paper."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.core.errors import NotFoundError
from galscan.reports.scan import LAST, write_scan_report
from galscan.stats.histogram import ScoreHistogram
from galscan.store import layout
from tests.candidate_tables import candidates, write_run
from tests.chromium import NAMES, QUIET, chromium
from tests.grading import book
from tests.helpers import tiny_bundle, tiny_store
from tests.pages import Page, check_page

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    """Return a run over a small store, with scores, whose model is missing."""
    store = tiny_store(tmp_path / "s.zarr", 300, 24)
    frame = candidates(60, text=True)
    frame["store"], frame["index"] = "tiny", np.arange(60)
    frame["designation"] = ""
    frame.loc[0, "objid"] = HOSTILE
    stores = [{"name": "tiny", "path": str(store.path), "content_hash": store.content_hash, "count": store.count}]
    histogram = ScoreHistogram.of(np.random.default_rng(0).normal(0, 1, 300))
    return write_run(tmp_path / "run", frame, stores=stores, scanned=300, histogram=histogram.to_list())


def test_a_scan_page_stands_alone_and_escapes(run):
    text = write_scan_report(run).read_text(encoding="utf-8")
    check_page(text, scripts=1)
    assert HOSTILE not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "among 300 galaxies" in text and "13 positives" in text and "blank image" in text
    assert text.count('alt="Cutout of') == 48
    assert text.count('class="trained"') == 24


def test_the_last_of_the_accepted_are_shown_when_many(run):
    frame = pd.read_parquet(run / "candidates.parquet").assign(purity=0.9)
    frame.to_parquet(run / "candidates.parquet", index=False)
    text = write_scan_report(run).read_text()
    assert "The last accepted candidates" in text and text.count('alt="Cutout of') == 48 + LAST


def test_equal_runs_give_equal_pages(run):
    first = write_scan_report(run).read_bytes()
    assert write_scan_report(run).read_bytes() == first


def test_a_rebuilt_or_lost_store_shows_no_wrong_pictures(run):
    facts = json.loads((run / "run.json").read_text())
    facts["stores"][0]["content_hash"] = "another"
    (run / "run.json").write_text(json.dumps(facts))
    text = write_scan_report(run).read_text()
    assert "Cutout of" not in text and text.count("image not available") == 48


def test_pages_without_purity_have_no_empty_figures(tmp_path):
    known, unknown = (
        write_scan_report(write_run(tmp_path / name, candidates(), **changes)).read_text()
        for name, changes in (("known", {}), ("unknown", {"purity": {"unknown": "another survey"}}))
    )
    figures = [text.count("data:image/svg+xml") for text in (known, unknown)]
    assert figures[0] - figures[1] == 2 and "Purity against rank" not in unknown


@pytest.mark.parametrize(
    ("frame", "changes", "words"),
    [
        (candidates().head(0), {}, "No candidates among"),
        (
            candidates().assign(ra=np.nan, dec=np.nan),
            {"purity": {}, "quarantine_reasons": {}, "images_per_s": None},
            "None: every object",
        ),
        (
            candidates().assign(purity=0.1, purity_lo=0.0, purity_hi=0.3, p_target=0.1),
            {},
            "No list among 16,753 galaxies reaches",
        ),
        (candidates(2), {"wall_s": None, "stores": []}, "1 candidate at an expected purity"),
    ],
)
def test_sparse_runs(tmp_path, frame, changes, words):
    text = write_scan_report(write_run(tmp_path / "run", frame, **changes)).read_text()
    check_page(text, scripts=int(frame["ra"].notna().any()))
    assert words in text


def test_no_run_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="not a run"):
        write_scan_report(tmp_path)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, scans_here) -> Path:
    """A scan of 400 objects of which some are labelled, some quarantined, and ten in the training set of the model."""
    place = tmp_path_factory.mktemp("report")
    store = labelled_store(place / "sky.zarr")
    galscan.scan(store=store.path, model=tiny_bundle(place / "model").path, out=place / "run", top=60, workers=1)
    return place


def labelled_store(path: Path) -> layout.Store:
    """Write a store in which the objects 0 to 19, and one that is quarantined, are labelled as targets."""
    plain = tiny_store(path.with_name("plain.zarr"), 400, 32, survey="sky", unusable=12)
    answers = ["early_type", "dust_lane", "dusty"]
    group = layout.create(
        path,
        survey="sky",
        count=400,
        size=32,
        id_dtype=np.dtype("int64"),
        schemas={"simulated": answers},
        provenance={},
    )
    for name in ("images", "id", "ra", "dec", "pixel_scale", "flags"):
        group[name][:] = plain.column(name)
    targets = np.isin(np.arange(400), [*range(20), 395])
    for name in answers:
        group[f"labels/simulated/{name}"][:] = np.where(targets, 1.0, 0.0)
    layout.finish(path, "labelled")
    return layout.open_store(path)


def test_a_scan_is_told_in_full(scanned):
    page = (scanned / "run" / "report.html").read_text(encoding="utf-8")
    check_page(page, scripts=1)
    words = " ".join(Page(page).words[Page(page).all("main")[0]].split())
    assert "21 labelled objects in the scanned stores are targets" in words
    # tiny_bundle was trained on the objects 1000 to 1009, which do not count.
    frame = galscan.open(scanned / "run").candidates
    found = len(set(range(10, 20)) & set(frame["index"]))
    assert f"Of those that the model was not trained on, {found} of 11 ({found / 11:.0%})" in words
    assert "quarantined: " in words and "about rank" in words and "scored below the list" in words
    missed = 21 - len({*range(20)} & set(frame["index"]))
    # One of them was quarantined, and has no picture.
    assert page.count("a known target:") == missed - 1 and f"Missed: {missed}" in words
    for why in ("no image", "unreadable image", "blank image"):
        assert page.count(f"<h3>{why}</h3>") == 1
    assert words.count("empty image") == 13  # they are zeros: twelve quarantined, and the one that is a known target
    assert "declination" in words and "0° to 360°" in words and "unknown, too few objects" in words
    assert "1, for 2 partitions" in words and "total" in words
    assert "calibrated on" in words and "Sky map of 60 candidates" in page


def test_with_grades_before_and_after_stand_side_by_side(scanned, tmp_path):
    run = Path(shutil.copytree(scanned / "run", tmp_path / "run"))
    before = (run / "report.html").read_text()
    assert "With the grades" not in before
    galscan.vet(run, serve=False, best=12, size=30)
    with book(run) as one:
        for row in one.items().itertuples():
            for grader in ("ann", HOSTILE):
                said = "A" if row.rank % 2 or row.kind == "positive" else "not"
                one.record(f"{len(grader)}-{row.item:06d}", row.item, grader, said, comment=HOSTILE)
    told = galscan.purity(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    check_page(page, scripts=1)
    assert HOSTILE not in page and "&lt;script&gt;" in page and "With the grades" in page
    assert f"{told['graded']} of them graded" in page and "grade A, 2 votes" in page
    assert "agree on 100% of" in page and "with the grades and by the scores alone: " in page
    limits = json.loads((run / "purity.json").read_text())["completeness"]
    assert limits["rank"][-1] == 60 and all(
        0 <= a <= b <= 1 for a, b in zip(limits["low"], limits["high"], strict=True)
    )
    # Grades of other candidates than these are not believed.
    frame = pd.read_parquet(run / "candidates.parquet")
    frame.assign(score=frame["score"] + 1).to_parquet(run / "candidates.parquet", index=False)
    assert "With the grades" not in write_scan_report(run).read_text()


def test_a_damaged_run_still_has_a_page(scanned, tmp_path):
    run = Path(shutil.copytree(scanned / "run", tmp_path / "run"))
    for name in ("scores", "quarantine"):
        for path in (run / name).glob("*.parquet"):
            path.write_bytes(b"PAR1 nonsense")
    (run / "ledger.jsonl").write_text("{not json")
    page = write_scan_report(run).read_text(encoding="utf-8")
    check_page(page, scripts=1)
    assert "blank image" in page and "right ascension" not in page.split('id="scanned"')[1].split("Sky map")[0]


def test_the_first_look_is_told_in_words(run):
    looked = {"discarded": 250, "audited": 3, "lost": 0, "kept": 1.0, "kept_lo": 0.5}
    info = json.loads((run / "run.json").read_text()) | {"first_look": looked}
    info["purity"]["notes"].append("A first look discarded 250 of 300 objects; the same in other words.")
    (run / "run.json").write_text(json.dumps(info))
    text = write_scan_report(run).read_text()
    assert "rejected 250 of 300 objects (83.3%)" in text and "at 95 % confidence at least 50%" in text
    assert "in other words" not in text and "The prefilter, a small network trained on" in text


def test_narrow_pages_do_not_scroll_sideways_and_printed_ones_cut_nothing(scanned, tmp_path):
    address = f"file://{scanned / 'run' / 'report.html'}"
    with chromium(tmp_path / "chromium") as page:
        for width in (1300, 390, 320):
            page.command(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 800
            )
            page.open(address)
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), width
        assert not page.log
        page.command("Emulation.setEmulatedMedia", media="print")
        avoid = "getComputedStyle(document.querySelector('{}')).breakInside"
        for what in ("figure", "ol.gallery li", "table", "dl.facts"):
            assert page.run(avoid.format(what)) == "avoid", what
        assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    program = next(filter(None, map(shutil.which, NAMES)))
    pdf = tmp_path / "page.pdf"
    command = [program, *QUIET, f"--user-data-dir={tmp_path / 'print'}", f"--print-to-pdf={pdf}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert pdf.read_bytes().startswith(b"%PDF") and 3 <= pdf.read_bytes().count(b"/Type /Page\n") <= 15
