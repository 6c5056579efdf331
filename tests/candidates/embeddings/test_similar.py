"""Nearest neighbours in a survey, compared with the similarities of all objects."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.candidates.embeddings.similar import DIGITS, EmbeddingSpace, similarity, unit
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

SCAN = {FINGERPRINT: info()["fingerprint"].encode()}


def write(run: Path, parts: list[np.ndarray], ids=None, stores=None) -> EmbeddingSpace:
    """Write a scan of these embeddings; ids number the objects from 100 on, each store from row 0 on."""
    at, number = 0, 100
    for k, vectors in enumerate(parts):
        n = len(vectors)
        name = "sky" if stores is None else stores[k]
        every = np.ones(n, bool)
        names = np.arange(number, number + n) if ids is None else pa.array(ids[at : at + n])
        columns = {
            "store": pa.array([name] * n, pa.string()), "index": np.arange(at, at + n), "id": names, "ra": np.zeros(n),
            "dec": np.zeros(n), "flags": np.zeros(n, np.uint8), "visible_dust": np.arange(at, at + n, dtype=np.float32),
            "score": -np.arange(at, at + n, dtype=np.float32),
        }  # fmt: skip
        embedding = as_bytes(vectors.astype(np.float16))
        write_rows(embeddings_path(run, k), SCAN, {EMBEDDING: embedding}, every)
        write_rows(scores_path(run, k), SCAN, columns, every)
        quarantined = {"id": np.arange(1), "reason": pa.array(["blank image"])}
        write_rows(quarantine_path(run, k), SCAN, quarantined, np.array([k == 0]))
        at, number = at + n, number + n
    return EmbeddingSpace(run_of(run, parts=len(parts), embedding=parts[0].shape[1], scanned=at))


def wanted(*ids: str) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "store": ""})


def similarities(parts: list[np.ndarray], examples: np.ndarray) -> np.ndarray:
    """Return the mean cosine of every object with the examples."""
    vectors = np.concatenate(parts).astype(np.float16).astype(np.float64)
    away, wanted = vectors - vectors.mean(0), examples - vectors.mean(0)
    lengths = np.maximum(np.linalg.norm(away, axis=1)[:, None] * np.linalg.norm(wanted, axis=1), 1e-12)
    return (away @ wanted.T / lengths).mean(1)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(sum), top=st.integers(1, 60),
    examples=st.integers(1, 3), levels=st.integers(2, 50), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=20)
def test_nearest_of_all(sizes, top, examples, levels, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, levels, (n, 3)).astype(float) for n in sizes]  # few levels: many are the same
    wanted = rng.normal(2, 2, (examples, 3))
    with tempfile.TemporaryDirectory() as folder:
        space = write(Path(folder), parts)
        best = space.nearest(wanted, top)
        rows = space.rows(best)
    every = similarities(parts, wanted)
    assert len(rows) == min(top, len(every))
    np.testing.assert_allclose(best["similarity"], -np.sort(-every)[:top], atol=2 * 10.0**-DIGITS)
    np.testing.assert_allclose(best["similarity"], every[rows["index"]], atol=2 * 10.0**-DIGITS)
    assert rows["index"].is_unique and (rows["id"] == rows["index"] + 100).all()
    ties = np.diff(best["similarity"]) == 0
    assert (np.diff(rows["index"])[ties] > 0).all()  # in the order of the survey
    np.testing.assert_array_equal(rows["visible_dust"], rows["index"])


def test_ties_across_partitions_are_in_the_order_of_the_survey(tmp_path):
    parts = [np.tile([[1.0, 2.0], [2.0, 1.0]], (50, 1)) for _ in range(12)]
    space = write(tmp_path, parts)
    best = space.nearest(np.array([[1.0, 2.0]]), 7)
    assert list(space.rows(best)["index"]) == [0, 2, 4, 6, 8, 10, 12] and best["similarity"].nunique() == 1


def test_similarity_of_the_mean_is_zero():
    direction = unit(np.array([[1.0, 0.0]])).mean(0)
    found = similarity(np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 2.0]]), np.array([1.0, 2.0]), direction)
    assert list(found) == [0.0, 1.0, -1.0]
    assert np.isfinite(unit(np.zeros((2, 3)))).all()


def test_examples_by_integer_and_text_ids(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.random((5, 4)) for _ in range(4)]
    space = write(tmp_path / "a", parts)
    places = space.locate(wanted("117", "0104"))
    assert list(places["id"]) == ["104", "117"] and list(places["part"]) == [0, 3] and list(places["row"]) == [4, 2]
    np.testing.assert_allclose(space.at(places), np.concatenate(parts)[[4, 17]], atol=1e-3)
    names = [f"NGC {k % 10}" for k in range(20)]
    space = write(tmp_path / "b", parts, ids=names, stores=["one", "one", "two", "two"])
    places = space.locate(wanted("NGC 3"))
    assert list(places["store"]) == ["one", "two"] and list(places["index"]) == [3, 13]  # in both of the stores


@pytest.mark.parametrize("unknown", ["99", "NGC 7", "--5", "1e3", "9" * 30])
def test_unknown_and_quarantined_examples(unknown, tmp_path):
    space = write(tmp_path, [np.ones((3, 2)), np.eye(2)])
    with pytest.raises(InputError, match=f"--like {unknown}.*'100'"):
        space.locate(wanted("101", unknown))
    with pytest.raises(InputError, match="blank image"):
        space.locate(wanted("0"))


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
    write_rows(path, SCAN, {EMBEDDING: as_bytes(np.zeros((20, 3), np.float16))}, np.ones(20, bool))


def of_another_scan(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata({FINGERPRINT: b"x"}), path)


@pytest.mark.parametrize("damage", [remove, flip, cut, shorten, narrow, of_another_scan])
def test_damaged_embeddings(damage, tmp_path):
    space = write(tmp_path, [np.random.default_rng(k).random((20, 64)) for k in range(3)])
    damage(embeddings_path(tmp_path, 1))
    with pytest.raises(InputError, match=r"embeddings/part-00001\.parquet"):
        space.nearest(np.ones((1, 64)), 5)


def test_scan_without_embeddings_or_objects(tmp_path):
    with pytest.raises(InputError, match=r"--store /nowhere/sdss.zarr --model /m/a --model /m/b --embeddings"):
        EmbeddingSpace(run_of(tmp_path, model=["/m/a", "/m/b"]))
    with pytest.raises(InputError, match=str(tmp_path)):
        write(tmp_path, [np.empty((0, 3))]).nearest(np.ones((1, 3)), 5)
