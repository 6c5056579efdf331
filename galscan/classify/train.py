"""Train one network on real, or on real and dreamt, galaxies: one loop, read from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from galscan import device as devices
from galscan.classify.model import GalaxyNet, to_unit
from galscan.generate.augment import noise_and_gain, quarter_turns, rotate_flip_scale
from galscan.progress import track
from galscan.recipe import ClassifierSettings


@dataclass(frozen=True)
class Examples:
    """Galaxies with what they are.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    target : ndarray of float32, shape (n,)
        1, 0, or NaN (ambiguous: teaches morphology only).
    answers : ndarray of float32, shape (n, answers)
        Morphology scaled to 0..1, NaN = not asked.
    """

    images: np.ndarray
    target: np.ndarray
    answers: np.ndarray

    def drawing_weights(self, positive_fraction: float) -> torch.Tensor:
        """Return weights that make positives `positive_fraction` of what is drawn."""
        positive = self.target == 1
        share = positive_fraction / max(positive.sum(), 1)
        rest = (1 - positive_fraction) / max((~positive).sum(), 1)
        return torch.from_numpy(np.where(positive, share, rest))


def train_classifier(
    real: Examples,
    dreamt: Examples | None,
    settings: ClassifierSettings,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    label: str = "train classifier",
) -> GalaxyNet:
    """Train a network for `steps` batches; with `dreamt`, a part of every batch is dreamt.

    Returns the moving average of the weights, with the statistics of its normalisation layers taken
    from *real* images only (dreamt ones have statistics of their own, and it is real ones it will see).
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = GalaxyNet(settings.width, real.answers.shape[1]).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    dtype = devices.training_dtype(device)

    sources = [(real, settings.batch)]
    if dreamt is not None:
        n_dreamt = round(settings.batch * settings.dreamt_fraction)
        sources = [(real, settings.batch - n_dreamt), (dreamt, n_dreamt)]
    pools = [
        (torch.from_numpy(s.images), torch.from_numpy(s.target), torch.from_numpy(s.answers),
         s.drawing_weights(settings.positive_fraction), n)
        for s, n in sources if n
    ]  # fmt: skip

    network.train()
    with track(label, steps, "step") as advance:
        for step in range(steps):
            rate = (
                settings.learning_rate
                * min(1.0, (step + 1) / (0.05 * steps + 1))
                * 0.5
                * (1 + math.cos(math.pi * step / steps))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            drawn = [torch.multinomial(w, n, replacement=True, generator=random) for *_, w, n in pools]
            images = torch.cat([p[0][rows] for p, rows in zip(pools, drawn, strict=True)])
            target = torch.cat([p[1][rows] for p, rows in zip(pools, drawn, strict=True)]).to(device)
            answers = torch.cat([p[2][rows] for p, rows in zip(pools, drawn, strict=True)]).to(device)

            pixels = quarter_turns(rotate_flip_scale(to_unit(images.to(device)), random), random)
            pixels = noise_and_gain(pixels, random).to(memory_format=torch.channels_last)
            with devices.autocast(device, dtype):
                logit, morphology = network(pixels)
            loss = _masked_bce(logit.float(), target)
            loss = loss + settings.morphology_weight * _masked_bce(morphology.float(), answers)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            keep = min(0.99, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - keep)
            advance(1, f"loss {loss.item():.3f}")
    _restate(average, real.images, device, random)
    return average.eval().cpu()


def affordable_steps(
    real: Examples, settings: ClassifierSettings, *, device: torch.device, seconds: float | None
) -> int:
    """Return how many steps of `train_classifier` fit into `seconds`, at most what the recipe asks for."""
    if seconds is None:
        return settings.steps
    trial = settings.model_copy(update={"dreamt_fraction": 0.0})
    train_classifier(real, None, trial, steps=4, seed=0, device=device, label="warm up")
    timed = 12
    started = time.monotonic()
    train_classifier(real, None, trial, steps=timed, seed=0, device=device, label="time a step")
    return int(min(settings.steps, max(20, seconds * timed / (time.monotonic() - started))))


def _masked_bce(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over the values that are known; soft values are allowed."""
    known = values.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(values), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def _restate(network: GalaxyNet, images: np.ndarray, device: torch.device, random: torch.Generator) -> None:
    """Take the statistics of the normalisation layers from up to 2,048 of `images`, in natural proportions."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative mean
    network.train()
    rows = torch.randperm(len(images), generator=random)[:2048].numpy()
    for start in range(0, len(rows), 256):
        network(to_unit(torch.from_numpy(images[rows[start : start + 256]]).to(device)))
