"""What comes of a scan: nothing, where nothing was chosen or could be scored; the rest is in the tests of the verb."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from galscan.candidates.outcome import write_outcome
from galscan.core.errors import GalscanError, InputError
from galscan.scanning.merge import Merged
from galscan.scanning.plan import make_plan
from galscan.scanning.selection import Selection
from galscan.stats.histogram import ScoreHistogram
from tests.scanning.test_plan import bundle, fake_store


@pytest.mark.parametrize(
    ("selection", "reasons", "kind", "match"),
    [
        ({"where": "dec > 80"}, {}, InputError, "none of the 600 objects is selected"),
        ({}, {"blank image": 600}, GalscanError, "could be scored .600 blank image.; see"),
    ],
)
def test_a_scan_that_found_nothing_says_why_and_leaves_nothing(tmp_path: Path, selection, reasons, kind, match):
    plan = make_plan([fake_store("a", 600)], [bundle()], out=tmp_path / "run")
    object.__setattr__(plan, "selection", Selection(**selection))
    empty = Merged(pd.DataFrame(), ScoreHistogram(), ScoreHistogram(), 0, 600, reasons, 0, 0, 0)
    with pytest.raises(kind, match=match):
        write_outcome(plan, bundle(), empty, {})
    assert not (tmp_path / "run").exists()
