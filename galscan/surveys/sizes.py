"""Default and limits of the size of a cutout in pixels, and its framing."""

from __future__ import annotations

import math

from galscan.core.errors import InputError

DEFAULT_SIZE = 96  # the largest of the shipped recipes: larger stores are resampled when read, smaller ones refused
MIN_SIZE, MAX_SIZE = 8, 1024


def check_size(size: int) -> None:
    """Raise `InputError` unless cutouts can have `size` pixels on a side."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"size is {size} pixels; use {MIN_SIZE} to {MAX_SIZE}")


def check_framing(pixel_scale: float | None, frame: float | None) -> None:
    """Raise `InputError` unless a cutout can have this pixel scale (arcsec), or this side in radii; not both."""
    if pixel_scale is not None and frame is not None:
        raise InputError(f"--pixel-scale {pixel_scale:g} and --frame {frame:g} exclude each other; give one of them")
    for option, value in (("--pixel-scale", pixel_scale), ("--frame", frame)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{option} {value:g}: give a number above 0")
