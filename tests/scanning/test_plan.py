"""The plan: every row once, one fingerprint for one result, and stores that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.scanning import plan as plans
from galscan.scanning import prepare
from galscan.store import layout
from tests.helpers import tiny_store


def bundle(size=32, **changes):
    values = {
        "path": Path("/models/lane"),
        "target": "dustlane",
        "size": size,
        "answers": ["bulge"],
        "schema": load_schema("simulated"),
        "model_hash": "m" * 64,
        "prefilter": Path("/models/lane/prefilter.safetensors"),
    }
    recipe = SimpleNamespace(hash="r" * 64, scan=SimpleNamespace(top=1000, precision="bf16", batch=256))
    return SimpleNamespace(**values | {"recipe": recipe} | changes)


def fake_store(name: str, count: int, size: int = 32):
    shard = layout.shard_size(count)
    store = object.__new__(layout.Store)
    store.path, store.count, store.size, store.shard = Path(f"/stores/{name}.zarr"), count, size, shard
    store.attrs = {"survey": name, "content_hash": f"hash of {name}"}
    return store


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=4))
def test_every_row_is_in_exactly_one_part(counts):
    plan = plans.make_plan([fake_store(f"s{k}", count) for k, count in enumerate(counts)], [bundle()])
    assert [partition.number for partition in plan.partitions] == list(range(len(plan.partitions)))
    for k, count in enumerate(counts):
        rows = [
            row
            for partition in plan.partitions
            if partition.store == k
            for row in range(partition.start, partition.stop)
        ]
        assert rows == list(range(count))
    assert plan.objects == sum(counts)
    assert plan.bytes == sum(counts) * 32 * 32 * 3
    assert all(0 < partition.count <= layout.MAX_SHARD for partition in plan.partitions)


@given(st.lists(st.integers(10**6, 3 * 10**9), min_size=1, max_size=4), st.integers(1, 10**10))
@settings(max_examples=10, deadline=None)
def test_a_billion_objects_stay_under_so_many_parts_and_all_but_the_last_are_whole_shards(counts, limit):
    stores = [fake_store(f"s{k}", count) for k, count in enumerate(counts)]
    plan = plans.make_plan(stores, [bundle()], limit=limit)
    assert len(plan.partitions) <= plans.MAX_PARTITIONS + len(stores) + 3 * plans.LAST
    assert plan.objects == min(sum(counts), limit)
    assert all(partition.start % layout.MAX_SHARD == 0 for partition in plan.partitions[: -4 * plans.LAST])
    assert all(partition.start % layout.CHUNK == 0 for partition in plan.partitions)
    assert all(a.stop == b.start for a, b in pairwise(plan.partitions) if a.store == b.store)


def test_the_last_parts_are_small_so_that_workers_end_together():
    plan = plans.make_plan([fake_store("a", 100_000)], [bundle()])
    counts = [partition.count for partition in plan.partitions]
    assert set(counts[:-16]) == {layout.MAX_SHARD} and set(counts[-16:-4]) == {layout.MAX_SHARD // 4}
    assert sum(counts[-4:]) == 100_000 % layout.MAX_SHARD and max(counts[-4:]) == 512


def test_a_first_look_is_for_large_surveys():
    small, large = ([fake_store("a", n)] for n in (plans.LARGE - 1, plans.LARGE))
    assert [plans.make_plan(s, [bundle()]).cascade for s in (small, large)] == [False, True]
    without = bundle(prefilter=None)
    assert not plans.make_plan(large, [without]).cascade
    with pytest.raises(InputError, match="--cascade: /models/lane has no prefilter"):
        plans.make_plan(large, [without], cascade=True)
    on, off = (plans.make_plan(large, [bundle()], cascade=c) for c in (True, False))
    assert (on.cascade, off.cascade) == (True, False) and on.fingerprint != off.fingerprint


def test_the_fingerprint_follows_what_decides_the_result_and_nothing_else():
    stores = [fake_store("a", 600)]
    plan = plans.make_plan(stores, [bundle()], top=50)
    assert (
        plans.make_plan(stores, [bundle(path=Path("/elsewhere"))], top=50, device="cpu", out="x").fingerprint
        == plan.fingerprint
    )
    others = [
        plans.make_plan(stores, [bundle()], top=51),
        plans.make_plan(stores, [bundle()], top=50, precision="fp32"),
        plans.make_plan(stores, [bundle(model_hash="n" * 64)], top=50),
        plans.make_plan([fake_store("b", 600)], [bundle()], top=50),
        plans.make_plan([*stores, fake_store("b", 600)], [bundle()], top=50),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_the_version_is_part_of_the_fingerprint(monkeypatch):
    old = plans.make_plan([fake_store("a", 10)], [bundle()]).fingerprint
    monkeypatch.setattr("galscan.scanning.plan.__version__", "99.0")
    assert plans.make_plan([fake_store("a", 10)], [bundle()]).fingerprint != old


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_a_default_run_folder_has_a_name_that_home_accepts(monkeypatch, name):
    monkeypatch.setenv("GALSCAN_HOME", "/tmp/home")
    plan = plans.make_plan([fake_store("a", 10)], [bundle()])
    named = replace(plan, stores=(replace(plan.stores[0], name=name),))
    assert named.out.parent == Path("/tmp/home/runs")
    assert named.out.name.endswith(named.fingerprint[:8])


def test_a_store_of_fewer_pixels_says_both_sizes_and_the_cure(tmp_path):
    store = tiny_store(tmp_path / "a.zarr", 20, 24)
    with pytest.raises(InputError, match=r"24 px.*32 px.*galscan ingest --size 32.*size = 24 or less"):
        plans.make_plan([store], [bundle(32)])


def test_stores_of_more_pixels_are_scanned_too_and_all_of_them_are_read():
    plan = plans.make_plan([fake_store("a", 10, 48), fake_store("b", 20, 32)], [bundle(32)])
    assert plan.size == 32 and plan.bytes == 3 * (10 * 48**2 + 20 * 32**2)
    assert "10 objects, 32 px, resampled from 48 px" in prepare.describe(plan, "2 processes")
    assert prepare.worker_memory(plan) > prepare.worker_memory(plans.make_plan([fake_store("b", 20)], [bundle(32)]))


def test_the_same_store_twice_is_refused(tmp_path):
    store = tiny_store(tmp_path / "a.zarr", 20)
    copy = layout.open_store(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="twice"):
        plans.make_plan([store, copy], [bundle()])
    with pytest.raises(InputError, match="twice"):
        plans.make_plan([store, store], [bundle()])


def test_two_stores_of_one_name_are_refused(tmp_path):
    stores = [tiny_store(tmp_path / "a.zarr", 20, seed=0), tiny_store(tmp_path / "b.zarr", 20, seed=1)]
    with pytest.raises(InputError, match=r"both named 'tiny'.*--name"):
        plans.make_plan(stores, [bundle()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "at least 1"),
        ({"device": "cudaa"}, "did you mean 'cuda'"),
        ({"precision": "fp16"}, "fp32"),
        ({"limit": 0}, "at least 1 object"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        plans.make_plan([fake_store("a", 10)], [bundle()], **options)


def test_no_store_is_refused():
    with pytest.raises(InputError, match=r"--survey.*--store"):
        plans.make_plan([], [bundle()])


def test_embeddings_are_counted_named_and_keep_the_first_look_away(monkeypatch):
    monkeypatch.setattr(plans, "embedding_size", lambda bundle: 128)
    stores = [fake_store("a", 1_000_000)]
    plain, seen = (plans.make_plan(stores, [bundle()], embeddings=which, out="/run") for which in (False, True))
    assert plain.cascade and not seen.cascade and plain.fingerprint != seen.fingerprint
    assert "embeddings" not in plain.identity
    assert prepare.output_bytes(seen) - prepare.output_bytes(plain) == 256_000_000
    assert "128 numbers per object, 256 MB" in prepare.describe(seen, "2 processes")
    prepare.check_fit(plain, None, 0, 100_000_000)
    with pytest.raises(InputError, match="--limit") as refused:
        prepare.check_fit(seen, None, 0, 100_000_000)
    limit = int(str(refused.value).split("--limit ")[1].replace(",", ""))
    prepare.check_fit(plans.make_plan(stores, [bundle()], embeddings=True, limit=limit), None, 0, 100_000_000)
    with pytest.raises(InputError, match="--cascade: objects discarded by a prefilter have no embedding"):
        plans.make_plan(stores, [bundle()], embeddings=True, cascade=True)
