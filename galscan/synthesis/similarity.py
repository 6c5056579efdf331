"""Similarity of sets of galaxies, in the features of a network and in their light distribution.

KID and FID, density and coverage are computed by their reference implementations, torchmetrics (Binkowski et al.
2018, arXiv:1801.01401; Heusel et al. 2017, arXiv:1706.08500) and prdc (Naeem et al. 2020, arXiv:2002.09797).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from galscan.synthesis.galaxies import MEASURED, measure

NEAREST = 5  # k of the nearest neighbours of density and coverage
AT_LEAST = 8  # galaxies in a set: with fewer, metrics are None
AT_MOST = 4000  # real galaxies: all pairwise distances are in memory
SUBSET, SUBSETS = 100, 50
DIMENSIONS = 16  # principal axes for FID, which needs several times as many galaxies as dimensions
DRAWS = 5
RINGS = 12


class _Precomputed(nn.Module):
    """Identity, in place of a feature extractor."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def principal_axes(features: np.ndarray) -> np.ndarray:
    """Return the axes along which `features` (n, d) vary most, shape (d, 16) or fewer."""
    _, vectors = np.linalg.eigh(np.cov(features.astype(np.float64), rowvar=False))
    return vectors[:, ::-1][:, :DIMENSIONS]


def compare(
    real: np.ndarray, samples: dict[str, np.ndarray], axes: np.ndarray, random: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Compare samples of galaxies with real galaxies.

    FID, density and coverage depend on the sample size. They are computed for random subsets of the size of the
    smallest sample, and averaged over five subsets. KID is unbiased and uses all galaxies.

    `real` (n, d) and the `samples` (m, d) are standardised features; FID is computed on the `axes` (`principal_axes`).

    Returns
    -------
    dict
        For each name ``n`` (subset size of FID, density and coverage), ``kid``, ``kid_std`` (over subsets), ``fid``,
        ``density`` and ``coverage``; None for fewer than 8 galaxies (FID: for no more galaxies than axes).
    """
    real = real[random.permutation(len(real))[:AT_MOST]]
    size = min((len(sample) for sample in samples.values() if len(sample) >= AT_LEAST), default=0)
    out = {}
    for name, features in samples.items():
        entry: dict[str, Any] = dict.fromkeys(("kid", "kid_std", "fid", "density", "coverage"))
        entry["n"] = min(size, len(features))
        if len(real) >= AT_LEAST and len(features) >= AT_LEAST:
            entry["kid"], entry["kid_std"] = kernel_distance(real, features, int(random.integers(2**31)))
            rows = [random.permutation(len(features))[:size] for _ in range(DRAWS if len(features) > size else 1)]
            if min(size, len(real)) > axes.shape[1]:
                entry["fid"] = float(np.mean([frechet_distance(real @ axes, features[r] @ axes) for r in rows]))
            values = [density_and_coverage(real, features[r]) for r in rows]
            entry["density"], entry["coverage"] = (float(v) for v in np.mean(values, axis=0))
        out[name] = entry
    return out


def kernel_distance(real: np.ndarray, other: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the kernel distance (KID) of two sets of features (n, d), and its scatter over subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    subset = min(SUBSET, len(real), len(other))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about the memory for all features
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_Precomputed(real.shape[1]), subsets=SUBSETS, subset_size=subset)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(other), real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def frechet_distance(real: np.ndarray, other: np.ndarray) -> float:
    """Return the Fréchet distance (FID) of two sets of features (n, d)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Precomputed(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(other), real=False)
    return float(metric.compute())


def density_and_coverage(real: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020) of `other` in the neighbourhoods of `real`."""
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints to stdout
        values = compute_prdc(real, other, nearest_k=NEAREST)
    return float(values["density"]), float(values["coverage"])


def radial_profiles(images: np.ndarray) -> np.ndarray:
    """Return the mean square root of pixel values in annuli about the centre, shape (n, 12, 3), in 0..1.

    The annuli have equal widths and reach from the centre to the middle of an edge of the frame.
    """
    size = images.shape[1]
    line = np.arange(size) + 0.5 - size / 2
    ring = (np.hypot(line[:, None], line) * 2 * RINGS / size).astype(int).ravel()
    member = np.stack([ring == k for k in range(RINGS)]).astype(np.float32)
    member /= member.sum(1, keepdims=True).clip(1)
    roots = np.sqrt(images.reshape(len(images), -1, 3).astype(np.float32) / 255)
    return np.einsum("kp,npc->nkc", member, roots)


def light(training: np.ndarray, samples: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compare brightness, colour, size, shape and radial profile of images with those of training galaxies.

    Returns
    -------
    dict
        For ``training`` and each name ``n``, ``measured`` (mean and std by column of `MEASURED`), ``profile`` (see
        `radial_profiles`, the mean) and ``max_deviation``, the largest difference of the mean profile from that of
        the training galaxies, in units of their ``scatter``.
    """
    out: dict[str, Any] = {}
    reference, scatter = np.zeros((RINGS, 3)), np.ones((RINGS, 3))
    for group, images in {"training": training, **samples}.items():
        if not len(images):
            out[group] = {"n": 0, "measured": None, "profile": None, "max_deviation": None}
            continue
        values, profiles = measure(images), radial_profiles(images)
        mean = profiles.mean(0)
        if group == "training":
            reference, scatter = mean, np.maximum(profiles.std(0), 1e-3)
            out["scatter"] = scatter.tolist()
        out[group] = {
            "n": len(images),
            "measured": {
                name: {"mean": float(values[:, k].mean()), "std": float(values[:, k].std())}
                for k, name in enumerate(MEASURED)
            },
            "profile": mean.tolist(),
            "max_deviation": float((np.abs(mean - reference) / scatter).max()) if len(training) else None,
        }
    return out
