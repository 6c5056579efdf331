"""Errors of the ablation page; the page itself is tested in tests/commands/test_ablate.py."""

from __future__ import annotations

import pytest

from galscan.core.errors import GalscanError
from galscan.reports import ablation


def test_a_folder_without_results_has_no_page(tmp_path):
    with pytest.raises(GalscanError, match="ablation"):
        ablation.write_ablation_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_counts_that_differ_between_repeats_are_a_range():
    assert ablation._range([1200, 1200]) == "1,200"
    assert ablation._range([20, 1200]) == "20–1,200"
