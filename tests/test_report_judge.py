from __future__ import annotations

from galscan import report_judge


def test_what_too_few_galaxies_leave_open_is_a_dash():
    assert report_judge._at({"light": {"positive": {"real": None}}}, "light/positive/real/measured") is None
    assert report_judge._share({"share": None}) == report_judge._figure(None) == report_judge._spread(None) == "–"


def test_figures_are_written_for_people():
    assert report_judge._share({"share": 0.25, "low": 0.1, "high": 0.5}) == "25.0% (10.0% to 50.0%)"
    assert report_judge._figure(12345) == "12,345" and report_judge._figure(0.12345) == "0.123"
    assert report_judge._spread({"mean": 0.5, "std": 0.25}) == "0.500 ± 0.250"
