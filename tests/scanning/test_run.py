from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.scanning import run as runs
from tests.candidate_tables import scanned_run
from tests.scanning.test_run_info import leave, planned


def test_a_finished_run_is_opened(tmp_path):
    plan = planned(tmp_path / "run")
    leave(plan, "done")
    table = pd.DataFrame({"rank": [1, 2], "score": [3.0, 2.0]})
    table.to_parquet(plan.out / "candidates.parquet")
    run = runs.open_run(str(plan.out))
    assert run.path == plan.out
    assert run.info.fingerprint == plan.fingerprint
    pd.testing.assert_frame_equal(run.candidates, table)


def test_what_is_no_finished_run_is_refused_with_the_cure(tmp_path):
    with pytest.raises(NotFoundError, match="galscan scan"):
        runs.open_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not the folder of a scan"):
        runs.open_run(tmp_path / "empty")
    plan = planned(tmp_path / "run")
    leave(plan)
    with pytest.raises(InputError, match="not finished"):
        runs.open_run(plan.out)
    leave(plan, "done")
    with pytest.raises(InputError, match=r"lost its candidates\.parquet"):
        runs.open_run(plan.out)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    return runs.open_run(scanned_run(tmp_path_factory.mktemp("scanned")))


def test_each_object_is_scored_or_quarantined_once(scanned):
    scored = [n for table in scanned.scores(["index"]) for n in table["index"].to_pylist()]
    quarantined = [n for table in scanned.quarantined(["index"]) for n in table["index"].to_pylist()]
    assert sorted(scored + quarantined) == list(range(600)) and len(quarantined) == 9


def test_missing_or_damaged_partitions_are_refused(tmp_path):
    run = runs.open_run(scanned_run(tmp_path))
    path = run.path / "scores" / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[40:6000] = bytes(5960)
    path.write_bytes(content)
    with pytest.raises(InputError, match="part-00001"):
        list(run.scores(["id", "ra", "score"]))
    path.unlink()
    with pytest.raises(InputError, match="part-00001"):
        list(run.scores(["ra"]))
    with pytest.raises(InputError, match="part-00000"):
        list(runs.Run(run.path, run.info.updated(fingerprint="e" * 64)).scores(["ra"]))
    with pytest.raises(InputError, match="no column nothing"):
        run.partition(0, ["ra", "nothing"])


@pytest.mark.parametrize("change", [{"path": "/nowhere"}, {"content_hash": "e" * 64}])
def test_missing_or_changed_stores(scanned, change):
    assert list(scanned.stores()) == ["sky"]
    other = runs.Run(scanned.path, scanned.info.updated(stores=[replace(scanned.info.stores[0], **change)]))
    with pytest.raises(InputError):
        other.stores()
    assert other.stores_if_unchanged() == {}


@pytest.mark.parametrize("change", [{"model": "/nowhere"}, {"identity": {"model": "e" * 64}}])
def test_a_missing_or_changed_model(scanned, change):
    assert scanned.model().model_hash == scanned.info.model_hashes[0]
    other = runs.Run(scanned.path, scanned.info.updated(**change))
    with pytest.raises(InputError):
        other.model()
    assert other.model_if_unchanged() is None
