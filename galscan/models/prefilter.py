"""Prefilter: the first stage of the cascade, a tiny network that discards objects that are surely no candidates.

It is trained with the model, on images with or without labels, to regress the score of the full network
(`train_prefilter`). Its threshold is set for each survey (`set_threshold`) on objects that it was not trained on; a
hash of the id assigns each object to one of these two sets.

The sample has too few objects with top scores to set the threshold from them. It is set from the prefilter's *errors*
on the sample's higher scores instead: if the largest of 600 errors is e, then with 95 % confidence at most one error in
200 is larger (the distribution-free tolerance bound of Wilks 1941, Ann. Math. Stat. 12, 91). The threshold is the
prefilter score predicted for the last candidate, minus e. It keeps 99.5 % of the full network's candidates, if errors
at the very top are no larger than those of the 600. Every scan tests that assumption: a random 1 % of the rejected
objects is scored by the full network as well (`galscan.scanning.worker`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.errors import InputError, first_line
from galscan.core.files import atomic_path
from galscan.core.progress import track
from galscan.models.compiled import compiled
from galscan.models.network import content_hash, to_unit
from galscan.store.layout import CHUNK, Store
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample

KEPT = 0.995  # fraction of the full network's candidates that must survive
CONFIDENCE = 0.95
PAYS = 0.35  # pass fraction above which a prefilter costs more time than it saves
BETTER = math.ceil(math.log(1 - CONFIDENCE) / math.log(KEPT))  # 598 errors for the bound of Wilks
SIDE = 64  # pixels on a side of its input, at most
BATCH = 256
STRIDES = (2, 1)  # of the convolutions after the first
OLD_STRIDES = (1, 2, 1)  # in version 0.1: twice as many multiplications


class TinyNet(nn.Module):
    """Network of three convolutions: about 1 million multiplications at 64 px; the full network takes 18 million.

    The first convolution covers every pixel, as a dust lane may be two pixels wide, but has stride 4: at full
    resolution it would take nearly all of the time. `strides` are those of the convolutions after it.
    """

    def __init__(self, width: int = 12, targets: int = 1, strides: Sequence[int] = STRIDES):
        super().__init__()
        self.width, self.targets, self.strides = width, targets, tuple(strides)
        layers, channels = [nn.Conv2d(3, width, 6, 4, 2), nn.ReLU()], width
        for stride, wider in zip(self.strides, (2, 3, 3), strict=False):
            layers += [nn.Conv2d(channels, wider * width, 3, stride, 1), nn.ReLU()]
            channels = wider * width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(2 * channels, targets)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, S, S) in 0..1 to scores (n, targets)."""
        return self.last(self.features(pixels))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, S, S) in 0..1 to features (n, 6 width), the input of the last layer."""
        if pixels.shape[-1] > SIDE:
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="area")
        x = self.layers(pixels * 4 - 1)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def only(self, target: int) -> TinyNet:
        """Return a network with the same convolutions for one of the targets."""
        network = TinyNet(self.width, 1, self.strides)
        network.layers.load_state_dict(self.layers.state_dict())
        network.last.load_state_dict({k: v[target : target + 1].clone() for k, v in self.last.state_dict().items()})
        return network.eval()


class TinyNets(nn.Module):
    """The prefilters of one or several models, each with one target; equal convolutions are computed once."""

    def __init__(self, networks: Sequence[TinyNet]):
        super().__init__()
        hashes = [content_hash(network.layers) for network in networks]
        self.trunk_of = [sorted(set(hashes), key=hashes.index).index(sha) for sha in hashes]
        self.trunks = nn.ModuleList(networks[self.trunk_of.index(k)] for k in range(len(set(hashes))))
        self.last = nn.ModuleList(network.last for network in networks)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Map stored images (n, S, S, 3) uint8 to scores (n, targets)."""
        pixels = to_unit(images)
        features = [cast(TinyNet, trunk).features(pixels) for trunk in self.trunks]
        return (torch.cat([last(features[k]) for last, k in zip(self.last, self.trunk_of, strict=True)], 1),)


@dataclass(frozen=True)
class Prefilter:
    """A trained prefilter with its threshold.

    Attributes
    ----------
    network : TinyNet
    cut : float
        Threshold: objects with a lower score are discarded.
    passes : float
        Pass fraction: fraction of the sample above the threshold.
    slope, offset, error : float
        Linear fit of its score to the full network's (offset + slope x full), and the bound of its error.
    last : float
        Upper bound of the full network's score of the last candidate.
    sample : int
        Number of objects of the survey that the threshold was set on.
    """

    network: TinyNet
    cut: float = -math.inf
    passes: float = 1.0
    slope: float = 0.0
    offset: float = 0.0
    error: float = 0.0
    last: float = 0.0
    sample: int = 0

    @property
    def pays(self) -> bool:
        """Whether it discards enough objects to save time."""
        return self.passes <= PAYS

    def metadata(self) -> dict[str, Any]:
        """Return all attributes but the network, JSON-able."""
        return {k: v for k, v in asdict(self).items() if k != "network"}


def load_prefilter_scorer(
    prefilters: Sequence[Prefilter], device: str = "auto", precision: str = "fp32", converted: Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images (n, S, S, 3) uint8 to the prefilter scores, float32, (n, prefilters)."""
    network = TinyNets([prefilter.network for prefilter in prefilters]).eval()
    run = compiled(network, devices.pick(device), devices.precision(precision), converted)
    # In batches that fit into the processor's cache.
    return lambda images: np.concatenate([run(images[k : k + BATCH])[0] for k in range(0, len(images), BATCH)])


def may_train_prefilter(ids: np.ndarray) -> np.ndarray:
    """Return which objects may train a prefilter (bool, shape (n,)).

    It is about half of them; the others may set its threshold.
    """
    import pandas as pd

    return pd.util.hash_array(np.array([str(i) for i in ids], object), categorize=False) % 2 == 0


def prefilter_sample(stores: Sequence[Store], count: int, seed: int, size: int | None = None) -> np.ndarray:
    """Return about `count` random usable images of objects that may train a prefilter, (n, S, S, 3) uint8.

    Parameters
    ----------
    size : int, optional
        Pixels on a side that the full network takes, to which larger images are resampled; by default as stored.
    """
    chunks = [
        (store, slice(start, min(start + CHUNK, store.count)))
        for store in stores
        for start in range(0, store.count, CHUNK)
    ]
    sampled: list[np.ndarray] = []
    for k in np.random.default_rng(seed).permutation(len(chunks)):
        store, rows = chunks[k]
        usable = may_train_prefilter(store.column("id", rows)) & (
            (store.column("flags", rows) & np.uint8(UNUSABLE)) == 0
        )
        sampled.append(resample(store.images(rows)[usable], size or store.size))
        if sum(map(len, sampled)) >= count:
            break
    return np.concatenate(sampled)[:count]


def train_prefilter(
    images: np.ndarray, scores: np.ndarray, *, steps: int, seed: int, device: torch.device, seconds: float | None = None
) -> TinyNet:
    """Train a prefilter to regress the scores of the full network.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    scores : ndarray of float32, shape (n, targets)
        Scores of the full network.
    steps : int
        Batches of 256 images; fewer if they would take more than `seconds`.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = TinyNet(targets=scores.shape[1]).to(device)
    # Scores far below any candidate's need no precision: the lower four fifths are clipped to one value.
    clipped = np.maximum(scores, np.quantile(scores, 0.8, axis=0))
    target = torch.from_numpy((clipped - clipped.mean(0)) / np.maximum(clipped.std(0), 1e-6)).float()
    # A third of the samples are of the top twentieth, where errors matter most.
    rank = np.argsort(np.argsort(-scores, axis=0), axis=0).min(1)
    weight = torch.from_numpy(np.where(rank < len(scores) / 20, 10.0, 1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    data, timed, step = torch.from_numpy(images), 0.0, 0
    with track("prefilter", steps, "step") as advance:
        while step < steps:
            if step == 4:  # the first steps are slower
                timed = time.monotonic()
            if step == 12 and seconds is not None:
                steps = max(min(steps, int(seconds * 8 / (time.monotonic() - timed))), 20)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.multinomial(weight, BATCH, replacement=True, generator=random)
            pixels = to_unit(data[rows].to(device))
            pixels = torch.rot90(pixels, int(torch.randint(4, (), generator=random)), (2, 3))
            if torch.randint(2, (), generator=random):
                pixels = pixels.flip(3)
            loss = F.smooth_l1_loss(network(pixels), target[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            advance(1, f"loss {loss.item():.3f}")
    return network.eval().cpu()


def set_threshold(network: TinyNet, scores: np.ndarray, full_scores: np.ndarray, fraction: float) -> Prefilter:
    """Return the prefilter with its threshold (`find_threshold`)."""
    return Prefilter(network, **find_threshold(scores, full_scores, fraction))


def find_threshold(scores: np.ndarray, full_scores: np.ndarray, fraction: float) -> dict[str, Any]:
    """Return the threshold for approximate scores that follow the full network's, as keyword arguments of `Prefilter`.

    Raises `InputError` if the sample is too small for a bound.

    Parameters
    ----------
    scores, full_scores : ndarray, shape (n,)
        Approximate scores and full scores of a random sample of the survey on which the approximate scorer was not
        trained.
    fraction : float
        Fraction of the survey that will be candidates.
    """
    from scipy.stats import binom

    if len(full_scores) < 2 * BETTER:
        raise InputError(f"a prefilter needs a sample of at least {2 * BETTER:,} objects, not {len(full_scores):,}")
    order = np.argsort(-full_scores)
    better = order[:BETTER]
    slope, offset = (
        np.polyfit(full_scores[better], scores[better], 1)
        if np.ptp(full_scores[better]) > 0
        else (0.0, scores[better].mean())
    )
    slope = max(float(slope), 0.0)
    error = float((offset + slope * full_scores[better] - scores[better]).max())
    # Score of the last candidate: at 95 % confidence the sample holds no more candidates than this rank.
    rank = int(binom.ppf(CONFIDENCE, len(full_scores), min(fraction, 1.0)))
    last = float(full_scores[order[min(rank, len(order) - 1)]])
    threshold = float(offset + slope * last - error)
    return {
        "cut": threshold, "passes": float((scores >= threshold).mean()), "slope": slope, "offset": float(offset),
        "error": error, "last": last, "sample": len(full_scores),
    }  # fmt: skip


def survival_bounds(lost: int, rescored: int, discarded: int, candidates: int) -> tuple[float, float]:
    """Return the fraction of candidates that pass the prefilter, and its lower bound at 95 % confidence.

    Parameters
    ----------
    lost : int
        Number of rescored objects that the full network puts among the candidates.
    rescored, discarded : int
        Number of objects below the threshold that were scored by the full network, and of all below it.
    candidates : int
        Number of candidates found above the threshold.
    """
    from scipy.stats import beta

    if not rescored or not candidates:
        return 1.0, 1.0 if not discarded else 0.0
    upper = float(beta.ppf(CONFIDENCE, lost + 1, rescored - lost)) if lost < rescored else 1.0
    expected_lost, most_lost = (rate * discarded for rate in (lost / rescored, upper))
    return candidates / (candidates + expected_lost), candidates / (candidates + most_lost)


def save_prefilter(prefilter: Prefilter, path: Path) -> None:
    """Write a prefilter as safetensors, with its threshold in the metadata."""
    from safetensors.torch import save_file

    network = prefilter.network
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    settings = prefilter.metadata() | {"width": network.width, "strides": network.strides}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"first_look": json.dumps(settings)})


def load_prefilter(path: Path) -> Prefilter:
    """Read a file of `save_prefilter`. Raises `InputError` if the file is missing or not a prefilter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            settings: dict[str, Any] = json.loads(handle.metadata()["first_look"])
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        if not 1 <= (width := settings.pop("width")) <= 256:
            raise ValueError(f"its width is {width}")
        if (strides := tuple(settings.pop("strides", OLD_STRIDES))) not in (STRIDES, OLD_STRIDES):
            raise ValueError(f"its strides are {strides}")
        if not all(isinstance(value, int | float) for value in settings.values()):
            raise ValueError("its threshold is not a number")
        network = TinyNet(width, 1, strides)
        network.load_state_dict(state)
        return Prefilter(network.eval(), **settings)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = f"{path} is not a readable prefilter ({first_line(error)})"
        raise InputError(f"{problem}; remove it and run the command again") from error
