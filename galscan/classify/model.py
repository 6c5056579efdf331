"""Short residual networks of our own: one score for the target, one value per morphology answer.

Zero to one pixels in, no resolution assumed, so that one network serves 48 to 128 px. The first
convolution works on the 2x2-folded image: a quarter of the positions at the cost of four times the
channels, which is cheaper than it sounds and loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.skip = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class GalaxyNet(nn.Module):
    """A small residual network with a head for the target and one for the morphology answers.

    Parameters
    ----------
    width : int
        Channels of the first stage; doubled twice. 16: 0.2M, 32: 0.7M, 64: 2.8M parameters.
    answers : int
        Number of morphology answers predicted beside the target.
    """

    def __init__(self, width: int, answers: int):
        super().__init__()
        self.width, self.answers = width, answers
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
            Block(4 * width, 4 * width, 1),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.2)
        # Mean says what the galaxy is, maximum says that something small is there (a lane, a knot).
        self.target = nn.Linear(8 * width, 1)
        self.morphology = nn.Linear(8 * width, answers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images (n, 3, S, S) in 0..1 to target logits (n,) and answer logits (n, answers)."""
        x = self.dropout(self.features(images))
        return self.target(x)[:, 0], self.morphology(x)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, 3, S, S) in 0..1 to what both heads read, (n, 8 width)."""
        x = self.stages(self.stem(images * 4 - 1))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Ensemble(nn.Module):
    """Networks side by side: the target's logits of each, and the mean of their answers."""

    def __init__(self, networks: Sequence[GalaxyNet]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map stored images (n, S, S, 3) uint8 to logits (n, members) and answers (n, answers) in 0..1."""
        pixels = to_unit(images)
        outputs = [network(pixels) for network in self.networks]
        logits = torch.stack([target.float() for target, _ in outputs], 1)
        return logits, torch.stack([answers.float().sigmoid() for _, answers in outputs]).mean(0)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Turn stored images (n, S, S, 3) uint8 into (n, 3, S, S) float in 0..1, on the images' device.

    Square-root scaled: it lifts the faint outskirts out of the first percent of the range, where
    most of a lane's contrast with the sky lives.
    """
    return images.permute(0, 3, 1, 2).float().div_(255).sqrt_()
