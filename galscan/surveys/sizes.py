"""Pixels on a side of a cutout: the default, and the limits of surveys that resample images."""

from __future__ import annotations

from galscan.core.errors import InputError

DEFAULT_SIZE = 96  # what no shipped recipe exceeds: a larger store is resampled when read, a smaller one refused
MIN_SIZE, MAX_SIZE = 8, 1024


def check_size(size: int) -> None:
    """Raise `InputError` unless cutouts can have `size` pixels on a side."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"size is {size} pixels; use {MIN_SIZE} to {MAX_SIZE}")
