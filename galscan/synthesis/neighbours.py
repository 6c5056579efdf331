"""The nearest of many galaxies: in pixels, whichever way it is turned, and among the features of a network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

SIDE = 32  # pixels on a side of the maps that are compared
CHUNK = 512  # galaxies whose distances to all others are in memory at a time
ASKED = 4000  # galaxies of which the distance to the nearest other one is asked, where there are more


def luminance(images: np.ndarray) -> torch.Tensor:
    """Return what is compared of pictures (n, S, S, 3) uint8: means of square-rooted pixels in 32 x 32 blocks.

    Returns
    -------
    tensor of float32, shape (n, side, side)
        In 0..1; the side is that of the pictures where they are smaller.
    """
    side = min(SIDE, images.shape[1])
    maps = [
        F.adaptive_avg_pool2d(torch.from_numpy(images[k : k + CHUNK]).float().div_(255).sqrt_().mean(3), side)
        for k in range(0, len(images), CHUNK)
    ]
    return torch.cat(maps) if maps else torch.empty(0, side, side)


def symmetries(maps: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield `maps` (n, side, side) in the 8 ways a square falls on itself: four quarter turns, plain and flipped."""
    for turned in (torch.rot90(maps, k, (1, 2)) for k in range(4)):
        yield turned
        yield turned.flip(2)


@torch.inference_mode()
def nearest(
    points: torch.Tensor, pool: torch.Tensor, *, own: np.ndarray | None = None, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of `pool` for each of `points`.

    Parameters
    ----------
    points, pool : tensor, shape (n, d) or (n, side, side), and (m, ...) likewise
        Features, or maps as `luminance` gives them: those are turned and flipped to where they are nearest.
    own : ndarray of int, shape (n,), optional
        The row of `pool` that each point itself is; it does not count as its own neighbour.

    Returns
    -------
    distance : ndarray of float32, shape (n,)
        Euclidean; the root of the squared differences' sum.
    row : ndarray of int, shape (n,)
        Of the neighbour in `pool`.
    """
    # Distances come from products; about the mean the products are small, and what rounding costs them as well.
    middle = float(pool.mean())
    pool = (pool - middle).flatten(1).to(device)
    squares = pool.square().sum(1)
    distance, row = np.empty(len(points), np.float32), np.empty(len(points), np.int64)
    for start in range(0, len(points), CHUNK):
        here = (points[start : start + CHUNK] - middle).to(device)
        views = symmetries(here) if here.ndim == 3 else iter([here])
        products = torch.full((len(here), len(pool)), -torch.inf, device=device)
        for view in views:
            products = torch.maximum(products, view.flatten(1) @ pool.T)
        squared = here.flatten(1).square().sum(1)[:, None] + squares - 2 * products
        if own is not None:
            itself = torch.from_numpy(np.asarray(own[start : start + CHUNK]))
            squared[torch.arange(len(here)), itself] = torch.inf
        least, where = squared.min(1)
        distance[start : start + CHUNK] = least.clamp(min=0).sqrt().cpu().numpy()
        row[start : start + CHUNK] = where.cpu().numpy()
    return distance, row


def spacing(pool: torch.Tensor, *, device: torch.device | None = None) -> np.ndarray:
    """Return the distance of each of `pool` (of at most 4,000, evenly chosen) to the nearest of the others."""
    asked = np.unique(np.linspace(0, len(pool) - 1, min(len(pool), ASKED)).astype(int))
    return nearest(pool[asked], pool, own=asked, device=device)[0]
