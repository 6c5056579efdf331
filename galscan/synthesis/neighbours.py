"""Nearest-neighbour search among galaxies, in pixels (at all orientations) or in the features of a network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

SIDE = 32  # pixels on a side of the maps that are compared
CHUNK = 512  # galaxies per block of the distance matrix
MOST_QUERIES = 4000  # galaxies, at most, whose nearest-neighbour distance `spacing` computes


def luminance(images: np.ndarray) -> torch.Tensor:
    """Reduce images (n, S, S, 3) uint8 to luminance maps: means of the square roots of pixels in 32 x 32 blocks.

    They are in 0..1, shape (n, side, side); the side is that of the images where these are smaller.
    """
    side = min(SIDE, images.shape[1])
    maps = [
        F.adaptive_avg_pool2d(torch.from_numpy(images[k : k + CHUNK]).float().div_(255).sqrt_().mean(3), side)
        for k in range(0, len(images), CHUNK)
    ]
    return torch.cat(maps) if maps else torch.empty(0, side, side)


def symmetries(maps: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the 8 symmetries of `maps` (n, side, side): four rotations by 90 degrees, each also mirrored."""
    for rotated in (torch.rot90(maps, k, (1, 2)) for k in range(4)):
        yield rotated
        yield rotated.flip(2)


@torch.inference_mode()
def nearest(
    points: torch.Tensor, pool: torch.Tensor, *, own: np.ndarray | None = None, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of `pool` for each of `points`; return Euclidean distances and rows in `pool`.

    Both are features (n, d), or maps of `luminance` (n, side, side), which are compared at the nearest of their 8
    symmetries. `own` has the row of each point in `pool`, which is excluded as its neighbour.
    """
    # Distances are computed from dot products; subtracting the mean reduces their rounding errors.
    middle = float(pool.mean())
    pool = (pool - middle).flatten(1).to(device)
    squares = pool.square().sum(1)
    distance, row = np.empty(len(points), np.float32), np.empty(len(points), np.int64)
    for start in range(0, len(points), CHUNK):
        block = (points[start : start + CHUNK] - middle).to(device)
        views = symmetries(block) if block.ndim == 3 else iter([block])
        products = torch.full((len(block), len(pool)), -torch.inf, device=device)
        for view in views:
            products = torch.maximum(products, view.flatten(1) @ pool.T)
        squared = block.flatten(1).square().sum(1)[:, None] + squares - 2 * products
        if own is not None:
            itself = torch.from_numpy(np.asarray(own[start : start + CHUNK]))
            squared[torch.arange(len(block)), itself] = torch.inf
        smallest, index = squared.min(1)
        distance[start : start + CHUNK] = smallest.clamp(min=0).sqrt().cpu().numpy()
        row[start : start + CHUNK] = index.cpu().numpy()
    return distance, row


def spacing(pool: torch.Tensor, *, device: torch.device | None = None) -> np.ndarray:
    """Return the nearest-neighbour distance within `pool` of its galaxies (at most 4,000, evenly chosen)."""
    queries = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), MOST_QUERIES)).astype(int))
    return nearest(pool[queries], pool, own=queries, device=device)[0]
