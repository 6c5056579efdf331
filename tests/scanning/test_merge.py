"""What the parts left: the best of all in one order, and no part that is not whole."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galscan.core.errors import GalscanError
from galscan.scanning import merge, partitions, worker
from galscan.scanning.known_labels import KnownLabels
from galscan.stats.purity import AMBIGUOUS
from galscan.store import layout
from tests.helpers import tiny_store
from tests.small_scans import coarse_scorer, planned, scan


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


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_remove(path: Path) -> None:
    path.unlink()


def damage_shorten(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def damage_foreign(path: Path) -> None:
    table = pq.read_table(path).replace_schema_metadata({partitions.FINGERPRINT: b"another run"})
    pq.write_table(table, path)


def test_the_best_are_the_best_and_ties_have_one_order(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    scan(plan, client)
    merged = merge.merge(plan)[0]
    everything = pd.concat(
        [pd.read_parquet(partitions.scores_path(plan.out, p.number)).astype({"store": "str"}) for p in plan.partitions]
    )
    expected = everything.sort_values(["score", "store", "id"], ascending=[False, True, True], ignore_index=True)
    assert (
        expected["score"].iloc[99] == expected["score"].iloc[100]
    )  # the cut goes through a tie, or this shows nothing
    pd.testing.assert_frame_equal(merged.top.drop(columns="known"), expected.head(100))
    assert (merged.top["known"] == "").all()
    assert merged.histogram.total == merged.scored == 1795
    assert merged.quarantined == 5
    assert merged.reasons == {"blank image": 1, "no image": 2, "unreadable image": 2}


def test_known_labels_are_out_of_the_histogram_and_in_the_list(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    scan(plan, client)
    plain = merge.merge(plan)[0]
    best = plain.top.iloc[[0, 3, 50]]  # two of them in one store or the other
    number = best["store"].map({ref.name: k for k, ref in enumerate(plan.stores)}).to_numpy()
    worst = 700 - 1  # the last of the second store, far below the best
    rows = [np.sort(np.append(best["index"].to_numpy()[number == k], worst if k else [])).astype(int) for k in (0, 1)]
    known = KnownLabels(tuple(rows), tuple(np.where(r == worst, 1.0, AMBIGUOUS) for r in rows))
    merged = merge.merge(plan, [known])[0]
    assert merged.top["known"].iloc[[0, 3, 50]].tolist() == ["ambiguous"] * 3
    assert (merged.top["known"] != "").sum() == 3 and merged.known_beyond == (1, 1)
    assert merged.histogram.total == plain.histogram.total - 4 and merged.scored == plain.scored
    pd.testing.assert_frame_equal(merged.top.drop(columns="known"), plain.top.drop(columns="known"))


def test_the_merge_does_not_depend_on_the_order_of_parts(stores, client, tmp_path):
    plan = planned(stores, tmp_path / "run")
    scan(plan, client)
    expected = merge.merge(plan)[0]
    for seed in range(3):
        shuffled = list(plan.partitions)
        random.Random(seed).shuffle(shuffled)
        merged = merge.merge(dataclasses.replace(plan, partitions=tuple(shuffled)))[0]
        pd.testing.assert_frame_equal(merged.top, expected.top)
        np.testing.assert_array_equal(merged.histogram.counts, expected.histogram.counts)


@pytest.mark.parametrize("top", [1, 7, 5000])
def test_any_number_of_candidates(stores, client, tmp_path, top):
    plan = planned(stores, tmp_path / "run", top=top)
    scan(plan, client)
    best = merge.merge(plan)[0].top
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
    top = merge.merge(plan)[0].top
    assert len(top) == 80
    assert all(isinstance(value, str) for value in top["id"])


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_remove, damage_shorten, damage_foreign])
@pytest.mark.parametrize("where", [partitions.scores_path, partitions.quarantine_path])
def test_a_part_that_is_not_whole_is_done_again(stores, client, tmp_path, damage, where):
    plan = planned(stores[:1], tmp_path / "run")
    scan(plan, client)
    last = plan.partitions[-1]  # the one with quarantined objects
    whole = where(plan.out, last.number).read_bytes()
    damage(where(plan.out, last.number))
    assert merge.pending(plan) == [last]
    with pytest.raises(GalscanError, match="run the same command again"):
        merge.merge(plan)
    scan(plan, client)
    assert where(plan.out, last.number).read_bytes() == whole


def test_a_flipped_byte_is_not_merged(stores, client, tmp_path):
    plan = planned(stores[:1], tmp_path / "run")
    scan(plan, client)
    path = partitions.scores_path(plan.out, 0)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(6)
    assert column.path_in_schema == "score"
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(GalscanError, match="damaged"):
        merge.merge(plan)


def test_free_space_of_a_place_that_is_not_there_yet(tmp_path):
    assert merge.disk_free(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_remove, damage_shorten, damage_foreign])
def test_a_part_without_its_embeddings_is_not_done_where_they_are_asked_for(
    damage, stores, client, tmp_path, monkeypatch
):
    def seeing(images):
        return coarse_scorer(images)._replace(embedding=images.mean(axis=(1, 2)))

    monkeypatch.setattr(worker, "load_scorer", lambda job: seeing)
    plan = dataclasses.replace(planned(stores, tmp_path / "run"), embedding=3)
    scan(plan, client)
    assert merge.pending(plan) == []
    damage(partitions.embeddings_path(plan.out, 1))
    assert [partition.number for partition in merge.pending(plan)] == [1]
    before = partitions.scores_path(plan.out, 1).read_bytes()
    scan(plan, client)
    assert merge.pending(plan) == [] and partitions.scores_path(plan.out, 1).read_bytes() == before


def a_list(top: int) -> merge._Ranking:
    plan = SimpleNamespace(top=top, targets=["t"], stores=[])
    return merge._Ranking(plan, "t", SimpleNamespace(of=lambda store, index: np.full(len(index), np.nan)))


def rows_of(best: merge._Ranking, names: list[str], scores: list[float], stages: list[str] | None = None) -> np.ndarray:
    """Let a part pass, as the merge does; return which of its rows were kept."""
    score, stage = np.array(scores, np.float32), np.array(stages or [partitions.FULL] * len(names), object)
    some = best.count(None, score, stage, None)
    columns = {"score": score, "store": ["s"] * len(names), "id": names, "index": np.arange(len(names))}
    best.keep(pa.table({**columns, "first_look": score, "score_std": score}), some)
    return some


def test_what_ties_with_the_last_of_the_list_is_kept_until_names_decide():
    """Whatever the order of the parts: of equal scores the one whose name comes first is in the list."""
    late, early = [f"z{k}" for k in range(9)], ["a0", "a1"]
    lists = [a_list(2), a_list(2)]
    rows_of(lists[0], late, [1.0] * 9)
    assert lists[0].floor == 1.0  # the list is full, and its last has this score
    assert list(rows_of(lists[0], early, [1.0, 0.5])) == [0]
    rows_of(lists[1], early, [1.0, 0.5])
    rows_of(lists[1], late, [1.0] * 9)
    for best in lists:
        assert list(best.merged(0, {}).top["id"]) == ["a0", "z0"]


def test_the_audited_stand_for_all_that_were_discarded_and_ties_are_lost():
    """2 of 3 discarded objects for each that was audited: with the weight discarded / audited, whole counts."""
    best = a_list(2)
    stages = [partitions.FULL] * 3 + [partitions.RESCORED] * 3 + ["audit"] + ["prefilter"] * 8
    rows_of(best, [f"g{k}" for k in range(15)], [3.0, 2.0, 1.0, 2.0, 0.5, 0.5, -1.0] + [-np.inf] * 8, stages)
    merged = best.merged(0, {})
    assert (merged.discarded, merged.rescored, merged.discarded_histogram.total, merged.histogram.total) == (
        12,
        4,
        12,
        15,
    )
    centres = merged.discarded_histogram.centres
    assert (
        merged.discarded_histogram.counts[np.abs(centres - 0.5) < 0.06].sum() == 6
        and merged.discarded_histogram.n_scored.sum() == 4
    )
    assert merged.lost == 1  # as good as the last of the list
