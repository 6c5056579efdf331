from __future__ import annotations

from pathlib import Path

import pytest

from galscan.classify.plan import make_plan
from galscan.errors import InputError
from galscan.store.ingest import ingest_survey
from galscan.surveys.simulated import SimulatedSurvey
from tests.helpers import tiny_recipe, tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    sky = SimulatedSurvey(count=400, size=32, seed=1, rare_fraction=0.1)
    return ingest_survey(sky, tmp_path_factory.mktemp("plan") / "sky.zarr", workers=1).path


def plan(store, tmp_path: Path, **changes):
    settings = {"survey": (), "store": store, "out": tmp_path / "m", "budget": None, "synthetic": True, "seed": 0}
    return make_plan(str(tiny_recipe(tmp_path / "r.toml")), **(settings | changes))


def test_the_plan_counts_what_will_be_learnt(store, tmp_path):
    p = plan(store, tmp_path)
    splits = ("train", "calibration", "test")
    positives = {s: int((p.table.loc[p.table["split"] == s, "target"] == 1).sum()) for s in splits}
    assert f"train        {positives['train']} positive" in p.describe()
    assert positives["train"] >= positives["test"] > 0


def test_every_option_that_matters_changes_the_request(store, tmp_path):
    requests = [plan(store, tmp_path, **c).request for c in ({}, {"seed": 1}, {"synthetic": False}, {"budget": 3.0})]
    assert len({str(r) for r in requests}) == 4


def test_a_store_of_another_size_is_refused_before_training(store, tmp_path):
    with pytest.raises(InputError, match="--size 32"):
        plan([store, tiny_store(tmp_path / "other.zarr", size=48).path], tmp_path)
