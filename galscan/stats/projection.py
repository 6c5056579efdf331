"""Projection of feature vectors onto two dimensions, fitted on a sample and applied in blocks.

Principal components (the default) are a linear projection onto the two directions of largest variance: distances are
true to scale, but for what the other dimensions hold. UMAP (McInnes et al. 2018, arXiv:1802.03426) keeps neighbours
together and separates groups; distances between groups and the sizes of groups mean nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from galscan.core.errors import InputError, nearest

METHODS = PCA, UMAP = ("pca", "umap")
SAMPLE = {PCA: 50_000, UMAP: 10_000}  # vectors on which a projection is fitted
LEAST = 3  # vectors: two of them are always on one line
BLOCK = 4096  # vectors projected at a time
NEIGHBOURS = 15  # of UMAP; its own default


@dataclass(frozen=True, eq=False)
class Projection:
    """A fitted projection.

    Attributes
    ----------
    method : str
        ``pca`` or ``umap``.
    explained : tuple of float, optional
        Fraction of the variance along each of the two axes; None for UMAP.
    """

    method: str
    explained: tuple[float, float] | None
    _fitted: Any

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Project vectors of shape (n, d); return float32 of shape (n, 2)."""
        blocks = (vectors[k : k + BLOCK].astype(np.float32) for k in range(0, len(vectors), BLOCK))
        found = [np.asarray(self._fitted.transform(block), np.float32) for block in blocks]
        return np.concatenate(found) if found else np.empty((0, 2), np.float32)


def check(method: str) -> None:
    """Check that a method is known, and can be imported.

    Raises
    ------
    InputError
        If it is unknown, or umap-learn is not installed.
    """
    if method not in METHODS:
        raise InputError(f"--method {method!r} is unknown{nearest(method, METHODS)}")
    if method == UMAP:
        _umap()


def fit(vectors: np.ndarray, method: str = PCA, *, seed: int = 0) -> Projection:
    """Fit a projection.

    Parameters
    ----------
    vectors : ndarray, shape (n, d)
        A random sample of the feature vectors.
    method : str
        One of `METHODS`.
    seed : int
        Equal seeds give equal projections.

    Raises
    ------
    InputError
        If there are fewer than three vectors, all are equal, or one is not finite; if the method is unknown, or its
        library is not installed.
    """
    check(method)
    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < LEAST:
        raise InputError(f"{len(vectors)} objects cannot be projected; at least {LEAST} are needed")
    if not np.isfinite(vectors).all():
        raise InputError("a feature vector is not finite, so that its table is damaged; scan again with --embeddings")
    if not vectors.std(axis=0).any():
        raise InputError("all feature vectors are equal, so that there is nothing to project; use another model")
    if method == UMAP:
        neighbours = min(NEIGHBOURS, len(vectors) - 1)
        # A small sample has fewer points than the spectral initialisation needs.
        start = "spectral" if len(vectors) > 10 * LEAST else "random"
        fitted = _umap().UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Projection(method, None, fitted.fit(vectors))
    from sklearn.decomposition import PCA as PrincipalComponents  # slow

    components = PrincipalComponents(2, svd_solver="covariance_eigh", random_state=seed).fit(vectors)
    first, second = (float(value) for value in components.explained_variance_ratio_)
    return Projection(method, (first, second), components)


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise InputError(
            "--method umap needs umap-learn, which is not installed: pip install 'galscan[map]'; or use --method pca"
        ) from None
    return umap
