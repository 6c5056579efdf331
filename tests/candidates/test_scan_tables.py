from __future__ import annotations

import numpy as np
import pytest

from galscan.candidates import scan_tables
from galscan.core.errors import InputError
from galscan.core.files import read_json
from tests.candidate_tables import scanned_run


@pytest.fixture
def run(tmp_path):
    return scanned_run(tmp_path)


def test_parts_hold_everything_once(run):
    info = read_json(run / "run.json")
    rows = [n for _, part in scan_tables.iter_partitions(run, info, ["index"], "x") for n in part["index"].to_pylist()]
    aside = [
        n
        for _, p in scan_tables.iter_partitions(run, info, ["index"], "x", quarantined=True)
        for n in p["index"].to_pylist()
    ]
    assert sorted(rows + aside) == list(range(600)) and len(aside) == 9


def test_a_part_that_is_missing_damaged_or_of_another_scan(run):
    info = read_json(run / "run.json")
    path = run / "scores" / "part-00001.parquet"
    whole = bytearray(path.read_bytes())
    whole[40:6000] = bytes(5960)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="part-00001"):
        list(scan_tables.iter_partitions(run, info, ["id", "ra", "score"], "x"))
    path.unlink()
    with pytest.raises(InputError, match="is missing, or of another scan"):
        list(scan_tables.iter_partitions(run, info, ["ra"], "x"))
    with pytest.raises(InputError, match="of another scan"):
        list(scan_tables.iter_partitions(run, info | {"fingerprint": "e" * 64}, ["ra"], "x"))


def test_stores_must_be_those_that_were_scanned(run):
    info = read_json(run / "run.json")
    assert list(scan_tables.open_stores(info)) == ["sky"]
    other = [entry | {"content_hash": "e" * 64} for entry in info["stores"]]
    with pytest.raises(InputError, match="changed since the scan"):
        scan_tables.open_stores(info | {"stores": other})
    with pytest.raises(InputError, match="no store at"):
        scan_tables.open_stores(info | {"stores": [entry | {"path": "/nowhere"} for entry in info["stores"]]})


def test_pictures_come_in_the_order_of_the_store_and_are_the_right_ones(run):
    stores = scan_tables.open_stores(read_json(run / "run.json"))
    rows = np.random.default_rng(0).permutation(590)[:80]
    found = list(scan_tables.read_images(stores, [("sky", int(row)) for row in [*rows, rows[3]]]))
    assert [rows[k % 80 if k < 80 else 3] for k, _ in found] == sorted([*rows, rows[3]])
    whole = stores["sky"].images()
    assert all(np.array_equal(image, whole[[*rows, rows[3]][k]]) for k, image in found)
    assert all(image.base is None for _, image in found)  # a view would keep its neighbours in memory
    assert list(scan_tables.read_images(stores, [])) == []
