from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.candidates.embeddings import points
from galscan.core.errors import InputError
from galscan.scanning.run import open_run
from galscan.stats import projection
from tests.candidates.embeddings.test_similar import write


@pytest.fixture
def space(tmp_path):
    """Return a scan of 240 objects in three partitions, whose 20 candidates are the last ones, best last."""
    rng = np.random.default_rng(0)
    space = write(tmp_path, [rng.normal(0, [5, 3, 1, 1], (n, 4)) for n in (100, 0, 140)])
    index = np.arange(239, 219, -1)
    ranked = pd.DataFrame({"store": "sky", "index": index, "rank": np.arange(1, 21), "score": -index})
    ranked.to_parquet(tmp_path / "candidates.parquet")
    return space


def test_all_objects_with_their_projection(space):
    found = points.make_points(space, max_points=240, method="pca", seed=0)
    table = found.table
    assert found.scored == len(table) == 240 and found.random == 220
    assert (table["id"] == table["index"] + 100).all() and (table["score"] == -table["index"]).all()
    assert list(table["rank"][:220].unique()) == [0] and list(table["rank"][220:]) == [*range(20, 0, -1)]
    assert (table[["known", "grade"]] == "").all(axis=None)
    vectors = np.concatenate([space.read(part) for part in range(3)])
    expected = projection.fit(vectors).apply(vectors)
    np.testing.assert_allclose(table[["x", "y"]], expected, atol=1e-4)
    assert found.explained == pytest.approx((25 / 36, 9 / 36), abs=0.1)


def test_a_sample_with_all_candidates_and_graded_objects(space):
    grades = pd.DataFrame({"store": ["sky", "sky"], "index": [7, 130], "grade": ["A", "not"]})
    found = points.make_points(space, max_points=60, method="pca", seed=1, grades=grades)
    table = found.table
    assert len(table) == 60 and found.scored == 240 and found.random == 38
    assert table["index"].is_unique and table["index"].is_monotonic_increasing
    assert set(range(220, 240)) | {7, 130} < set(table["index"])
    assert dict(zip(table["index"], table["grade"], strict=True))[7] == "A"
    again = points.make_points(space, max_points=60, method="pca", seed=1, grades=grades).table
    other = points.make_points(space, max_points=60, method="pca", seed=2, grades=grades).table
    pd.testing.assert_frame_equal(table, again)
    assert set(other["index"]) != set(table["index"])


def test_the_best_candidates_where_there_are_more_than_points(space):
    table = points.make_points(space, max_points=5, method="pca", seed=0).table
    assert sorted(table["rank"]) == [1, 2, 3, 4, 5]


def test_scores_of_a_list_of_similar_objects_are_those_of_its_ranked_objects(space):
    space.run.info.__dict__["like"] = [{"id": "100"}]  # the model is frozen
    table = points.make_points(space, max_points=240, method="pca", seed=0).table
    assert (np.isfinite(table["score"]) == (table["rank"] > 0)).all()


def test_labels_of_the_model(listed_run):
    run = open_run(listed_run)
    splits = run.model().splits()
    table = pd.DataFrame({"store": "sky", "id": [1000, 1005, 1599], "ra": np.nan, "dec": np.nan})
    labels = points._labels(run)(table)
    if "ra" not in splits:  # ids of a model without positions are those of its own store
        assert np.isnan(labels).all()
        labels = points._labels(run)(table.assign(store="tiny"))
    known = dict(zip(splits["id"].astype(str), splits["target"], strict=True))
    assert labels.tolist()[:2] == [known["1000"], known["1005"]] and np.isnan(labels[2])


def test_too_few_objects(tmp_path):
    space = write(tmp_path, [np.eye(2)])
    pd.DataFrame({"store": ["sky"], "index": [0], "rank": [1], "score": [0.0]}).to_parquet(
        tmp_path / "candidates.parquet"
    )
    with pytest.raises(InputError, match="at least 3"):
        points.make_points(space, max_points=10, method="pca", seed=0)
