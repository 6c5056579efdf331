from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from galscan.cli import main
from galscan.commands.info import info, summarize
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import write_json
from galscan.scanning.run import Run
from galscan.store.build import ingest_survey
from tests.helpers import tiny_bundle, tiny_store
from tests.store.test_build import Sky


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("info") / "tiny.zarr", count=300, size=16, unusable=4)


def test_a_store(store):
    result = info(store.path)
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "store" and result["objects"] == 300 and result["unusable"] == 4 and result["size"] == 16
    assert result["flags"] == {"missing": 2, "unreadable": 1, "blank": 1}
    assert result["positions"] == 300 and result["provenance"] == {"seed": 0}
    short = summarize(store)
    assert short["store"] == str(store.path) and short["objects"] == 300 and short["unusable"] == 4


def test_what_became_of_the_objects(tmp_path, capsys):
    ingest_survey(Sky(count=40), tmp_path / "s.zarr", workers=1)
    ingest_survey(Sky(count=40), tmp_path / "s.zarr", workers=1, append=True)
    result = info(tmp_path / "s.zarr")
    assert result["outcomes"] == {"stored": 32, "no_coverage": 4, "failed": 4}
    assert result["failures"][0] == {"objects": 1, "reason": "file 7 is truncated", "such_as": str(2**60 + 7)}
    assert "--retry-failed" in result["retry"] and result["appended"] == []
    assert main.run(["info", str(tmp_path / "s.zarr"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["outcomes"]["failed"] == 4
    assert "no_coverage" in said.err and "file 7 is truncated" in said.err and "--retry-failed" in said.err


def test_of_many_reasons_the_commonest_are_told(tmp_path):
    ingest_survey(Sky(count=100), tmp_path / "s.zarr", workers=1)
    *some, rest = info(tmp_path / "s.zarr")["failures"]
    assert len(some) == 5 and rest == {"objects": 5, "reason": "other reasons", "such_as": str(2**60 + 57)}


def test_a_store_that_nobody_ingested_has_no_outcomes(store):
    assert not {"outcomes", "failures", "retry"} & info(store.path).keys()


def test_a_sheet_of_a_store(store, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert info(store.path, sheet=sheet)["sheet"] == str(sheet)
    with Image.open(sheet) as picture:
        assert picture.width >= 8 * 96 and picture.height >= 6 * 96


def test_a_model(tmp_path):
    tiny_bundle(tmp_path / "model")
    result = info(tmp_path / "model")
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "model" and result["target"] == "dustlane" and result["schema"] == "simulated"
    with pytest.raises(InputError, match="no synthetic galaxies to show"):
        info(tmp_path / "model", sheet=tmp_path / "sheet.png")


@pytest.fixture
def run(store, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    stores = [{"name": store.name, "path": str(store.path), "content_hash": store.content_hash, "count": store.count}]
    told = {
        "status": "done",
        "fingerprint": "f",
        "identity": {},
        "target": "ring",
        "run": str(path),
        "stores": stores,
        "scanned": 296,
        "candidates": 2,
        "images_per_s": None,
        "quarantine_reasons": {"no image": 4},
        "purity": {
            "prevalence": {"value": 0.01, "low": 0.0, "high": None},
            "at": {"10": {"value": 0.5, "low": 0.25, "high": 0.75}},
            "notes": ["It rests on little."],
        },
    }
    write_json(path / "run.json", told)
    table = {"rank": [1, 2], "store": store.name, "index": [5, 9], "p_target": [0.9, 0.5]}
    pd.DataFrame(table).to_parquet(path / "candidates.parquet")
    return path


def test_a_run(run, tmp_path):
    result = info(run, sheet=tmp_path / "best.png")
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "run" and result["scanned"] == 296 and result["status"] == "done"
    assert (tmp_path / "best.png").is_file()


def test_a_run_that_is_not_finished_can_be_looked_at(run, tmp_path):
    told = json.loads((run / "run.json").read_text()) | {"status": "running"}
    write_json(run / "run.json", told)
    assert info(run)["status"] == "running"
    with pytest.raises(InputError, match="not finished"):
        info(run, sheet=tmp_path / "best.png")


def test_neither(tmp_path):
    with pytest.raises(InputError, match="not a store, a model or a run"):
        info(tmp_path)
    with pytest.raises(NotFoundError, match="does not exist"):
        info(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a store, a model or a run"):
        info(tmp_path / "file")


def test_summaries(tmp_path, run):
    (tmp_path / "x.fits").write_bytes(b"12345")
    assert summarize(tmp_path / "x.fits") == {"file": str(tmp_path / "x.fits"), "bytes": 5}
    assert summarize({"a": 1}) == {"a": 1}
    summary = summarize(Run(run, json.loads((run / "run.json").read_text())))
    assert summary["run"] == str(run)
    assert "2 candidates for 'ring' ranked among 296 galaxies; 4 quarantined: no image" in summary["text"]
    assert "50 % (25-75) in the top 10" in summary["text"] and "1 % (0-?)" in summary["text"]
