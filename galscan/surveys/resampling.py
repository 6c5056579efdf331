"""Resampling of images to fewer pixels, by the same filter when a store is written and when it is read.

A store of 128 px read at 64 px therefore gives nearly the same images as a store of 64 px.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from galscan.core.errors import InputError

# Hamming's kernel averages over the whole pixel and has no negative lobes, which would cause dark rings around stars.
KERNEL = Image.Resampling.HAMMING
GAP = 3.0  # Pillow's reducing_gap: larger reductions average in blocks first, which is faster
BATCH = 64  # images per task of a thread


def shrink(image: Image.Image, size: int) -> Image.Image:
    """Return a square image with `size` pixels on a side, fewer than it has."""
    return image.resize((size, size), KERNEL, reducing_gap=GAP)


def resample(images: np.ndarray, size: int, threads: int = 1) -> np.ndarray:
    """Return images (n, S, S, 3), uint8, with `size` pixels on a side; the mean brightness does not change.

    With `size` S, `images` itself is returned. `InputError` is raised if the images are smaller.
    """
    stored = images.shape[1]
    if stored == size:
        return images
    if stored < size:
        raise InputError(f"images have {stored} px, fewer than the {size} px requested; ingest with --size {size}")
    out = np.empty((len(images), size, size, 3), np.uint8)

    def work(start: int) -> None:
        for k in range(start, min(start + BATCH, len(images))):
            out[k] = np.asarray(shrink(Image.fromarray(images[k]), size))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, len(images), BATCH)))
    return out


def pixels_text(stored: int, size: int) -> str:
    """Return as text the size at which images stored with `stored` pixels on a side are read."""
    return f"{size} px" + (f", resampled from {stored} px" if stored > size else "")
