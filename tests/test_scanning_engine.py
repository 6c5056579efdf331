"""The window of parts in flight, resume from what is on disk, and a merge that no order changes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.classify.bundle import FIRST_LOOK, Scores
from galscan.errors import GalscanError, Interrupted, StorageError
from galscan.scanning import engine, worker
from galscan.scanning.plan import Part, make_plan
from galscan.scanning.selection import Selection
from galscan.store import layout
from tests.helpers import tiny_bundle, tiny_store
from tests.test_scanning_plan import bundle


def coarse_scorer(images):
    """Score by brightness in few steps, so that there are many ties."""
    score = np.round(images.mean(axis=(1, 2, 3)) / 8).astype(np.float32)
    return Scores(score, np.zeros_like(score), np.stack([score], 1))


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def by_brightness(monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: coarse_scorer)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [
        tiny_store(folder / "a.zarr", 1100, 8, survey="zebra", unusable=5),
        tiny_store(folder / "b.zarr", 700, 8, survey="aardvark", seed=1),
    ]


def planned(stores, out, **options):
    model = options.pop("model", "/models/lane")
    plan = make_plan(stores, bundle(8, path=Path(model)), out=out, **{"top": 100} | options)
    plan.out.mkdir(parents=True)
    return plan


def scan(plan, client):
    return engine.run_scan(plan, client, engine.pending(plan))


def test_every_object_of_every_store_is_scored_or_quarantined_once(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    done = scan(plan, client)
    assert (done.scored, done.quarantined) == (1795, 5)
    assert done.seconds > 0
    seen = [
        pd.read_parquet(path(plan.out, part.number), columns=["store", "index"])
        for part in plan.parts
        for path in (worker.scores_path, worker.quarantine_path)
    ]
    rows = pd.concat([frame.astype({"store": "str"}) for frame in seen])
    assert sorted(zip(rows["store"], rows["index"], strict=True)) == sorted(
        (store.name, row) for store in stores for row in range(store.count)
    )
    ledger = [json.loads(line) for line in (plan.out / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["part"] for line in ledger) == [part.number for part in plan.parts]
    assert sum(line["scored"] for line in ledger) == 1795
    assert engine.pending(plan) == []


def test_the_best_are_the_best_and_ties_have_one_order(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    scan(plan, client)
    merged = engine.merge(plan)
    everything = pd.concat(
        [pd.read_parquet(worker.scores_path(plan.out, p.number)).astype({"store": "str"}) for p in plan.parts]
    )
    expected = everything.sort_values(["score", "store", "id"], ascending=[False, True, True], ignore_index=True)
    assert (
        expected["score"].iloc[99] == expected["score"].iloc[100]
    )  # the cut goes through a tie, or this shows nothing
    pd.testing.assert_frame_equal(merged.top, expected.head(100))
    assert merged.histogram.total == merged.scored == 1795
    assert merged.quarantined == 5
    assert merged.reasons == {"blank image": 1, "no image": 2, "unreadable image": 2}


def test_the_merge_does_not_depend_on_the_order_of_parts(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    scan(plan, client)
    expected = engine.merge(plan)
    for seed in range(3):
        shuffled = list(plan.parts)
        random.Random(seed).shuffle(shuffled)
        merged = engine.merge(dataclasses.replace(plan, parts=tuple(shuffled)))
        pd.testing.assert_frame_equal(merged.top, expected.top)
        np.testing.assert_array_equal(merged.histogram.counts, expected.histogram.counts)


@pytest.mark.parametrize("top", [1, 7, 5000])
def test_any_number_of_candidates(stores, client, tmp_path, top):
    plan = planned(stores, tmp_path / "run", top=top)
    scan(plan, client)
    best = engine.merge(plan).top
    assert len(best) == min(top, 1795)
    assert best["score"].is_monotonic_decreasing


def test_numbered_and_named_objects_can_be_scanned_together(client, tmp_path):
    numbered = tiny_store(tmp_path / "a.zarr", 40, 8)
    group = layout.create(
        tmp_path / "b.zarr", survey="named", count=40, size=8, id_dtype=np.dtype("<U8"), schemas={}, provenance={}
    )
    group["id"][:] = np.array([f"NGC {k}" for k in range(40)])
    group["images"][:] = numbered.images()
    layout.finish(tmp_path / "b.zarr", "named")
    plan = planned([numbered, layout.open_store(tmp_path / "b.zarr")], tmp_path / "run")
    scan(plan, client)
    top = engine.merge(plan).top
    assert len(top) == 80
    assert all(isinstance(value, str) for value in top["id"])


def test_a_scan_goes_on_from_the_parts_that_are_there(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    first = list(plan.parts)[:3]
    engine.run_scan(plan, client, first)
    before = {part.number: worker.scores_path(plan.out, part.number).stat().st_mtime_ns for part in first}
    (plan.out / "scores" / ".part-00004.parquet.abcd.tmp").write_bytes(b"half")
    assert engine.pending(plan) == list(plan.parts)[3:]
    assert not list((plan.out / "scores").glob(".*.tmp"))
    scan(plan, client)
    assert before == {part.number: worker.scores_path(plan.out, part.number).stat().st_mtime_ns for part in first}
    assert engine.merge(plan).scored == 1795


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_remove(path: Path) -> None:
    path.unlink()


def damage_shorten(path: Path) -> None:
    table = worker.pq.read_table(path)
    worker.pq.write_table(table.slice(1), path)


def damage_foreign(path: Path) -> None:
    table = worker.pq.read_table(path).replace_schema_metadata({worker.FINGERPRINT: b"another run"})
    worker.pq.write_table(table, path)


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_remove, damage_shorten, damage_foreign])
@pytest.mark.parametrize("where", [worker.scores_path, worker.quarantine_path])
def test_a_part_that_is_not_whole_is_done_again(stores, client, tmp_path, damage, where):
    plan = planned(stores[:1], tmp_path / "run")
    scan(plan, client)
    last = plan.parts[-1]  # the one with quarantined objects
    whole = where(plan.out, last.number).read_bytes()
    damage(where(plan.out, last.number))
    assert engine.pending(plan) == [last]
    with pytest.raises(GalscanError, match="run the same command again"):
        engine.merge(plan)
    scan(plan, client)
    assert where(plan.out, last.number).read_bytes() == whole


def test_a_flipped_byte_is_not_merged(stores, client, tmp_path):
    plan = planned(stores[:1], tmp_path / "run")
    scan(plan, client)
    path = worker.scores_path(plan.out, 0)
    data = bytearray(path.read_bytes())
    column = worker.pq.ParquetFile(path).metadata.row_group(0).column(6)
    assert column.path_in_schema == "score"
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(GalscanError, match="damaged"):
        engine.merge(plan)


def test_few_parts_are_in_flight_however_many_there_are(stores, client, tmp_path):
    plan = planned(stores[:1], tmp_path / "run")
    many = [Part(k, 0, k, k + 1) for k in range(60)]
    plan = dataclasses.replace(plan, parts=tuple(many))
    in_flight = []
    real = client.submit

    class Watched:
        def __getattr__(self, name):
            return getattr(client, name)

        def submit(self, *args, **kwargs):
            in_flight.append(len(client.futures))
            return real(*args, **kwargs)

    assert engine.run_scan(plan, Watched(), many).scored == 60
    assert max(in_flight) <= engine._window(client) == 4


def test_an_error_names_the_part_and_says_that_the_rest_is_kept(stores, client, tmp_path, monkeypatch):
    plan = planned(stores[:1], tmp_path / "run")
    seen = []

    def second_fails(images):
        seen.append(len(images))
        if len(seen) == 2:
            raise RuntimeError("shapes do not match\nand more")
        return coarse_scorer(images)

    monkeypatch.setattr(worker, "load_scorer", lambda job: second_fails)
    with pytest.raises(
        GalscanError,
        match=r"part 1 \(rows 256-511 of .*a\.zarr\) failed with RuntimeError: shapes do not match; .*kept",
    ) as caught:
        scan(plan, client)
    assert "\n" not in str(caught.value)
    assert worker.scores_path(plan.out, 0).exists()
    assert all(state.status != "pending" for state in client.futures.values())  # nothing goes on in the background


def test_a_full_disk_on_a_worker_stays_a_storage_error_of_one_line(stores, client, tmp_path, monkeypatch):
    plan = planned(stores[:1], tmp_path / "run")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker.pq, "write_table", full)
    with pytest.raises(StorageError, match=r"disk is full.*part \d") as caught:
        scan(plan, client)
    assert "\n" not in str(caught.value)


def test_a_part_that_kills_its_workers_or_never_ends_is_set_aside_whole(stores, client, tmp_path):
    from distributed import KilledWorker

    plan = planned(stores[:1], tmp_path / "run")

    class Future:
        status = "error"

        def exception(self):
            return KilledWorker("key", None, 3)

    job, part = worker.Job.of(plan), plan.parts[2]
    report = engine._report(plan, part, Future(), job, 0)
    assert (report.scored, report.quarantined) == (0, part.count)
    table = pd.read_parquet(worker.quarantine_path(plan.out, 2))
    assert set(table["reason"]) == {worker.FATAL} and list(table["index"]) == list(range(512, 768))
    assert len(pd.read_parquet(worker.scores_path(plan.out, 2))) == 0 and engine._done(plan, part)
    Future.status = "cancelled"
    with pytest.raises(GalscanError, match=r"cluster was lost at part 2 .*kept"):
        engine._report(plan, part, Future(), job, 0)
    engine._report(plan, plan.parts[1], Future(), job, engine.STRIKES)
    assert set(pd.read_parquet(worker.quarantine_path(plan.out, 1))["reason"]) == {worker.SILENT}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_interrupted_and_handlers_come_back(number):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="run the same command again"), engine.interruptible():
        os.kill(os.getpid(), number)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before
    assert Interrupted.exit_code == 130


def test_free_space_of_a_place_that_is_not_there_yet(tmp_path):
    assert engine.disk_free(tmp_path / "a" / "b") > 0


def test_only_the_chosen_are_scored(stores, client, tmp_path):
    chosen = Selection(where="dec > 0")
    plan = planned(stores, tmp_path / "run", selection=chosen)
    done = scan(plan, client)
    north = sum(int((store.column("dec") > 0).sum()) for store in stores)
    assert done.scored + done.quarantined == north < plan.objects
    merged = engine.merge(plan)
    assert (merged.top["dec"] > 0).all() and merged.scored + merged.quarantined == north
    assert engine.pending(plan) == []
    limited = planned(stores, tmp_path / "few", limit=1200)
    assert scan(limited, client).scored == 1200 - 5
    assert limited.fingerprint != plan.fingerprint != planned(stores, tmp_path / "all").fingerprint


def noisy(images):
    """Stand in for a first look: the full score but for a little noise."""
    full = coarse_scorer(images).score
    return full + np.random.default_rng(len(images)).normal(0, 0.1, len(full)).astype(np.float32)


def cascaded(store, client, out, monkeypatch, **options):
    """Scan with a first look; return plan and merged."""
    cut = float(np.quantile(coarse_scorer(store.images()).score, 0.95)) - 0.5
    monkeypatch.setattr(worker, "_first_look", lambda job: (noisy, cut))
    plan = planned([store], out, cascade=True, **options)
    engine.run_scan(plan, client, engine.pending(plan), plan.out / FIRST_LOOK)
    return plan, engine.merge(plan)


def test_a_first_look_discards_and_a_hundredth_is_audited(client, tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 6000, 8, unusable=10)
    plan, merged = cascaded(store, client, tmp_path / "run", monkeypatch, top=40)
    rows = pd.concat([pd.read_parquet(worker.scores_path(plan.out, p.number)) for p in plan.parts])
    by_stage = rows.groupby("stage", observed=True)
    assert len(rows) == merged.scored == 5990 and set(rows["stage"]) == set(worker.STAGES)
    assert by_stage["score"].count()["first look"] == 0
    assert by_stage["first_look"].max()["first look"] < by_stage["first_look"].min()["full"]
    assert np.isfinite(rows.loc[rows["stage"] != "first look", "score"]).all()
    assert merged.discarded == (rows["stage"] != "full").sum() and merged.audited == (rows["stage"] == "audit").sum()
    assert 0.004 < merged.audited / merged.discarded < 0.02
    # The audited stand for all that were discarded, so that the distribution of scores stays whole.
    assert merged.histogram.total == pytest.approx(5990, rel=0.35)
    full = planned([store], tmp_path / "full", top=40)
    scan(full, client)
    best = engine.merge(full).top
    assert set(best["id"]) == set(merged.top["id"]) and merged.lost == 0


def test_a_resumed_scan_audits_the_same_objects(client, tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 3000, 8)
    plan, merged = cascaded(store, client, tmp_path / "run", monkeypatch)
    before = worker.scores_path(plan.out, 1).read_bytes()
    worker.scores_path(plan.out, 1).unlink()
    engine.run_scan(plan, client, engine.pending(plan), plan.out / FIRST_LOOK)
    assert worker.scores_path(plan.out, 1).read_bytes() == before
    pd.testing.assert_frame_equal(engine.merge(plan).top, merged.top)


@pytest.fixture
def untaught(tmp_path):
    """The folder of a model whose first look has learnt nothing."""
    from galscan.classify.cascade import FirstLook, TinyNet, save_first_look

    (tmp_path / "model").mkdir()
    save_first_look(FirstLook(TinyNet()), tmp_path / "model" / FIRST_LOOK)
    return tmp_path / "model"


def test_the_cut_is_set_by_what_did_not_teach_and_kept(client, tmp_path, monkeypatch, untaught):
    from galscan.classify.cascade import load_first_look, teaches

    store = tiny_store(tmp_path / "s.zarr", 6000, 8)
    seen = []
    monkeypatch.setattr(worker, "_first_look", lambda job: (lambda images: seen.append(images) or noisy(images), 0.0))
    plan = planned([store], tmp_path / "run", cascade=True, top=30, model=untaught)
    path = engine.first_look(plan, client)
    look = load_first_look(path)
    taught = teaches(store.column("id"))
    assert 0.45 < taught.mean() < 0.55 and look.sample == (~taught).sum()  # all there are: fewer than it asks for
    for image in np.concatenate(seen)[:50]:
        assert not taught[(store.images() == image).all(axis=(1, 2, 3))].any()
    best = coarse_scorer(store.images()).score
    passed = noisy(store.images()) >= look.cut
    assert passed[np.argsort(-best)[:30]].all() and look.passes == pytest.approx(passed.mean(), abs=0.05) and look.pays
    before = path.read_bytes()
    assert engine.first_look(plan, client).read_bytes() == before


def test_the_share_of_candidates_is_that_of_the_chosen(client, tmp_path, monkeypatch, untaught):
    """Of a survey of which a third is chosen, the best make three times as large a share."""
    from galscan.classify import cascade

    shares = []
    real = cascade.set_cut
    monkeypatch.setattr(cascade, "set_cut", lambda *args: (shares.append(args[-1]), real(*args))[1])
    monkeypatch.setattr(worker, "_first_look", lambda job: (noisy, 0.0))
    store = tiny_store(tmp_path / "s.zarr", 9000, 8)
    for name, where in (("all", ""), ("third", "dec > 20")):
        chosen = Selection(where=where)
        plan = planned([store], tmp_path / name, top=60, selection=chosen, cascade=True, model=untaught)
        engine.first_look(plan, client)
    chosen = float((store.column("dec") > 20).mean())
    assert shares[0] == pytest.approx(60 / 9000, rel=0.1)
    assert shares[1] == pytest.approx(60 / 9000 / chosen, rel=0.15) and 0.2 < chosen < 0.5


def test_networks_are_converted_where_that_pays(tmp_path, monkeypatch):
    from galscan.classify.bundle import open_bundle
    from galscan.classify.cascade import FirstLook, TinyNet, save_first_look

    pytest.importorskip("openvino", reason="needs the extra 'fast'")
    store = tiny_store(tmp_path / "s.zarr", 300, 32)
    (tmp_path / "m").mkdir()
    save_first_look(FirstLook(TinyNet()), tmp_path / "m" / FIRST_LOOK)
    plan = make_plan([store], tiny_bundle(tmp_path / "m"), out=tmp_path / "run", precision="fp32", cascade=True)
    plan.out.mkdir()
    engine.convert_networks(plan, plan.out)
    assert not worker.Job.of(plan).converted
    monkeypatch.setattr(engine, "CONVERTED", 300)
    engine.convert_networks(plan, plan.out)
    job = worker.Job.of(plan, plan.out / FIRST_LOOK)
    assert job.converted and sorted(p.name for p in plan.out.iterdir()) == [
        "first-look.bin", "first-look.xml", "network.bin", "network.xml",
    ]  # fmt: skip
    monkeypatch.undo()
    save_first_look(FirstLook(TinyNet(), 0.5), plan.out / FIRST_LOOK)
    images = store.images()
    got, plain = worker.load_scorer(job)(images), open_bundle(tmp_path / "m").scorer("cpu", "fp32")(images)
    np.testing.assert_allclose(got.score, plain.score, atol=1e-4)
    assert worker._first_look(job)[1] == 0.5
