"""Networks that classify: one score for each target, one value per morphology answer; and short ones of our own.

Zero to one pixels in, no resolution assumed, so that one network serves 48 to 128 px. The first
convolution works on the 2x2-folded image: a quarter of the positions at the cost of four times the
channels, which is cheaper than it sounds and loses nothing. Those of others are in `galscan.models.encoders`.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

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


class Network(nn.Module, ABC):
    """A trunk that turns galaxies into features, and two heads that read them: for targets and morphology answers.

    A child builds the trunk, calls `_add_heads`, and says what its features are.

    Attributes
    ----------
    answers, targets : int
        How many the heads have.
    shared : str
        How the names of weights begin that no training changes; a model stores them once.
    """

    shared = ""
    answers: int
    targets: int

    def _add_heads(self, features: int, answers: int, targets: int) -> None:
        self.answers, self.targets = answers, targets
        self.dropout = nn.Dropout(0.2)
        self.target = nn.Linear(features, targets)
        self.morphology = nn.Linear(features, answers)

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What builds the network again, without its weights; JSON-able."""

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, 3, S, S) in 0..1 to what both heads read, (n, features)."""

    @abstractmethod
    def trunk_hash(self) -> str:
        """Return what trunks that compute the same have in common, and no others."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images (n, 3, S, S) in 0..1 to logits of the targets (n, targets) and of the answers (n, answers)."""
        return self.read(self.features(images))

    def read(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features to the logits of `forward`."""
        x = self.dropout(features)
        return self.target(x), self.morphology(x)

    def only(self, target: int) -> Network:
        """Return a network of the same trunk and answers for one of the targets, on the CPU."""
        network = copy.deepcopy(self).cpu()
        head = nn.Linear(self.target.in_features, 1)
        head.load_state_dict({name: value[target : target + 1] for name, value in self.target.state_dict().items()})
        network.target, network.targets = head, 1
        return network.eval()


class GalaxyNet(Network):
    """A small residual network of our own.

    Parameters
    ----------
    width : int
        Channels of the first stage; doubled twice. 16: 0.2M, 32: 0.7M, 64: 2.8M parameters.
    answers : int
        Number of morphology answers predicted beside the targets.
    targets : int
        Number of targets.
    """

    def __init__(self, width: int, answers: int, targets: int = 1):
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
            Block(4 * width, 4 * width, 1),
        )  # fmt: skip
        # Mean says what the galaxy is, maximum says that something small is there (a lane, a knot).
        self._add_heads(8 * width, answers, targets)

    @property
    def config(self) -> dict[str, Any]:
        return {"width": self.width, "answers": self.answers, "targets": self.targets}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(images * 4 - 1))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def trunk_hash(self) -> str:
        return content_hash(self.stem, self.stages)


class Ensemble(nn.Module):
    """The networks of one or several models side by side; what several of them have in common is computed once.

    Parameters
    ----------
    *models : sequence of Network
        The networks of each model, each with one target.
    embeddings : bool
        Whether to give, last of all, what the heads of the first network read.

    Attributes
    ----------
    speakers : list of int
        Numbers of the models whose answers are given: not of those that would say what an earlier one says.
    """

    def __init__(self, *models: Sequence[Network], embeddings: bool = False):
        super().__init__()
        self.embeddings = embeddings
        self.trunks = nn.ModuleList()
        self.targets = nn.ModuleList(nn.ModuleList(network.target for network in networks) for networks in models)
        self.members: list[list[int]] = []
        known: dict[str, int] = {}
        said: dict[tuple[str, ...], int] = {}
        for k, networks in enumerate(models):
            hashes = [network.trunk_hash() for network in networks]
            for network, sha in zip(networks, hashes, strict=True):
                if known.setdefault(sha, len(known)) == len(self.trunks):
                    self.trunks.append(network)
            self.members.append([known[sha] for sha in hashes])
            told = (sha + content_hash(n.morphology) for n, sha in zip(networks, hashes, strict=True))
            said.setdefault(tuple(told), k)
        self.speakers = list(said.values())
        self.morphologies = nn.ModuleList(nn.ModuleList(n.morphology for n in models[k]) for k in self.speakers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map stored images (n, S, S, 3) uint8 to logits of each model (n, members) and then, for each of `speakers`,
        of the answers (n, members, answers); last, if asked for, the embeddings (n, features)."""
        pixels = to_unit(images)
        features = [cast(Network, trunk).features(pixels) for trunk in self.trunks]
        targets = (self._each(heads, features, k)[:, :, 0] for k, heads in enumerate(self.targets))
        answers = zip(self.morphologies, self.speakers, strict=True)
        told = *targets, *(self._each(heads, features, k) for heads, k in answers)
        return (*told, features[0].float()) if self.embeddings else told

    def _each(self, heads: nn.Module, features: list[torch.Tensor], model: int) -> torch.Tensor:
        """Return what the heads of a model say, (n, members, ...)."""
        seen = zip(cast(nn.ModuleList, heads), self.members[model], strict=True)
        return torch.stack([head(features[k]).float() for head, k in seen], 1)


def content_hash(*parts: nn.Module) -> str:
    """Return the SHA-256 of the numbers in some parts of a network: equal ones compute the same."""
    sha = hashlib.sha256()
    for part in parts:
        for value in part.state_dict().values():
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Turn stored images (n, S, S, 3) uint8 into (n, 3, S, S) float in 0..1, on the images' device.

    Square-root scaled: it lifts the faint outskirts out of the first percent of the range, where
    most of a lane's contrast with the sky lives.
    """
    return images.permute(0, 3, 1, 2).float().div_(255).sqrt_()
