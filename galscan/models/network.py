"""Classification networks: one logit for each target and each morphology answer.

The networks take pixels in 0..1 of any resolution, so that one network serves 48 to 128 px. `GalaxyNet` is a small
residual network; its first convolution works on the 2x2 space-to-depth image: a quarter of the positions and four
times the channels, without loss. Pretrained encoders are in `galscan.models.encoders`.
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

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.skip = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class Network(nn.Module, ABC):
    """A trunk that maps images to features, and two linear heads: target logits and morphology answers.

    A subclass builds the trunk, calls `_add_heads`, and implements `features`.

    Attributes
    ----------
    answers, targets : int
        Number of outputs of each head.
    shared : str
        Prefix of the names of weights that are never trained; a model stores them once.
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
        """Arguments that rebuild the network without its weights; JSON-able."""

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, 3, S, S) in 0..1 to features (n, features), the input of both heads."""

    @abstractmethod
    def trunk_hash(self) -> str:
        """Return a hash that is equal for trunks that compute the same features, and only for those."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images (n, 3, S, S) in 0..1 to logits of the targets (n, targets) and of the answers (n, answers)."""
        return self.heads(self.features(images))

    def heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features to the logits of `forward`."""
        x = self.dropout(features)
        return self.target(x), self.morphology(x)

    def only(self, target: int) -> Network:
        """Return a copy on the CPU with the same trunk and answers, for one of the targets."""
        network = copy.deepcopy(self).cpu()
        head = nn.Linear(self.target.in_features, 1)
        head.load_state_dict({name: value[target : target + 1] for name, value in self.target.state_dict().items()})
        network.target, network.targets = head, 1
        return network.eval()


class GalaxyNet(Network):
    """A small residual network.

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
        # Mean pooling describes the whole galaxy, maximum pooling a small feature (a dust lane, a knot).
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
    """The networks of one or several models side by side; trunks that several of them share are computed once.

    Parameters
    ----------
    *models : sequence of Network
        The networks of each model, each with one target.
    embeddings : bool
        Whether the last output is the features of the first network.

    Attributes
    ----------
    answer_models : list of int
        Indices of the models whose answers are returned; a model whose answers equal an earlier one's is left out.
    """

    def __init__(self, *models: Sequence[Network], embeddings: bool = False):
        super().__init__()
        self.embeddings = embeddings
        self.trunks = nn.ModuleList()
        self.targets = nn.ModuleList(nn.ModuleList(network.target for network in networks) for networks in models)
        self.members: list[list[int]] = []
        trunk_index: dict[str, int] = {}
        first_model: dict[tuple[str, ...], int] = {}
        for k, networks in enumerate(models):
            hashes = [network.trunk_hash() for network in networks]
            for network, sha in zip(networks, hashes, strict=True):
                if trunk_index.setdefault(sha, len(trunk_index)) == len(self.trunks):
                    self.trunks.append(network)
            self.members.append([trunk_index[sha] for sha in hashes])
            keys = (sha + content_hash(n.morphology) for n, sha in zip(networks, hashes, strict=True))
            first_model.setdefault(tuple(keys), k)
        self.answer_models = list(first_model.values())
        self.morphologies = nn.ModuleList(nn.ModuleList(n.morphology for n in models[k]) for k in self.answer_models)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map stored images (n, S, S, 3) uint8 to logits.

        Returns
        -------
        tuple of tensor
            Target logits of each model, (n, members); then answers of each of `answer_models`, (n, members, answers);
            last, if requested, the embeddings (n, features).
        """
        pixels = to_unit(images)
        features = [cast(Network, trunk).features(pixels) for trunk in self.trunks]
        targets = (self._apply_heads(heads, features, k)[:, :, 0] for k, heads in enumerate(self.targets))
        answers = zip(self.morphologies, self.answer_models, strict=True)
        outputs = *targets, *(self._apply_heads(heads, features, k) for heads, k in answers)
        return (*outputs, features[0].float()) if self.embeddings else outputs

    def _apply_heads(self, heads: nn.Module, features: list[torch.Tensor], model: int) -> torch.Tensor:
        """Return the outputs of the heads of a model, (n, members, ...)."""
        pairs = zip(cast(nn.ModuleList, heads), self.members[model], strict=True)
        return torch.stack([head(features[k]).float() for head, k in pairs], 1)


def content_hash(*modules: nn.Module) -> str:
    """Return the SHA-256 of the weights of some modules of a network."""
    sha = hashlib.sha256()
    for module in modules:
        for value in module.state_dict().values():
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Convert stored images (n, S, S, 3) uint8 to (n, 3, S, S) float in 0..1, on the images' device.

    Square-root scaling raises the faint outskirts out of the first percent of the range, where most of the
    contrast of a dust lane against the sky lies.
    """
    return images.permute(0, 3, 1, 2).float().div_(255).sqrt_()
