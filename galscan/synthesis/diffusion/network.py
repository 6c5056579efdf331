"""Base of the diffusion models of maps and of galaxies: network, preconditioning, flow-matching loss, and file.

Standardised data are folded four by four (``pixel_unshuffle``): a sixteenth of the positions, sixteen times the
channels. Two more channels hold coordinates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

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
from galscan.synthesis.diffusion.checkpoint import UNREADABLE, Checkpoint

FOLD = 4  # pixels on a side; on two cores, trains faster than 2


class FlowNetwork(nn.Module):
    """Velocity field v(x_t, t, condition) of a rectified flow from data (t=0) to noise (t=1).

    Liu et al. 2022 (arXiv:2209.03003); Lipman et al. 2022 (arXiv:2210.02747).
    """

    CONFIG: ClassVar[type]
    """Dataclass of the configuration: ``widths``, ``std``, and the ``names`` and ranges of the conditions, at least."""
    KIND: ClassVar[str]
    SCATTER: ClassVar[float]
    """Standard deviation of standardised data given the condition."""
    config: Any
    grid: torch.Tensor

    def __init__(self, config: Any, *, side: int, channels: int, conditions: int, extra: int = 0):
        super().__init__()
        self.config = config
        widths, levels, side = config.widths, len(config.widths), side // FOLD
        self.unet = UNet2DModel(
            sample_size=side, in_channels=channels * FOLD**2 + 2 + extra, out_channels=channels * FOLD**2,
            layers_per_block=1, block_out_channels=widths,
            # Attention only where it is cheap: at the coarsest level and in the middle block.
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            attention_head_dim=32, norm_num_groups=16, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        embedding = 4 * widths[0]
        self.condition = nn.Sequential(nn.Linear(conditions, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        line = (2 * torch.arange(side) + 1) / side - 1  # centres of the folded pixels, in -1..1
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None], persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map noisy data (n, C, S, S), times (n,) in 0..1 and conditions (n, k) to velocities (n, C, S, S)."""
        # Preconditioning of Karras et al. 2022 (arXiv:2206.00364, table 1) for data of standard deviation SCATTER,
        # written in t: the best linear estimate of the velocity is added to the output of the network.
        time = t[:, None, None, None]
        variance = (1 - time) ** 2 * self.SCATTER**2 + time**2
        scaled = x / variance.sqrt()
        inputs = torch.cat([F.pixel_unshuffle(scaled, FOLD), self.extra_channels(condition).to(x.dtype)], 1)
        output = self.unet(inputs, t * 1000, class_labels=self.condition(condition))  # type: ignore[operator]
        rest = self.smoothed(F.pixel_shuffle(output.sample, FOLD), scaled)
        return (time - (1 - time) * self.SCATTER**2) / variance * x + self.SCATTER / variance.sqrt() * rest

    def extra_channels(self, condition: torch.Tensor) -> torch.Tensor:
        """Return the channels beside the folded data, (n, 2 + extra, S/4, S/4)."""
        return self.grid.expand(len(condition), -1, -1, -1)

    def smoothed(self, rest: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        """Return the unfolded output `rest`, corrected with the scaled input."""
        return rest

    def encode_values(self, values: np.ndarray) -> np.ndarray:
        """Scale conditions (n, k) in their units to -1..1, followed by a flag for each; NaN = not given, zero."""
        low, high = np.array(self.config.low), np.array(self.config.high)
        scaled = 2 * (values - low) / (high - low) - 1
        given = np.isfinite(scaled)
        return np.concatenate([np.where(given, scaled, 0), given], 1).astype(np.float32)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Raise `InputError` if a network of these `widths` cannot start from this one."""
        if tuple(widths) != self.config.widths:
            raise InputError(
                f"generator widths {list(widths)} differ from those of the weights to start from, "
                f"{list(self.config.widths)}; set these widths, or start from random weights "
                "with generator.start = 'none'"
            )

    def loss(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        condition: torch.Tensor,
        random: torch.Generator,
        weight: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Return the flow-matching loss of data at times `t`; `weight` is that of each pixel."""
        device = x0.device
        noise = torch.randn(x0.shape, generator=random).to(device)
        t = t.to(device)
        xt = torch.lerp(x0, noise, t[:, None, None, None])
        with devices.autocast(device, devices.training_dtype(device)):
            velocity = self(xt, t, condition.to(device))
        return (weight * (velocity.float() - (noise - x0)).square()).mean()

    def fit(
        self,
        loss: Callable[[], torch.Tensor],
        settings: Any,
        out: Path,
        random: torch.Generator,
        *,
        floor: float,
        label: str,
        seconds: float | None,
    ) -> dict[str, float]:
        """Minimise `loss` for ``settings.steps`` or `seconds`, and write the averaged weights to `out`.

        A checkpoint is written beside `out` every two minutes; after an interruption the same call resumes from it.
        See `Checkpoint.run` and `Checkpoint.finish`.
        """
        optimizer = torch.optim.AdamW(self.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
        weights, path = dict(self.named_parameters()), out.with_suffix(".checkpoint.safetensors")
        checkpoint = Checkpoint(path, weights, optimizer, random, settings.ema)
        checkpoint.run(loss, settings.steps, seconds, warmup=100, floor=floor, label=label)
        self.save(out, checkpoint.average)
        return checkpoint.finish()

    def save(self, path: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write weights, by default those of the network, in half precision, and the configuration to one file."""
        tensors = {k: v.detach().cpu().half().contiguous() for k, v in (state or self.state_dict()).items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a network written by `save`.

        Raises `InputError` if the file is missing, damaged, or holds other tensors.
        """
        make: Callable[[Any], Self] = cls  # type: ignore[assignment]  # those of maps and of galaxies
        try:
            with safe_open(path, framework="pt") as handle:
                raw = json.loads(handle.metadata()["config"])
                state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118
            config = cls.CONFIG(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
            # Checked against the tensors on the meta device first: a wrong one could allocate a huge network.
            with torch.device("meta"):
                make(config).load_state_dict(state, assign=True)
            network = make(config)
            network.load_state_dict(state)
            if not len(config.low) == len(config.high) == len(config.names) or not config.std > 0:
                raise ValueError("inconsistent configuration")
            if not all(bool(v.isfinite().all()) for v in state.values()):
                raise ValueError("weights are not finite")
        except (*UNREADABLE, ArithmeticError) as error:
            raise InputError(
                f"{path} is not a readable {cls.KIND} of this version ({first_line(error):.200}); train it again"
            ) from error
        return network.eval()
