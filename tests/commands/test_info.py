from __future__ import annotations

import json
import re
import shutil

import pytest
from PIL import Image

import galscan
from galscan.cli import main
from galscan.commands.info import info, summarize
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import write_json
from galscan.scanning.run import open_run
from galscan.store.build import ingest_survey
from tests.candidate_tables import write_run
from tests.json_page import undocumented
from tests.store.test_build import Sky


def test_a_store(shared_store, tmp_path):
    result = info(shared_store.path, sheet=tmp_path / "sheet.png")
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "store" and result["objects"] == result["positions"] == 700 and result["size"] == 32
    assert result["unusable"] == 3 and result["flags"] == {"missing": 1, "unreadable": 1, "blank": 1}
    assert result["provenance"] == {"seed": 0} and result["sheet"] == str(tmp_path / "sheet.png")
    assert not {"outcomes", "failures", "retry"} & result.keys(), "no ingest recorded them"
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width >= 8 * 96 and picture.height >= 6 * 96
    short = summarize(shared_store)
    assert (short["store"], short["objects"], short["unusable"]) == (str(shared_store.path), 700, 3)


def test_outcomes_of_an_ingest(tmp_path, capsys):
    ingest_survey(Sky(count=40), tmp_path / "s.zarr", workers=1)
    ingest_survey(Sky(count=40), tmp_path / "s.zarr", workers=1, append=True)
    assert main.run(["info", str(tmp_path / "s.zarr"), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["outcomes"] == {"stored": 32, "no_coverage": 4, "failed": 4}
    assert result["failures"][0] == {"objects": 1, "reason": "file 7 is truncated", "such_as": str(2**60 + 7)}
    assert "--retry-failed" in result["retry"] and result["appended"] == []
    assert "no_coverage" in err and "file 7 is truncated" in err and "--retry-failed" in err
    assert undocumented("info", result) == set()


def test_the_commonest_reasons_are_listed(tmp_path):
    ingest_survey(Sky(count=100), tmp_path / "s.zarr", workers=1)
    *some, rest = info(tmp_path / "s.zarr")["failures"]
    assert len(some) == 5 and rest == {"objects": 5, "reason": "other reasons", "such_as": str(2**60 + 57)}


def test_a_model(shared_model, tmp_path):
    result = info(shared_model.path)
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "model" and result["target"] == "dustlane" and result["schema"] == "simulated"
    assert undocumented("info", result) == set()
    with pytest.raises(InputError, match="real galaxies only"):
        info(shared_model.path, sheet=tmp_path / "sheet.png")


def test_a_run(run_copy, tmp_path):
    result = info(run_copy, sheet=tmp_path / "best.png")
    json.dumps(result, allow_nan=False)
    assert result["kind"] == "run" and result["scanned"] == 697 and result["status"] == "done"
    assert undocumented("info", result) == set() and (tmp_path / "best.png").is_file()
    summary = summarize(open_run(run_copy))
    assert "120 candidates for 'dustlane'" in summary["text"] and "; 1 quarantined: no image" in summary["text"]
    write_json(run_copy / "run.json", json.loads((run_copy / "run.json").read_text()) | {"status": "running"})
    assert info(run_copy)["status"] == "running"
    with pytest.raises(InputError, match="not finished"):
        info(run_copy, sheet=tmp_path / "best.png")


def test_neither(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match=path.name):
            info(path)
    with pytest.raises(NotFoundError):
        info(tmp_path / "none")


def test_open_finds_out_what_it_is(shared_store, tmp_path):
    run = write_run(tmp_path / "run")
    assert type(galscan.open(shared_store.path)) is galscan.Store
    opened = galscan.open(str(run))
    assert type(opened) is galscan.Run and opened.path == run
    with pytest.raises(InputError, match="not finished"):
        galscan.open(write_run(tmp_path / "unfinished", status="running"))


def test_open_models(shared_model, tmp_path):
    assert galscan.open(shared_model.path).model_hash == shared_model.model_hash
    for target in ("a", "b"):
        shutil.copytree(shared_model.path, tmp_path / "two" / target)
    write_json(tmp_path / "two" / "models.json", {"targets": ["a", "b"]})
    assert [model.path.name for model in galscan.open(tmp_path / "two")] == ["a", "b"]
    with pytest.raises(InputError, match="several targets"):
        info(tmp_path / "two")


def test_what_cannot_be_opened_is_named(tmp_path, galscan_home):
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "work.partial").mkdir()
    (tmp_path / "note.txt").write_text("four")
    for path, words in (
        (run / "candidates.parquet", f"part of the run {run}"), (tmp_path / "empty", "an empty folder"),
        (tmp_path / "work.partial", "staging folder"), (tmp_path / "note.txt", "4 bytes"),
        (tmp_path, "4 other entries"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(words)):
            galscan.open(path)
    survey = galscan_home / "surveys" / "sdss.zarr"
    survey.mkdir(parents=True)
    with pytest.raises(NotFoundError, match=re.escape(str(survey))):
        galscan.open("sdss")
    with pytest.raises(InputError, match="nowhere"):
        galscan.open("nowhere://sky.zarr")


@pytest.mark.parametrize("name", ["open_store", "open_model", "open_run"])
def test_its_old_names(name):
    with pytest.warns(DeprecationWarning, match="open"):
        assert getattr(galscan, name) is galscan.open
