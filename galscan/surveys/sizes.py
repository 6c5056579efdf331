"""Default and limits of the size of a cutout in pixels."""

from __future__ import annotations

from galscan.core.errors import InputError

DEFAULT_SIZE = 96  # the largest of the shipped recipes: larger stores are resampled when read, smaller ones refused
MIN_SIZE, MAX_SIZE = 8, 1024


def check_size(size: int) -> None:
    """Raise `InputError` unless cutouts can have `size` pixels on a side."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"size is {size} pixels; use {MIN_SIZE} to {MAX_SIZE}")
