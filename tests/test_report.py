from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from galscan import pictures, report
from galscan.candidates.purity import ScoreHistogram
from galscan.classify.calibrate import fit
from galscan.errors import NotFoundError
from galscan.recipe import load_recipe
from tests.candidate_tables import candidates, write_run
from tests.helpers import tiny_store

HOSTILE = "<script>alert(1)</script>"


class _Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def _check_self_contained(text: str) -> None:
    page = _Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:").startswith("data:")
        if tag == "img":
            assert attributes.get("alt")
        if tag == "a":
            assert attributes["href"].startswith("https://arxiv.org/")
    assert "@import" not in text and not re.search(r"url\(", text)
    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags].count("h1") == 1


@pytest.fixture
def run(tmp_path):
    """Return a run over a small store, with scores, whose model is gone."""
    store = tiny_store(tmp_path / "s.zarr", 300, 24)
    frame = candidates(60, text=True)
    frame["store"], frame["index"] = "tiny", np.arange(60)
    frame["designation"] = ""
    frame.loc[0, "objid"] = HOSTILE
    stores = [{"name": "tiny", "path": str(store.path), "content_hash": store.content_hash, "count": store.count}]
    histogram = ScoreHistogram.empty()
    histogram.add(np.random.default_rng(0).normal(0, 1, 300))
    return write_run(tmp_path / "run", frame, stores=stores, scanned=300, histogram=histogram.to_list())


def test_a_scan_page_stands_alone_and_escapes(run):
    text = report.write_scan_report(run).read_text(encoding="utf-8")
    _check_self_contained(text)
    assert HOSTILE not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "among 300 galaxies" in text and "13 positives" in text and "blank image" in text
    assert text.count('alt="Cutout of') == 48
    assert text.count('class="trained"') == 24


def test_the_last_of_the_accepted_are_shown_when_many(run):
    frame = pd.read_parquet(run / "candidates.parquet").assign(purity=0.9)
    frame.to_parquet(run / "candidates.parquet", index=False)
    text = report.write_scan_report(run).read_text()
    assert "The last of the accepted" in text and text.count('alt="Cutout of') == 48 + report.LAST


def test_equal_runs_give_equal_pages(run):
    first = report.write_scan_report(run).read_bytes()
    assert report.write_scan_report(run).read_bytes() == first


def test_a_rebuilt_or_lost_store_shows_no_wrong_pictures(run):
    facts = json.loads((run / "run.json").read_text())
    facts["stores"][0]["content_hash"] = "another"
    (run / "run.json").write_text(json.dumps(facts))
    text = report.write_scan_report(run).read_text()
    assert "Cutout of" not in text and text.count("picture not at hand") == 48


@pytest.mark.parametrize(
    ("frame", "changes", "words"),
    [
        (candidates().head(0), {}, "No candidates among"),
        (
            candidates().assign(ra=np.nan, dec=np.nan),
            {"purity": None, "quarantine_reasons": {}, "images_per_s": None},
            "Nothing: every object",
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
    text = report.write_scan_report(write_run(tmp_path / "run", frame, **changes)).read_text()
    _check_self_contained(text)
    assert words in text


def test_no_run_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="not a run"):
        report.write_scan_report(tmp_path)


def _metrics(ap):
    return {
        "ap": [ap, ap + 0.1],
        "ap_mean": ap,
        "ap_lo": ap - 0.1,
        "ap_hi": ap + 0.1,
        "pr_curve": {"recall": [0, 0.5, 1], "precision": [1, 0.6, 0.1]},
    }


def _model(path, metrics):
    path.mkdir()
    recipe = load_recipe("dustlane")
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [13, 207])
    calibration = fit(rng.normal(np.where(targets == 1, 2, -2), 1.0), targets)
    (path / "recipe.toml").write_text(recipe.text)
    (path / "model.json").write_text(
        json.dumps(
            {
                "format": 1,
                "target": "dustlane",
                "schema": "efigi",
                "size": 64,
                "seed": 0,
                "answers": ["visible_dust"],
                "weights": {"classifier-0.safetensors": "e" * 64},
                "calibration": calibration.to_dict(),
                "metrics": metrics,
                "recipe_hash": recipe.hash,
                "model_hash": "f" * 64,
                "splits": {"train": {"positive": 26, "negative": 400}},
                "versions": {"galscan": "0.1.0"},
            }
        )
    )
    pictures.contact_sheet(np.zeros((4, 16, 16, 3), np.uint8), path / "dreams.png")
    return path


@pytest.mark.parametrize(
    ("gain", "words", "printed"),
    [
        ({"mean": 0.2, "lo": 0.1, "hi": 0.3}, "dreams helped", "+0.200"),
        ({"mean": -0.2, "lo": -0.3, "hi": -0.1}, "dreams hurt", "−0.200"),
        ({"mean": 0.0, "lo": -0.1, "hi": 0.1}, "cannot be told", "+0.000"),
    ],
)
def test_the_gain_is_printed_whatever_it_is(tmp_path, gain, words, printed):
    metrics = {
        "real_only": _metrics(0.4),
        "real_plus_dreamt": _metrics(0.5),
        "gain": gain,
        "chosen": "real_plus_dreamt",
        "test": {"positives": 13, "negatives": 200, "prevalence": 13 / 213},
    }
    text = report.write_model_report(_model(tmp_path / "model", metrics)).read_text(encoding="utf-8")
    _check_self_contained(text)
    assert words in text and printed in text and "0.400" in text and "0.500" in text and "delivered" in text
    assert text.count("data:image/svg+xml") == 2 and text.count("data:image/png") == 1


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"real_only": None, "real_plus_dreamt": None, "chosen": "real_only"},
        {"real_only": _metrics(0.4), "chosen": "real_only", "gain": None},
    ],
)
def test_sparse_models(tmp_path, metrics):
    text = report.write_model_report(_model(tmp_path / "model", metrics)).read_text(encoding="utf-8")
    _check_self_contained(text)
    assert ("trained without dreams" in text) == bool(metrics.get("real_only"))


@pytest.mark.parametrize(
    ("dropped", "words"),
    [({"copy": 2, "not the class": 31}, "2 copy, 31 not the class."), ({}, "dropped before training: none.")],
)
def test_dreams_that_were_dropped_are_told(tmp_path, dropped, words):
    dreams = {"positive": 300, "all": 1900, "dropped": dropped, "kept": 1867, "kept_positive": 269}
    text = report.write_model_report(_model(tmp_path / "model", {"dreams": dreams})).read_text(encoding="utf-8")
    _check_self_contained(text)
    assert words in text and "Of 1,900 dreams (300 of the target) 1,867 were used (269 of the target)" in text
