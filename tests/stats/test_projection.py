from __future__ import annotations

import sys

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.stats import projection


def groups(count=200, seed=0):
    """Return vectors of two groups that differ along the first of eight dimensions."""
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % 2
    return rng.normal(0, 0.1, (count, 8)) + 5 * kind[:, None] * np.eye(8)[0], kind


def test_principal_components_are_those_of_the_covariance_and_blocks_agree(monkeypatch):
    vectors, kind = groups()
    vectors[:, 3] *= 8  # the second axis
    fitted = projection.fit(vectors)
    variance, axes = np.linalg.eigh(np.cov(vectors.T))
    assert fitted.explained == pytest.approx(variance[::-1][:2] / variance.sum(), rel=1e-4)
    found = fitted.apply(vectors.astype(np.float16))
    expected = (vectors - vectors.mean(0)) @ axes[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=0.02)
    assert found.dtype == np.float32 and found.shape == (200, 2)
    monkeypatch.setattr(projection, "BLOCK", 7)
    np.testing.assert_allclose(fitted.apply(vectors), projection.fit(vectors, seed=0).apply(vectors))
    assert fitted.apply(vectors[:0]).shape == (0, 2)
    assert abs(found[kind == 0, 0].mean() - found[kind == 1, 0].mean()) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("vectors", "method", "word"),
    [
        (np.eye(2), "pca", "at least 3"),
        (np.ones((9, 4)), "pca", "equal"),
        (np.full((9, 4), np.nan), "pca", "finite"),
        (np.eye(4), "tsne", "'tsne'"),
    ],
)
def test_what_cannot_be_projected(vectors, method, word):
    with pytest.raises(InputError, match=word):
        projection.fit(vectors, method)


def test_umap_absent_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    for call in (lambda: projection.check("umap"), lambda: projection.fit(np.eye(4), "umap")):
        with pytest.raises(InputError, match=r"galscan\[map\]"):
            call()


@pytest.mark.parametrize("count", [4, 200])
def test_umap_separates_groups(count):
    pytest.importorskip("umap", reason="needs the extra map")
    vectors, kind = groups(count)
    fitted = projection.fit(vectors, "umap", seed=3)
    found = fitted.apply(vectors)
    assert found.shape == (count, 2) and fitted.explained is None and np.isfinite(found).all()
    if count > 100:
        apart = np.linalg.norm(found[kind == 0].mean(0) - found[kind == 1].mean(0))
        assert apart > 2 * found[kind == 0].std()
