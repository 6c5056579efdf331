"""Conditional diffusion model of feature maps: a small UNet with flow matching.

A map (`galscan.synthesis.features.base`) is 64 pixels on a side in the frame of a host galaxy. Its square root is
standardised and folded four by four, as in `galscan.synthesis.diffusion.galaxy_model`: a sixteenth of the positions,
sixteen times the channels. The condition has the properties that the feature measures on a map, whether the map was
measured on a real galaxy or sampled from the prior, and the strength of the feature by labels; each with a flag that
is zero where it is not given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.errors import InputError, first_line
from galscan.core.files import atomic_path
from galscan.core.progress import track
from galscan.synthesis.diffusion.checkpoint import UNREADABLE, Checkpoint

FOLD = 4
SCATTER = (
    0.7  # standard deviation of standardised maps given the condition; see `galscan.synthesis.diffusion.galaxy_model`
)
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


class MapFlow(nn.Module):
    """Velocity field of a rectified flow from maps (t=0) to noise (t=1), given conditions.

    Liu et al. 2022 (arXiv:2209.03003); Lipman et al. 2022 (arXiv:2210.02747).
    """

    grid: torch.Tensor

    def __init__(self, config: MapConfig):
        super().__init__()
        self.config = config
        widths, side, folded = config.widths, config.side // FOLD, config.channels * FOLD**2
        levels = len(widths)
        self.unet = UNet2DModel(
            sample_size=side, in_channels=folded + 2, out_channels=folded, layers_per_block=1,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            attention_head_dim=32, norm_num_groups=16, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        embedding = 4 * widths[0]
        self.condition = nn.Sequential(
            nn.Linear(2 * len(config.conditions), embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        line = (2 * torch.arange(side) + 1) / side - 1
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None], persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map noisy maps (n, C, side, side), times (n,) and conditions (n, 2 k) to velocities like the maps."""
        time = t[:, None, None, None]
        variance = (
            1 - time
        ) ** 2 * SCATTER**2 + time**2  # preconditioning: see `galscan.synthesis.diffusion.galaxy_model`
        folded = F.pixel_unshuffle(x / variance.sqrt(), FOLD)
        folded = torch.cat([folded, self.grid.to(folded.dtype).expand(len(x), -1, -1, -1)], 1)
        output = self.unet(folded, t * 1000, class_labels=self.condition(condition))  # type: ignore[operator]
        rest = F.pixel_shuffle(output.sample, FOLD)
        return (time - (1 - time) * SCATTER**2) / variance * x + SCATTER / variance.sqrt() * rest

    def encode(self, maps: torch.Tensor) -> torch.Tensor:
        """Standardise the square root of maps (n, C, side, side)."""
        return (maps.float().clamp(min=0).sqrt() - self.config.mean) / self.config.std

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Invert `encode`."""
        return (x * self.config.std + self.config.mean).clamp(min=0) ** 2

    def encode_conditions(self, values: np.ndarray) -> torch.Tensor:
        """Scale conditions (n, k) in their units to -1..1, with a flag for each; NaN = not given."""
        low, high = np.array(self.config.low), np.array(self.config.high)
        scaled = 2 * (np.asarray(values, float) - low) / (high - low) - 1
        given = np.isfinite(scaled)
        return torch.from_numpy(np.concatenate([np.where(given, scaled, 0), given], 1).astype(np.float32))


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
    out: Path,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    ema: float,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: MapFlow | None = None,
) -> dict[str, float]:
    """Train until `steps` or `seconds` are used up, and write the averaged weights to `out`.

    Each map is mirrored at either axis of its host with probability 1/2, with its angle. A checkpoint beside `out` is
    written every two minutes; after an interruption the same call resumes.

    Parameters
    ----------
    maps : ndarray, shape (n, C, side, side)
    values : ndarray, shape (n, k)
        ``config.conditions`` of each map; NaN = not given.
    weight : ndarray, shape (n,)
        Relative sampling weight.

    Returns
    -------
    dict
        ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps).

    Raises
    ------
    InputError
        If a map has NaN or infinite values.
    GalscanError
        If the training diverges.
    """
    if not np.isfinite(maps).all():
        bad = int(np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2, 3)))[0])
        raise InputError(f"map {bad} of {len(maps):,} holds NaN or infinity; leave it out, or measure it again")
    torch.manual_seed(seed)
    network = MapFlow(config)
    if start is not None:
        network.load_state_dict(start.state_dict())
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    random = torch.Generator().manual_seed(seed)
    dtype = devices.training_dtype(device)
    pool, sampling_weight = torch.from_numpy(maps), torch.from_numpy(np.asarray(weight, np.float64))
    conditions = network.encode_conditions(values)
    k = len(config.conditions)
    angle = config.conditions.index("sin_twice_angle") if "sin_twice_angle" in config.conditions else None

    checkpoint = Checkpoint(
        out.with_suffix(".checkpoint.safetensors"), network.state_dict(), average, optimizer, random
    )
    checkpoint.resume()
    with track(f"train generator of {config.feature} maps", steps, "step", done=checkpoint.step) as advance:
        while (done := checkpoint.progress(steps, seconds)) < 1:
            rate = (
                learning_rate
                * min(1.0, (checkpoint.step + 1) / 100)
                * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
            )
            rows = torch.multinomial(sampling_weight, batch, replacement=True, generator=random)
            x0, batch_conditions = network.encode(pool[rows].to(device)), conditions[rows].clone()
            for axis in (2, 3):
                flip = torch.rand(batch, generator=random) < 0.5
                x0 = torch.where(flip[:, None, None, None].to(device), x0.flip(axis), x0)
                if angle is not None:
                    column = batch_conditions[:, angle]
                    batch_conditions[:, angle] = torch.where(flip, -column, column)
            keep = (torch.rand(batch, k, generator=random) >= DROP) & (torch.rand(batch, 1, generator=random) >= DROP)
            batch_conditions = batch_conditions * keep.repeat(1, 2)
            t = torch.sigmoid(1.2 * torch.randn(batch, generator=random) + 0.3)
            t[::3] = torch.rand(t[::3].shape, generator=random)
            noise = torch.randn(x0.shape, generator=random).to(device)
            t = t.to(device)
            xt = torch.lerp(x0, noise, t[:, None, None, None])
            with devices.autocast(device, dtype):
                velocity = network(xt, t, batch_conditions.to(device))
            loss = (velocity.float() - (noise - x0)).square().mean()
            advance(1, checkpoint.update(loss, rate, ema))
            checkpoint.save_if_due()
    save_maps_model(network, average, out)
    return checkpoint.finish()


@torch.inference_mode()
def sample_maps(
    network: MapFlow,
    values: np.ndarray,
    *,
    seed: int,
    device: torch.device,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    label: str = "sample maps",
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
    with track(label, len(values), "map") as advance:
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


def save_maps_model(network: MapFlow, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write weights `state` (usually the moving average) and configuration to one file."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"config": json.dumps(asdict(network.config))})


def load_maps_model(path: Path) -> MapFlow:
    """Read a diffusion model of maps.

    Raises
    ------
    InputError
        If the file is missing, damaged, or holds other tensors.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            raw: dict[str, Any] = json.loads(handle.metadata()["config"])
            state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        config = MapConfig(**known)
        if not len(config.low) == len(config.high) == len(config.conditions) or not config.std > 0:
            raise ValueError("inconsistent configuration")
        with torch.device("meta"):  # a wrong configuration could allocate a huge network
            MapFlow(config).load_state_dict(state, assign=True)
        network = MapFlow(config)
        network.load_state_dict(state)
        if not all(bool(v.isfinite().all()) for v in state.values()):
            raise ValueError("weights are not finite")
    except (*UNREADABLE, ArithmeticError) as error:
        reason = first_line(error)
        raise InputError(
            f"{path} is not a readable diffusion model of maps of this version ({reason:.200}); train it again with "
            "galscan train-generator --kind maps"
        ) from error
    return network.eval()
