"""How much to grade: more for a narrower interval, and of the right model only."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from galscan.commands.scan import scan
from galscan.commands.vet import vet
from galscan.core.errors import InputError
from galscan.scanning.run import open_run
from galscan.stats import calibration as calibrate
from galscan.stats.histogram import ScoreHistogram
from galscan.stats.purity import estimate
from galscan.vetting import planning
from tests.candidate_tables import run_of
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def run(tmp_path_factory, scans_here, no_pages):
    place = tmp_path_factory.mktemp("forecast")
    store = tiny_store(place / "sky.zarr", 700, 32, survey="sky", unusable=3)
    return scan(store=store.path, model=tiny_bundle(place / "model").path, out=place / "run", top=120, workers=1)


@pytest.fixture
def survey(monkeypatch, tmp_path):
    """A scan of 20,000 objects with a hundred targets, as far as a forecast looks at it."""
    rng = np.random.default_rng(0)
    scores = np.sort(np.concatenate([rng.normal(0, 1, 19_900), rng.normal(3, 1, 100)]))[::-1]
    calibration = calibrate.fit(np.r_[rng.normal(3, 1, 24), rng.normal(0, 1, 400)], np.repeat([1, 0], [24, 400]))
    histogram = ScoreHistogram.of(scores)
    monkeypatch.setattr(
        planning, "estimate_by_scores", lambda run: (estimate(calibration, histogram, scores[:300]), 0.95)
    )
    monkeypatch.setattr(planning, "scores", lambda run: scores[:300])
    pd.DataFrame({"score": scores[:300]}).to_parquet(tmp_path / "candidates.parquet")
    return run_of(tmp_path, first_look=None, scanned=20_000)


def test_it_is_the_estimate_of_the_scan(run):
    purity, confidence = planning.estimate_by_scores(run)
    assert confidence == run.info.purity["confidence"]
    assert purity.purity == pytest.approx(run.candidates["purity"].to_numpy(), rel=1e-6)


def test_a_narrower_interval_needs_more_grades_and_all_at_most(survey):
    sizes = [planning.size_for(survey, width, 200, 20) for width in (0.5, 0.2, 0.1, 0.03, 1e-6)]
    assert 20 <= sizes[0] < sizes[1] < sizes[2] < sizes[3] < sizes[4] <= 20_000


def test_vet_asks_for_as_many(run, capsys, monkeypatch):
    monkeypatch.setattr(planning, "size_for", lambda opened, width, rank, best: 40)
    told = vet(run.path, serve=False, width=0.3, rank=100, best=10)
    assert "40 objects to grade for a purity interval of width 0.3 at rank 100" in capsys.readouterr().err
    assert sum(s["drawn"] for s in told["sample"]) == pytest.approx(40, abs=3)


@pytest.mark.parametrize(("width", "rank"), [(0.0, 10), (1.0, 10), (0.1, 121)])
def test_what_cannot_be_is_refused(run, width, rank):
    with pytest.raises(InputError, match="use a rank of 1 to 120, and a width within 0 to 1"):
        planning.size_for(run, width, rank, 10)


def test_another_model_and_an_older_scan_are_refused(run, tmp_path):
    info = json.loads((run.path / "run.json").read_text())
    for change, words in (
        ({"identity": info["identity"] | {"model": "0" * 64}}, "changed since the scan"),
        ({"histogram": None}, "kept no histogram"),
    ):
        other = {k: v for k, v in (info | change).items() if v is not None}
        (tmp_path / "run.json").write_text(json.dumps(other))
        (tmp_path / "candidates.parquet").write_bytes((run.path / "candidates.parquet").read_bytes())
        with pytest.raises(InputError, match=words):
            planning.estimate_by_scores(open_run(tmp_path))
