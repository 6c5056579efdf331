"""Manifest: outcome of each object, from the markers of ingest."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from PIL import Image

from galscan.store.build import ingest_survey
from galscan.store.layout import Store, open_store
from galscan.store.manifest import _without_id, failed_rows, manifest, marker_path, outcomes, write_manifest
from galscan.surveys.base import Flag
from galscan.surveys.files.local import LocalSurvey


def test_outcomes(sky_store: Store) -> None:
    result = outcomes(sky_store)
    assert result["stored"] == 560 and result["unusable"] == {"no image": 70, "unreadable image": 70}
    assert result["no_coverage"] == result["failed"] == 70
    assert len(result["failures"]) == 70
    assert (17, str(2**60 + 17), int(Flag.UNREADABLE), "file 17 is truncated") in result["details"]


def test_the_manifest_has_every_object_once(tmp_path: Path, sky_store: Store) -> None:
    store = sky_store
    write_manifest(store, tmp_path / "m.parquet")
    table = pd.read_parquet(tmp_path / "m.parquet")
    assert table["id"].tolist() == store.column("id").tolist() and table["ra"].tolist() == store.column("ra").tolist()
    assert table["outcome"].value_counts().to_dict() == {"stored": 560, "no_coverage": 70, "failed": 70}
    assert table["reason"][17] == "file 17 is truncated" and table["reason"][3] == "outside the footprint"
    assert (table["reason"] == "").equals(table["outcome"] == "stored")
    pd.testing.assert_frame_equal(table, manifest(store), check_dtype=False)


def test_reasons_that_name_a_file_are_one_reason(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "1.png")
    for name in ("22", "23", "500", "6"):
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    (tmp_path / "catalog.csv").write_text("id\n1\n22\n23\n500\n6\n7\n8\n")
    failures = outcomes(ingest_survey(LocalSurvey(tmp_path, size=16), tmp_path / "s.zarr", workers=1))["failures"]
    assert [(f["objects"], f["such_as"]) for f in failures] == [(4, "22"), (2, "7"), (1, "1")]
    assert "'ID.png'" in failures[0]["reason"] and failures[1]["reason"] == "no file named ID"
    assert _without_id("HTTP 500 (2 tries)", "500") == "HTTP 500 (2 tries)"


def test_stores_of_version_0_1_have_no_final_outcomes(sky_copy: Path) -> None:
    store = open_store(sky_copy)
    path = marker_path(sky_copy, 0)
    marker = json.loads(path.read_text())
    assert len(failed_rows(marker)) == 25
    del marker["no_coverage"]
    path.write_text(json.dumps(marker))
    assert len(failed_rows(marker)) == 51 and outcomes(store)["failed"] == 70 + 26
