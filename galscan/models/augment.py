"""Augmentation of training images: rotation, flip, scale, shift, noise and gain."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def rotate_flip_scale(
    pixels: torch.Tensor, random: torch.Generator, *, scale: float = 0.1, shift: float = 0.03
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate by any angle, flip, scale by up to `scale` and shift by up to `shift` of the frame.

    Pixels beyond the frame are mirrored, so that black corners do not reveal a rotation.

    Parameters
    ----------
    pixels : tensor, shape (n, 3, S, S)
    random : torch.Generator
        On the CPU; the only source of randomness.

    Returns
    -------
    moved : tensor, shape (n, 3, S, S)
    enlargement : tensor, shape (n,)
        Relative.
    """
    n = len(pixels)
    angle = torch.rand(n, generator=random) * 2 * math.pi
    zoom = 1 + (torch.rand(n, generator=random) * 2 - 1) * scale
    flip = torch.where(torch.rand(n, generator=random) < 0.5, -1.0, 1.0)
    move = (torch.rand(n, 2, generator=random) * 2 - 1) * 2 * shift
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    affine = torch.stack(
        [torch.stack([cos * flip, -sin, move[:, 0]], 1), torch.stack([sin * flip, cos, move[:, 1]], 1)], 1
    )
    grid = F.affine_grid(affine.to(pixels.device, pixels.dtype), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved, zoom - 1


def quarter_turns(pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Rotate by a multiple of 90 degrees and flip, the same for the whole batch: exact, no resampling."""
    pixels = torch.rot90(pixels, int(torch.randint(4, (), generator=random)), (2, 3))
    return pixels.flip(3) if torch.rand((), generator=random) < 0.5 else pixels


def noise_and_gain(
    pixels: torch.Tensor, random: torch.Generator, *, noise: float = 0.02, gain: float = 0.1
) -> torch.Tensor:
    """Add pixel noise and change the brightness a little, for networks that are applied to surveys of other depths.

    `pixels` (n, 3, S, S) are in 0..1; the result may leave that range by a few `noise`.
    """
    n = len(pixels)
    factor = 1 + (torch.rand(n, 1, 1, 1, generator=random) * 2 - 1) * gain
    level = torch.rand(n, 1, 1, 1, generator=random) * noise
    gaussian = torch.randn(pixels.shape, generator=random)
    return pixels * factor.to(pixels.device) + (gaussian * level).to(pixels.device)
