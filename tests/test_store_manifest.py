"""What became of each object, told from the markers of ingest."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from galscan.store.ingest import ingest_survey
from galscan.store.layout import Flag
from galscan.store.manifest import failed_rows, manifest, marker_path, outcomes, write_manifest
from tests.test_store_ingest import Sky


def test_reasons_are_kept(tmp_path: Path) -> None:
    result = outcomes(ingest_survey(Sky(), tmp_path / "s.zarr", workers=1))
    assert result["stored"] == 560 and result["unusable"] == {"no image": 70, "unreadable image": 70}
    assert result["no_coverage"] == result["failed"] == 70
    assert (17, str(2**60 + 17), int(Flag.UNREADABLE), "file 17 is truncated") in result["details"]


def test_the_manifest_names_every_object_once(tmp_path: Path) -> None:
    store = ingest_survey(Sky(), tmp_path / "s.zarr", workers=1)
    write_manifest(store, tmp_path / "m.parquet")
    told = pd.read_parquet(tmp_path / "m.parquet")
    assert told["id"].tolist() == store.column("id").tolist() and told["ra"].tolist() == store.column("ra").tolist()
    assert told["outcome"].value_counts().to_dict() == {"stored": 560, "no_coverage": 70, "failed": 70}
    assert told["reason"][17] == "file 17 is truncated" and told["reason"][3] == "outside the footprint"
    assert (told["reason"] == "").equals(told["outcome"] == "stored")
    pd.testing.assert_frame_equal(told, manifest(store), check_dtype=False)


def test_stores_of_before_do_not_tell_what_is_final(tmp_path: Path) -> None:
    store = ingest_survey(Sky(), tmp_path / "s.zarr", workers=1)
    path = marker_path(tmp_path / "s.zarr", 0)
    marker = json.loads(path.read_text())
    assert len(failed_rows(marker)) == 25
    del marker["no_coverage"]
    path.write_text(json.dumps(marker))
    assert len(failed_rows(marker)) == 51 and outcomes(store)["failed"] == 70 + 26
