"""Conditional diffusion model of feature maps: a small UNet with flow matching.

A map (`galscan.synthesis.features.base`) is 64 pixels on a side in the frame of a host galaxy; its square root is
standardised. The condition has the properties that the feature measures on a map, whether the map was measured on a
real galaxy or sampled from the prior, and the strength of the feature by labels; each with a flag that is zero where it
is not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from galscan.core import device as devices
from galscan.core.errors import InputError
from galscan.core.progress import track
from galscan.labels.settings import MapSettings
from galscan.synthesis.diffusion.network import FlowNetwork

DROP = 0.12  # probability of masking all conditions of a map, and of masking a single condition
LAST = 0.06  # time at which sampling stops; the estimated clean map is returned, without residual noise
STEPS, GUIDANCE, BATCH = 25, 1.0, 64  # of sampling
MEASURED, STRENGTH = "measured", "strength"  # conditions beside those of the feature


@dataclass(frozen=True)
class MapConfig:
    """Configuration of the network; stored in the weights file."""

    feature: str
    side: int
    channels: int
    conditions: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    widths: tuple[int, ...]
    mean: float  # of the square root of the maps
    std: float

    @property
    def names(self) -> tuple[str, ...]:
        return self.conditions


class MapFlow(FlowNetwork):
    """Diffusion model of maps (n, C, side, side)."""

    CONFIG, KIND = MapConfig, "diffusion model of maps"
    SCATTER = 0.7
    config: MapConfig

    def __init__(self, config: MapConfig):
        conditions = 2 * len(config.conditions)
        super().__init__(config, side=config.side, channels=config.channels, conditions=conditions)

    def encode(self, maps: torch.Tensor) -> torch.Tensor:
        """Standardise the square root of maps (n, C, side, side)."""
        return (maps.float().clamp(min=0).sqrt() - self.config.mean) / self.config.std

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Invert `encode`."""
        return (x * self.config.std + self.config.mean).clamp(min=0) ** 2

    def encode_conditions(self, values: np.ndarray) -> torch.Tensor:
        """Return scaled conditions and flags (n, 2 k) of conditions (n, k) in their units; NaN = not given."""
        return torch.from_numpy(self.encode_values(values))


def make_config(
    feature: str, conditions: Mapping[str, tuple[float, float]], maps: np.ndarray, widths: tuple[int, ...]
) -> MapConfig:
    """Return the configuration for maps (n, C, side, side) of a feature."""
    ranges = {**conditions, MEASURED: (0.0, 1.0), STRENGTH: (0.0, 1.0)}
    low, high = zip(*ranges.values(), strict=True)
    roots = np.sqrt(np.asarray(maps[:2000], np.float32).clip(0))
    return MapConfig(
        feature, maps.shape[-1], maps.shape[1], tuple(ranges), tuple(map(float, low)), tuple(map(float, high)),
        tuple(widths), float(roots.mean()), float(roots.std()),
    )  # fmt: skip


def train_maps(
    maps: np.ndarray,
    values: np.ndarray,
    weight: np.ndarray,
    config: MapConfig,
    settings: MapSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: MapFlow | None = None,
) -> dict[str, float]:
    """Train from `start`, or from random weights; see `galscan.synthesis.diffusion.network.FlowNetwork.fit`.

    Each map is mirrored at either axis of its host with probability 1/2, with its angle.

    Raises `InputError` if a map has NaN or infinite values.

    Parameters
    ----------
    maps : ndarray, shape (n, C, side, side)
    values : ndarray, shape (n, k)
        ``config.conditions`` of each map; NaN = not given.
    weight : ndarray, shape (n,)
        Relative sampling weight.
    """
    if not np.isfinite(maps).all():
        bad = int(np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2, 3)))[0])
        raise InputError(f"map {bad} of {len(maps):,} holds NaN or infinity; leave it out, or measure it again")
    torch.manual_seed(seed)
    network = MapFlow(config)
    if start is not None:
        network.load_state_dict(start.state_dict())
    network = network.to(device).train()
    random = torch.Generator().manual_seed(seed)
    pool, sampling_weight = torch.from_numpy(maps), torch.from_numpy(np.asarray(weight, np.float64))
    conditions = network.encode_conditions(values)
    k, batch = len(config.conditions), settings.batch
    angle = config.conditions.index("sin_twice_angle") if "sin_twice_angle" in config.conditions else None

    def loss() -> torch.Tensor:
        rows = torch.multinomial(sampling_weight, batch, replacement=True, generator=random)
        x0, batch_conditions = network.encode(pool[rows].to(device)), conditions[rows].clone()
        for axis in (2, 3):
            flip = torch.rand(batch, generator=random) < 0.5
            x0 = torch.where(flip[:, None, None, None].to(device), x0.flip(axis), x0)
            if angle is not None:
                column = batch_conditions[:, angle]
                batch_conditions[:, angle] = torch.where(flip, -column, column)
        keep = (torch.rand(batch, k, generator=random) >= DROP) & (torch.rand(batch, 1, generator=random) >= DROP)
        t = torch.sigmoid(1.2 * torch.randn(batch, generator=random) + 0.3)
        t[::3] = torch.rand(t[::3].shape, generator=random)
        return network.loss(x0, t, batch_conditions * keep.repeat(1, 2), random)

    label = f"train generator of {config.feature} maps"
    return network.fit(loss, settings, out, random, floor=0.01, label=label, seconds=seconds)


@torch.inference_mode()
def sample_maps(
    network: MapFlow,
    values: np.ndarray,
    *,
    seed: int,
    device: torch.device,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
) -> np.ndarray:
    """Sample one map for each condition.

    Parameters
    ----------
    values : ndarray, shape (n, k)
        ``config.conditions``; NaN = not given.
    guidance : float
        Guidance scale: 1 = none; larger = more typical and less varied.

    Returns
    -------
    ndarray of float32, shape (n, C, side, side)
        Map k does not depend on the number of conditions.
    """
    network = network.to(device).eval()
    config = network.config
    shape = (BATCH, config.channels, config.side, config.side)
    conditions = network.encode_conditions(values)
    times = torch.linspace(1, LAST, steps + 1).tolist()
    dtype = devices.training_dtype(device)
    samples = []
    with track("sample maps", len(values), "map") as advance:
        for first in range(0, len(values), BATCH):
            batch_conditions = conditions[first : first + BATCH].to(device)
            random = torch.Generator().manual_seed(seed * 1_000_003 + first)
            x = torch.randn(shape, generator=random)[: len(batch_conditions)].to(device)

            def velocity(x: torch.Tensor, t: float, given: torch.Tensor = batch_conditions) -> torch.Tensor:
                inputs = torch.cat([given, torch.zeros_like(given)]) if guidance != 1 else given
                with devices.autocast(device, dtype):
                    out = network(
                        x.repeat(len(inputs) // len(x), 1, 1, 1), x.new_full((len(inputs),), t), inputs
                    ).float()
                return out if guidance == 1 else torch.lerp(out[len(x) :], out[: len(x)], guidance)

            for t, after in pairwise(times):
                x = x + (after - t) * velocity(x, t)
            x = x - LAST * velocity(x, LAST)
            samples.append(network.decode(x).cpu().numpy())
            advance(len(batch_conditions))
    return np.concatenate(samples) if samples else np.empty((0, *shape[1:]), np.float32)
