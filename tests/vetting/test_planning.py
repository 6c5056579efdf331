from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from galscan.commands.vet import vet
from galscan.core.errors import InputError
from galscan.scanning.run import open_run
from galscan.stats import calibration as calibrate
from galscan.stats.histogram import ScoreHistogram
from galscan.stats.purity import estimate
from galscan.vetting import planning
from tests.candidate_tables import run_of


@pytest.fixture
def survey(monkeypatch, tmp_path):
    """Return a scan of 20,000 objects with a hundred targets, as far as planning reads it."""
    rng = np.random.default_rng(0)
    scores = np.sort(np.concatenate([rng.normal(0, 1, 19_900), rng.normal(3, 1, 100)]))[::-1]
    calibration = calibrate.fit(np.r_[rng.normal(3, 1, 24), rng.normal(0, 1, 400)], np.repeat([1, 0], [24, 400]))
    purity = estimate(calibration, ScoreHistogram.of(scores), scores[:300], bootstrap=1000)
    monkeypatch.setattr(planning, "estimate_by_scores", lambda run: (purity, 0.95))
    pd.DataFrame({"score": scores[:300]}).to_parquet(tmp_path / "candidates.parquet")
    return run_of(tmp_path, first_look=None, scanned=20_000)


def test_estimate_is_that_of_the_scan(shared_run):
    purity, confidence = planning.estimate_by_scores(shared_run)
    assert confidence == shared_run.info.purity["confidence"]
    assert purity.purity == pytest.approx(shared_run.candidates["purity"].to_numpy(), rel=1e-6)


def test_narrower_interval_needs_more_grades_and_all_at_most(survey):
    sizes = [planning.size_for(survey, width, 200, 20) for width in (0.5, 0.1, 0.03, 1e-6)]
    assert 20 <= sizes[0] < sizes[1] < sizes[2] < sizes[3] <= 20_000


def test_vet_draws_as_many_as_planned(run_copy, capsys, monkeypatch):
    monkeypatch.setattr(planning, "size_for", lambda opened, width, rank, best: 40)
    summary = vet(run_copy, serve=False, width=0.3, rank=100, best=10)
    assert "40 objects to grade for a purity interval of width 0.3 at rank 100" in capsys.readouterr().err
    assert sum(s["drawn"] for s in summary["sample"]) == pytest.approx(40, abs=3)


@pytest.mark.parametrize(("width", "rank"), [(0.0, 10), (1.0, 10), (0.1, 121)])
def test_impossible_width_or_rank_is_refused(shared_run, width, rank):
    with pytest.raises(InputError, match=f"rank {rank}, width {width:g}"):
        planning.size_for(shared_run, width, rank, 10)


@pytest.mark.parametrize(("key", "message"), [("identity", "changed since the scan"), ("histogram", "histogram")])
def test_another_model_and_an_older_scan_are_refused(run_copy, key, message):
    info = json.loads((run_copy / "run.json").read_text())
    value = info.pop(key)
    if key == "identity":
        info[key] = value | {"model": "0" * 64}
    (run_copy / "run.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=message):
        planning.estimate_by_scores(open_run(run_copy))
