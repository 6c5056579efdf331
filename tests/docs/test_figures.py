"""The page of figures (docs/_figures.py)."""

from __future__ import annotations

import datetime
import json

import galscan
from tests.docs.module import load

figures = load("docs/_figures.py")
TODAY = datetime.date(2026, 11, 30)
RESULT = {
    "benchmark": "odd", "command": "python -m tests.benchmarks.odd", "date": "2026-11-20", "seed": 3,
    "machine": {"processor": "P", "cores": 2, "memory_gib": 8.0}, "versions": {"galscan": "0.2.0"},
    "figures": {"gain": 0.12346, "gain_lo": 0.1, "gain_hi": 0.2, "floor": 1, "floor_lo": 0.5, "each": [{"a": 1}]},
}  # fmt: skip


def test_intervals_are_beside_their_figures_and_inner_ones_have_a_name():
    content = RESULT["figures"] | {"by class": {"ring": 3, "ring_hi": None}, "rates": [1.5, 2], "alone_lo": 1}
    assert list(figures.figures(content)) == [
        ("gain", "0.1235", "0.1 to 0.2"),
        ("floor", "1", "at least 0.5"),
        ("by class: ring", "3", ""),
        ("rates", "1.5, 2", ""),
        ("alone_lo", "1", ""),
    ]


def test_numbers():
    values = [None, True, 3.0, 12345, 1234.56, 0.00012346, float("nan"), "text"]
    assert [figures.number(v) for v in values] == ["unknown", "yes", "3", "12,345", "1,235", "0.0001235", "nan", "text"]


def test_old_and_missing_results_are_marked():
    assert figures.marks(RESULT, "0.2.0", TODAY) == []
    assert len(figures.marks(RESULT, "0.3.0", TODAY)) == 1
    assert len(figures.marks(RESULT, "0.3.0", TODAY + datetime.timedelta(days=60))) == 2
    current = figures.section("odd", "shows it", RESULT, "0.2.0", TODAY)
    assert ":::" not in current and RESULT["command"] in current and "| `gain` | 0.1235 | 0.1 to 0.2 |" in current
    assert ":::{note}" in figures.section("odd", "shows it", RESULT, "0.3.0", TODAY)
    assert ":::{warning}" in figures.section("odd", "shows it", None, "0.2.0", TODAY)


def test_page_has_all_benchmarks_and_all_results(tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps(RESULT))
    (tmp_path / "odd-quick.json").write_text(json.dumps(RESULT))
    text = figures.tables("0.2.0", TODAY, tmp_path)
    assert text.count("## ") == len(figures.described()) + 1 and "## odd\n" in text
    page = figures.tables(galscan.__version__, TODAY)
    assert {path.stem for path in (figures.BENCHMARKS / "results").glob("*.json")} <= set(page.split())
