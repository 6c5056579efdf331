"""Images are resampled here, to fewer pixels: by the same filter when a store is made and when it is read.

So a store of 128 px that is read at 64 px looks like one that was made at 64 px of the same images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from galscan.core.errors import InputError

# Hamming's kernel weighs all the area of a pixel, and has no negative lobes: no dark rings appear around stars.
KERNEL = Image.Resampling.HAMMING
GAP = 3.0  # images that shrink more than twice as much are averaged in blocks first, which is faster
SOME = 64  # images a task of a thread


def shrink(image: Image.Image, size: int) -> Image.Image:
    """Return a square image with `size` pixels on a side, fewer than it has."""
    return image.resize((size, size), KERNEL, reducing_gap=GAP)


def resample(images: np.ndarray, size: int, threads: int = 1) -> np.ndarray:
    """Return images with `size` pixels on a side: local means, so that the mean brightness stays.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    size : int
        At most S; where it is S, `images` itself is returned.
    threads : int
        How many work on it.

    Returns
    -------
    ndarray of uint8, shape (n, size, size, 3)

    Raises
    ------
    InputError
        If the images are smaller than `size`.
    """
    stored = images.shape[1]
    if stored == size:
        return images
    if stored < size:
        raise InputError(f"images of {stored} px hold less than the {size} px asked for; ingest with --size {size}")
    out = np.empty((len(images), size, size, 3), np.uint8)

    def work(start: int) -> None:
        for k in range(start, min(start + SOME, len(images))):
            out[k] = np.asarray(shrink(Image.fromarray(images[k]), size))

    starts = range(0, len(images), SOME)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads, "galscan-resample") as pool:
            list(pool.map(work, starts))
    else:
        for start in starts:
            work(start)
    return out


def pixels_text(stored: int, size: int) -> str:
    """Return the size that images of a store of `stored` pixels on a side are read at, in words."""
    return f"{size} px" + (f", resampled from {stored} px" if stored > size else "")
