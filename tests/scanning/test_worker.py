"""One part: every object scored or quarantined with a reason, never neither, never both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from galscan.core.errors import GalscanError
from galscan.models.ensemble import load_scorer
from galscan.scanning import worker
from galscan.scanning.partitions import FATAL, FINGERPRINT, embeddings_path, scores_path
from galscan.scanning.plan import PIECE, ModelRef, Partition
from galscan.store import layout
from galscan.surveys.base import Flag
from galscan.surveys.resampling import resample
from tests.helpers import tiny_bundle, tiny_store
from tests.small_scans import make_job, mean_scorer, tables, whole


def ref_of(bundle) -> ModelRef:
    return ModelRef(bundle.target, str(bundle.path), bundle.model_hash, bundle.recipe.hash)


@pytest.fixture
def by_brightness(monkeypatch):
    monkeypatch.setattr(worker, "load_scorer", lambda job: mean_scorer)


def test_every_object_is_scored_once_with_its_own_image(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 2 * PIECE + 300, 16, unusable=7)
    report = worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    scores, quarantine = tables(tmp_path / "run")
    assert (report.scored, report.quarantined) == (len(scores), len(quarantine)) == (store.count - 7, 7)
    assert sorted([*scores["index"], *quarantine["index"]]) == list(range(store.count))
    np.testing.assert_allclose(scores["score"], store.images()[scores["index"]].mean(axis=(1, 2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(scores["two"], 2 * scores["one"])
    for name in ("id", "ra", "dec"):
        np.testing.assert_array_equal(scores[name], store.column(name)[scores["index"]])
    assert set(quarantine["reason"]) == {"no image", "unreadable image", "blank image"}
    np.testing.assert_array_equal(quarantine["flags"], store.column("flags")[-7:])
    assert scores["score"].dtype == scores["one"].dtype == np.float32
    assert set(scores["store"]) == {"tiny"}


def test_only_the_rows_of_the_part_are_touched(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 700, 16)
    worker.score_partition(Partition(3, 0, 256, 512), make_job(store, tmp_path / "run"))
    scores, _ = tables(tmp_path / "run", 3)
    assert list(scores["index"]) == list(range(256, 512))


def test_constant_images_are_quarantined_though_no_flag_says_so(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 300, 16)
    group = layout.zarr.open_group(store.path, mode="r+")
    group["images"][5] = 77
    group["images"][6] = np.broadcast_to(np.uint8([10, 20, 30]), (16, 16, 3))  # one colour all over
    stripe = np.full((16, 16, 3), 9)
    stripe[0, 0, 0] = 200
    group["images"][7] = stripe  # constant but for one pixel: there is something in it
    worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    _, quarantine = tables(tmp_path / "run")
    assert list(quarantine["index"]) == [5, 6]
    assert set(quarantine["reason"]) == {"blank image"}
    assert (quarantine["flags"].to_numpy() & np.uint8(Flag.BLANK)).all()


def test_larger_images_are_resampled_once_for_all_networks_and_faults_are_those_of_the_stored(tmp_path, monkeypatch):
    seen = []

    def scorer(images):
        seen.append(images)
        return mean_scorer(images)

    monkeypatch.setattr(worker, "load_scorer", lambda job: scorer)
    monkeypatch.setattr(worker, "_prefilter", lambda job: (lambda images: scorer(images).score, np.float32([60])))
    store = tiny_store(tmp_path / "s.zarr", PIECE + 60, 24, unusable=9)
    group = layout.zarr.open_group(store.path, mode="r+")
    group["images"][5], group["images"][6] = 77, 0
    faint = np.zeros((24, 24, 3), np.uint8)
    faint[0, 0] = 1  # nothing of it is left at 16 px, but something is stored
    group["images"][7] = faint
    store = layout.open_store(store.path)
    small = resample(store.images(), 16)
    resampled = []

    def counted(images, *given):
        resampled.append(len(images))
        return resample(images, *given)

    monkeypatch.setattr(worker, "resample", counted)
    worker.score_partition(
        whole(store), make_job(store, tmp_path / "run", size=16, prefilters=("one",), precision="fp32")
    )
    scores, quarantine = tables(tmp_path / "run")
    assert sum(resampled) == store.count - 9
    assert list(quarantine["index"])[:2] == [5, 6] and 7 in set(scores["index"])
    assert {images.shape[1:] for images in seen} == {(16, 16, 3)}
    full = scores[scores["stage"].isin(["full", "rescored"])]
    np.testing.assert_array_equal(full["score"], mean_scorer(small[full["index"]]).score[:, 0])
    got = worker.usable_images(0, slice(0, 20), make_job(store, tmp_path / "run", size=16), untrained=False)
    np.testing.assert_array_equal(got, small[[*range(5), *range(7, 20)]])


def test_a_score_that_is_no_number_is_quarantined(tmp_path, monkeypatch):
    def odd(images):
        got = mean_scorer(images)
        got.score[::10] = np.resize([np.nan, np.inf, -np.inf], (len(got.score[::10]), 1))
        return got

    monkeypatch.setattr(worker, "load_scorer", lambda job: odd)
    store = tiny_store(tmp_path / "s.zarr", 100, 16)
    worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    scores, quarantine = tables(tmp_path / "run")
    assert list(quarantine["index"]) == list(range(0, 100, 10))
    assert set(quarantine["reason"]) == {worker.NONFINITE_SCORE}
    assert np.isfinite(scores["score"]).all()


def test_a_store_without_one_usable_image_gives_an_empty_part(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 30, 16, unusable=30)
    report = worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    scores, quarantine = tables(tmp_path / "run")
    assert (len(scores), len(quarantine), report.scored) == (0, 30, 0)
    assert list(scores.columns) == [
        "store",
        "index",
        "id",
        "ra",
        "dec",
        "flags",
        "score",
        "score_std",
        "first_look",
        "stage",
        "one",
        "two",
    ]


def test_a_device_out_of_memory_gets_smaller_batches_and_the_same_scores(tmp_path, monkeypatch):
    import torch

    sizes = []

    def small_device(images):
        sizes.append(len(images))
        if len(images) > 13:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return mean_scorer(images)

    monkeypatch.setattr(worker, "load_scorer", lambda job: small_device)
    store = tiny_store(tmp_path / "s.zarr", 200, 16)
    worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    scores, _ = tables(tmp_path / "run")
    assert len(scores) == 200
    np.testing.assert_allclose(scores["score"], store.images().mean(axis=(1, 2, 3)), rtol=1e-6)
    assert sizes[:4] == [100, 50, 25, 12] and max(sizes[3:]) == 12  # tried once, not again for every batch


def test_a_device_without_memory_for_one_image_is_one_clear_error(tmp_path, monkeypatch):
    import torch

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "load_scorer", lambda job: full)
    store = tiny_store(tmp_path / "s.zarr", 20, 16)
    with pytest.raises(GalscanError, match="a batch of 1 image"):
        worker.score_partition(whole(store), make_job(store, tmp_path / "run"))


def test_other_errors_of_the_network_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    def broken(images):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(worker, "load_scorer", lambda job: broken)
    store = tiny_store(tmp_path / "s.zarr", 20, 16)
    with pytest.raises(RuntimeError, match="shapes"):
        worker.score_partition(whole(store), make_job(store, tmp_path / "run"))


def test_a_damaged_chunk_goes_to_quarantine_and_the_rest_is_scored(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 3 * 4096, 8)  # shards of 1536: six chunks each
    assert store.shard == 1536
    shard = store.path / "images" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[40:80] = bytes(40)  # within the first chunk of the second shard
    shard.write_bytes(data)
    partition = Partition(1, 0, 1536, 3072)
    worker.score_partition(partition, make_job(store, tmp_path / "run"))
    scores, quarantine = tables(tmp_path / "run", 1)
    assert list(quarantine["index"]) == list(range(1536, 1536 + 256))
    assert set(quarantine["reason"]) == {worker.DAMAGED}
    assert (quarantine["flags"].to_numpy() & np.uint8(Flag.UNREADABLE)).all()
    assert len(scores) == 1536 - 256


def test_a_failing_disk_is_an_error_and_not_a_reason_for_quarantine(tmp_path, by_brightness, monkeypatch):
    store = tiny_store(tmp_path / "s.zarr", 20, 16)

    def fail(self, rows=None):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(layout.Store, "images", fail)
    with pytest.raises(OSError, match="Input/output"):
        worker.score_partition(whole(store), make_job(store, tmp_path / "run"))
    assert not scores_path(tmp_path / "run", 0).exists()


def test_a_store_that_changed_since_the_plan_is_noticed(tmp_path, by_brightness):
    store = tiny_store(tmp_path / "s.zarr", 20, 16)
    job = make_job(store, tmp_path / "run")
    tiny_store(tmp_path / "s.zarr", 20, 16, seed=1)
    with pytest.raises(GalscanError, match="changed since the scan"):
        worker.score_partition(whole(store), job)


def test_the_network_is_loaded_once_and_must_be_the_planned_one(tmp_path):
    bundle = tiny_bundle(tmp_path / "model", size=32)
    store = tiny_store(tmp_path / "s.zarr", 20)
    job = make_job(store, tmp_path / "run", models=(ref_of(bundle),))
    assert worker.load_scorer(job) is worker.load_scorer(job)
    with pytest.raises(GalscanError, match="changed since the scan"):
        worker.load_scorer(make_job(store, tmp_path / "run", models=(replace(ref_of(bundle), model_hash="another"),)))


def test_a_real_network_scores_as_it_does_by_hand(tmp_path):
    bundle = tiny_bundle(tmp_path / "model", size=32)
    store = tiny_store(tmp_path / "s.zarr", 150)
    job = make_job(store, tmp_path / "run", models=(ref_of(bundle),), answers=tuple(bundle.answers))
    worker.score_partition(whole(store), job)
    scores, _ = tables(tmp_path / "run")
    by_hand = load_scorer([bundle], "cpu", "fp32")(store.images())
    np.testing.assert_allclose(scores["score"], by_hand.score[:, 0], atol=1e-4)
    np.testing.assert_allclose(scores[bundle.answers], by_hand.answers, atol=1e-3)


def test_embeddings_are_row_by_row_those_of_the_scores(tmp_path):
    bundle = tiny_bundle(tmp_path / "model", size=32, members=2)
    store = tiny_store(tmp_path / "s.zarr", 150, unusable=4)
    job = make_job(
        store, tmp_path / "run", models=(ref_of(bundle),), answers=tuple(bundle.answers), embedding=64, batch=64
    )
    worker.score_partition(whole(store), job)
    scores, _ = tables(tmp_path / "run")
    table = pq.read_table(embeddings_path(tmp_path / "run", 0))
    got = np.frombuffer(table["embedding"].combine_chunks().buffers()[1], "<f2").reshape(-1, 64)
    images = store.images()[scores["index"]]
    by_hand = load_scorer([bundle], "cpu", "fp32", embeddings=True)(images).embedding
    assert len(got) == 146 and got.std() > 0
    np.testing.assert_allclose(got, by_hand, atol=2e-3)
    assert table.schema.metadata[FINGERPRINT] == b"f" * 64
    assert load_scorer([bundle], "cpu", "fp32")(images).embedding is None


def test_a_part_without_one_usable_image_or_set_aside_has_no_embedding(tmp_path):
    bundle = tiny_bundle(tmp_path / "model", size=32)
    store = tiny_store(tmp_path / "s.zarr", 30, unusable=30)
    job = make_job(store, tmp_path / "run", models=(ref_of(bundle),), answers=tuple(bundle.answers), embedding=64)
    for do in (
        lambda: worker.score_partition(whole(store), job),
        lambda: worker.quarantine_partition(whole(store), job, FATAL),
    ):
        do()
        path = embeddings_path(tmp_path / "run", 0)
        assert pq.read_metadata(path).num_rows == len(tables(tmp_path / "run")[0]) == 0
        path.unlink()
