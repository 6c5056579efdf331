"""The nearest of a survey: exactly those that comparing with everything gives, whatever the parts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.candidates.similar import DIGITS, EmbeddingSpace, similarity, unit
from galscan.core.errors import InputError
from galscan.scanning.partitions import (
    EMBEDDING,
    FINGERPRINT,
    as_bytes,
    embeddings_path,
    quarantine_path,
    scores_path,
    write_rows,
)
from tests.candidate_tables import info, run_of

SEEN = {FINGERPRINT: info()["fingerprint"].encode()}


def write(run: Path, parts: list[np.ndarray], ids=None, stores=None) -> EmbeddingSpace:
    """Write a scan of these embeddings; ids number the objects from 100 on, each store from row 0 on."""
    at, number = 0, 100
    for k, vectors in enumerate(parts):
        n = len(vectors)
        name = "sky" if stores is None else stores[k]
        every = np.ones(n, bool)
        own = np.arange(number, number + n) if ids is None else pa.array(ids[at : at + n])
        columns = {
            "store": pa.array([name] * n, pa.string()), "index": np.arange(at, at + n), "id": own, "ra": np.zeros(n),
            "dec": np.zeros(n), "flags": np.zeros(n, np.uint8), "visible_dust": np.arange(at, at + n, dtype=np.float32),
        }  # fmt: skip
        embedding = as_bytes(vectors.astype(np.float16))
        write_rows(embeddings_path(run, k), SEEN, {EMBEDDING: embedding}, every)
        write_rows(scores_path(run, k), SEEN, columns, every)
        nobody = {"id": np.arange(1), "reason": pa.array(["blank image"])}
        write_rows(quarantine_path(run, k), SEEN, nobody, np.array([k == 0]))
        at, number = at + n, number + n
    return EmbeddingSpace(run_of(run, parts=len(parts), embedding=parts[0].shape[1], scanned=at))


def all_of_them(parts: list[np.ndarray], examples: np.ndarray) -> np.ndarray:
    """Return the similarity of everything, one cosine after the other."""
    vectors = np.concatenate(parts).astype(np.float16).astype(np.float64)
    away, wanted = vectors - vectors.mean(0), examples - vectors.mean(0)
    lengths = np.maximum(np.linalg.norm(away, axis=1)[:, None] * np.linalg.norm(wanted, axis=1), 1e-12)
    return (away @ wanted.T / lengths).mean(1)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), top=st.integers(1, 60), examples=st.integers(1, 3),
    levels=st.integers(2, 50), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=40)
def test_the_nearest_are_those_that_comparing_with_everything_gives(sizes, top, examples, levels, seed):
    if not sum(sizes):
        return
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, levels, (n, 3)).astype(float) for n in sizes]  # few levels: many are the same
    wanted = rng.normal(2, 2, (examples, 3))
    with tempfile.TemporaryDirectory() as folder:
        space = write(Path(folder), parts)
        best = space.nearest(wanted, top)
        rows = space.rows(best)
    every = all_of_them(parts, wanted)
    assert len(rows) == min(top, len(every))
    np.testing.assert_allclose(best.similarity, -np.sort(-every)[:top], atol=2 * 10.0**-DIGITS)
    np.testing.assert_allclose(best.similarity, every[rows["index"]], atol=2 * 10.0**-DIGITS)
    assert rows["index"].is_unique and (rows["id"] == rows["index"] + 100).all()
    same = np.diff(best.similarity) == 0
    assert (np.diff(rows["index"])[same] > 0).all()  # equals are in the order of the survey
    np.testing.assert_array_equal(rows["visible_dust"], rows["index"])


def test_many_equals_across_parts_are_cut_in_the_order_of_the_survey(tmp_path):
    parts = [np.tile([[1.0, 2.0], [2.0, 1.0]], (50, 1)) for _ in range(12)]
    space = write(tmp_path, parts)
    best = space.nearest(np.array([[1.0, 2.0]]), 7)
    assert list(space.rows(best)["index"]) == [0, 2, 4, 6, 8, 10, 12] and (best.similarity == best.similarity[0]).all()


def test_what_is_the_survey_s_mean_is_like_nothing():
    centre = np.array([1.0, 2.0])
    towards = unit(np.array([[1.0, 0.0]])).mean(0)
    told = similarity(np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 2.0]]), centre, towards)
    assert list(told) == [0.0, 1.0, -1.0]
    assert np.isfinite(unit(np.zeros((2, 3)))).all()


def test_examples_are_found_by_number_and_by_name(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.random((5, 4)) for _ in range(4)]
    space = write(tmp_path / "a", parts)
    places = space.locate(["117", "0104"])
    assert list(places["id"]) == ["104", "117"] and list(places["part"]) == [0, 3] and list(places["row"]) == [4, 2]
    np.testing.assert_allclose(space.at(places), np.concatenate(parts)[[4, 17]], atol=1e-3)
    names = [f"NGC {k % 10}" for k in range(20)]
    space = write(tmp_path / "b", parts, ids=names, stores=["one", "one", "two", "two"])
    places = space.locate(["NGC 3"])
    assert list(places["store"]) == ["one", "two"] and list(places["index"]) == [3, 13]  # in both of the stores


@pytest.mark.parametrize("unknown", ["99", "NGC 7", "--5", "1e3", "9" * 30])
def test_an_unknown_example_is_named_with_what_there_is(unknown, tmp_path):
    space = write(tmp_path, [np.ones((3, 2)), np.eye(2)])
    with pytest.raises(InputError, match=f"--like {unknown}: not one of the 5 objects .* look like '100'"):
        space.locate(["101", unknown])


def test_an_example_that_was_set_aside_is_told_why(tmp_path):
    space = write(tmp_path, [np.ones((3, 2))])
    with pytest.raises(InputError, match=r"was quarantined \(blank image\)"):
        space.locate(["0"])


def remove(path):
    path.unlink()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def shorten(path):
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def narrow(path):
    own = as_bytes(np.zeros((20, 3), np.float16))
    write_rows(path, SEEN, {EMBEDDING: own}, np.ones(20, bool))


def of_another(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata({FINGERPRINT: b"x"}), path)


@pytest.mark.parametrize("damage", [remove, flip, cut, shorten, narrow, of_another])
def test_a_damaged_part_is_named(damage, tmp_path):
    space = write(tmp_path, [np.random.default_rng(k).random((20, 64)) for k in range(3)])
    damage(embeddings_path(tmp_path, 1))
    with pytest.raises(InputError, match=r"embeddings/part-00001\.parquet"):
        space.nearest(np.ones((1, 64)), 5)


def test_a_scan_without_embeddings_says_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match=r"scan --store /nowhere/sdss.zarr --model /m/a --model /m/b --embeddings"):
        EmbeddingSpace(run_of(tmp_path, model=["/m/a", "/m/b"]))


def test_a_scan_that_scored_nothing_has_nothing_alike(tmp_path):
    with pytest.raises(InputError, match="has no scored objects"):
        write(tmp_path, [np.empty((0, 3))]).nearest(np.ones((1, 3)), 5)
