"""Generator of whole images: a conditional UNet with flow matching on folded pixels.

An image is square-root scaled and standardised. Beside the channels of `galscan.synthesis.diffusion.network`, four
encode size and shape, where these are given: the distances along the major and minor axis, and two profiles of that
shape. So the network need not infer position and orientation from noise, and a lane along the major axis has the same
representation at every angle.

The condition is the label vector: each answer scaled to -1..1, a flag "asked" for each answer, and a one-hot vector of
the survey. An answer that was not asked or is masked is zero, with flag zero; with all flags zero the network is
unconditional. Two more entries flag images that were resampled by augmentation, and their enlargement (Karras et al.
2022, arXiv:2206.00364); both are zero in sampling, so that blur and mirrored borders do not appear in samples.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from galscan.core import device as devices
from galscan.labels.schema import Schema
from galscan.synthesis.diffusion.network import FlowNetwork
from galscan.synthesis.galaxies import MEASURED, SHAPE, pixel_statistics

SKETCH = 4  # channels
AUGMENTATION = 2  # condition entries: flag "resampled", enlargement
# A galaxy has a few hundred bright pixels on a dark sky, so its structure is determined at noise levels close to pure
# noise. Training and sampling times are shifted towards these (Esser et al. 2024, arXiv:2403.03206, section 5.3.2).
TIME_SHIFT = 3.3
GUIDED = (0.2, 0.98)  # times between which guidance is applied (1 = pure noise)
SETTLED = 0.3  # time below which sampling is deterministic; above it each step uses new noise


@dataclass(frozen=True)
class GeneratorConfig:
    """Configuration of the network; stored in the weights file."""

    size: int
    schema: str
    answers: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    surveys: tuple[str, ...]
    widths: tuple[int, ...]
    mean: tuple[float, float, float]  # of the square roots of pixels, per band
    std: float

    @property
    def names(self) -> tuple[str, ...]:
        return self.answers

    @property
    def condition_size(self) -> int:
        return 2 * len(self.answers) + len(self.surveys) + AUGMENTATION


def shifted(u: torch.Tensor) -> torch.Tensor:
    """Shift times u in 0..1 towards 1 (pure noise); 0 and 1 are unchanged."""
    return TIME_SHIFT * u / (1 + (TIME_SHIFT - 1) * u)


class Generator(FlowNetwork):
    """Generator of whole images of galaxies, standardised square roots of pixels (n, 3, S, S)."""

    CONFIG, KIND = GeneratorConfig, "generator"
    SCATTER = 0.5  # given size, shape and brightness; less than 1, as most pixels are sky
    guidance, steps, batch = 1.0, 20, 64  # defaults of sampling
    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig):
        super().__init__(config, side=config.size, channels=3, conditions=config.condition_size, extra=SKETCH)
        # Unfolding leaves a faint grid pattern, which two convolutions remove.
        self.smooth = nn.Sequential(nn.Conv2d(6, 24, 3, 1, 1), nn.SiLU(), nn.Conv2d(24, 3, 3, 1, 1))
        for parameter in self.smooth[2].parameters():
            nn.init.zeros_(parameter)

    def extra_channels(self, condition: torch.Tensor) -> torch.Tensor:
        """Return coordinates, and the encoded shapes."""
        return torch.cat([super().extra_channels(condition), self.shape_channels(condition)], 1)

    def smoothed(self, rest: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
        """Return the output without the grid pattern of unfolding."""
        return rest + self.smooth(torch.cat([rest, scaled], 1))

    def shape_channels(self, condition: torch.Tensor) -> torch.Tensor:
        """Encode the shapes in conditions (n, C) as channels (n, 4, S/4, S/4); zero where no shape is given."""
        answers, side = self.config.answers, self.grid.shape[-1]
        if not set(SHAPE) <= set(answers):
            return condition.new_zeros(len(condition), SKETCH, side, side)
        columns = [answers.index(name) for name in SHAPE]
        low, high = (
            condition.new_tensor([bounds[k] for k in columns]) for bounds in (self.config.low, self.config.high)
        )
        size, e1, e2 = (low + (condition[:, columns] + 1) / 2 * (high - low))[:, :, None, None].unbind(1)
        given = condition[:, [len(answers) + k for k in columns]].prod(1)[:, None, None, None]
        angle, axis_ratio = torch.atan2(e2, e1) / 2, (1 - torch.hypot(e1, e2)).clamp(min=0.15)
        y, x = self.grid[0, 0] / 2, self.grid[0, 1] / 2  # fractions of the frame
        major = (x * angle.cos() + y * angle.sin()).abs() / size.clamp(min=0.02)
        minor = (y * angle.cos() - x * angle.sin()).abs() / size.clamp(min=0.02)
        # The half-light radius is of a circular aperture; the ellipse has the same area.
        along, across = major * axis_ratio.sqrt(), minor / axis_ratio.sqrt()
        square = along**2 + across**2
        channels = [torch.tanh(major / 2), torch.tanh(minor / 2), (-square.sqrt()).exp(), (-square).exp()]
        return torch.stack(channels, 1) * given

    @torch.inference_mode()
    def generate(
        self,
        values: np.ndarray,
        survey: np.ndarray,
        *,
        guidance: float,
        weights: Mapping[str, float],
        steps: int,
        seed: int,
        device: torch.device,
    ) -> np.ndarray:
        """Generate one image for each condition: `galscan.synthesis.sampling.ImageGenerator.generate`."""
        self.to(device).eval()
        config, n = self.config, len(values)
        weighted: dict[float, list[int]] = {}
        for answer, weight in weights.items():
            if weight != 1:
                weighted.setdefault(weight, []).append(config.answers.index(answer))
        condition = self.encode_conditions(values, survey).to(device)
        times = shifted(torch.linspace(1, 0, steps + 1, device=device))
        dtype = devices.training_dtype(device)
        # Noise of a whole batch from one seed: image k does not depend on the number of images.
        random = torch.Generator().manual_seed(seed)
        shape = (self.batch, 3, config.size, config.size)
        x = torch.randn(shape, generator=random)[:n].to(device)
        for t, after in itertools.pairwise(times):
            terms = [(condition, 1.0)]
            if GUIDED[0] <= t <= GUIDED[1]:
                terms = self.guidance_terms(condition, guidance, weighted)
            conditions = torch.cat([c for c, _ in terms])
            with devices.autocast(device, dtype):
                out = self(x.repeat(len(terms), 1, 1, 1), t.expand(len(conditions)), conditions).float()
            factors = out.new_tensor([f for _, f in terms])
            velocity = torch.einsum("k,knchw->nchw", factors, out.unflatten(0, (len(terms), n)))
            image, noise = x - t * velocity, x + (1 - t) * velocity
            if after > SETTLED:
                noise = torch.randn(shape, generator=random)[:n].to(device)
            x = (1 - after) * image + after * noise
        return self.decode_images(x).cpu().numpy()

    def guidance_terms(
        self, condition: torch.Tensor, guidance: float, weighted: Mapping[float, Sequence[int]]
    ) -> list[tuple[torch.Tensor, float]]:
        """Return (condition, factor) pairs whose factors sum to 1; `weighted` has the answers of each weight.

        v = v(none) + g [v(all) - v(none)] + sum_w g (w - 1) [v(all) - v(all but those of weight w)]
        """
        extra = {w: guidance * (w - 1) for w in weighted}
        terms = [(condition, guidance + sum(extra.values()))]
        drop = torch.zeros(len(condition), len(self.config.answers), dtype=torch.bool, device=condition.device)
        for w, answers in weighted.items():
            mask = drop.clone()
            mask[:, answers] = True
            terms.append((self.mask(condition, mask), -extra[w]))
        if guidance != 1:
            terms.append((self.mask(condition, ~drop), 1 - guidance))
        return terms

    # -- encoding of pixels and conditions -----------------------------------------------------

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Map (n, S, S, 3) uint8 to standardised pixels (n, 3, S, S)."""
        pixels = images.permute(0, 3, 1, 2).float().div_(255).sqrt_()
        return (pixels - pixels.new_tensor(self.config.mean)[:, None, None]) / self.config.std

    def decode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Invert `encode_images`; values outside 0..255 are clipped."""
        roots = pixels * self.config.std + pixels.new_tensor(self.config.mean)[:, None, None]
        return (roots.clamp(0, 1) ** 2 * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def encode_conditions(self, values: np.ndarray, survey: np.ndarray) -> torch.Tensor:
        """Build condition vectors from answers in their units.

        Parameters
        ----------
        values : ndarray, shape (n, answers)
            NaN = not asked.
        survey : ndarray of int, shape (n,)
            Index into ``config.surveys``; -1 = any.
        """
        onehot = np.asarray(survey)[:, None] == np.arange(len(self.config.surveys))
        not_augmented = np.zeros((len(values), AUGMENTATION))
        columns = [self.encode_values(values), onehot, not_augmented]
        return torch.from_numpy(np.concatenate(columns, 1).astype(np.float32))

    def mask(self, condition: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
        """Mask the answers where `drop` (n, answers) is true; survey and augmentation are kept."""
        keep = (~drop).to(condition.dtype)
        rest = keep.new_ones(len(keep), condition.shape[1] - 2 * keep.shape[1])
        return condition * torch.cat([keep, keep, rest], 1)

    def start_from(self, other: Generator) -> None:
        """Copy the weights of `other`, which may have other answers and surveys.

        Weights of answers and surveys are matched by name; those of a new answer are zero, those of a new survey are
        the mean over the surveys of `other`. Networks of other widths raise an `InputError`.
        """
        other.check_widths(self.config.widths)
        state = other.state_dict()
        weight = torch.zeros_like(self.condition[0].weight)  # type: ignore[arg-type]
        answers, other_answers = self.config.answers, other.config.answers
        old = state["condition.0.weight"]
        for k, answer in enumerate(answers):
            if answer in other_answers:
                j = other_answers.index(answer)
                weight[:, k] = old[:, j]
                weight[:, len(answers) + k] = old[:, len(other_answers) + j]
        surveys = old[:, 2 * len(other_answers) : -AUGMENTATION]
        for k, survey in enumerate(self.config.surveys):
            known = survey in other.config.surveys
            column = surveys[:, other.config.surveys.index(survey)] if known else surveys.mean(1)
            weight[:, 2 * len(answers) + k] = column
        weight[:, -AUGMENTATION:] = old[:, -AUGMENTATION:]
        self.load_state_dict(state | {"condition.0.weight": weight})


def make_config(images: np.ndarray, schema: Schema, surveys: Sequence[str], widths: tuple[int, ...]) -> GeneratorConfig:
    """Return the configuration for `images` (n, S, S, 3), with the answers of `schema` and measured properties."""
    mean, std = pixel_statistics(images)
    ranges = {name: schema.ranges[name] for name in schema.names} | MEASURED
    low, high = zip(*ranges.values(), strict=True)
    return GeneratorConfig(
        size=images.shape[1], schema=schema.name, answers=tuple(ranges), low=tuple(map(float, low)),
        high=tuple(map(float, high)), surveys=tuple(surveys), widths=tuple(widths), mean=mean, std=std,
    )  # fmt: skip


def load_start(start: str) -> Generator | None:
    """Load initial weights: "base" (those shipped), "none" (None), or a path."""
    if start == "none":
        return None
    base = importlib.resources.files("galscan.synthesis.diffusion") / "base.safetensors"
    return Generator.load(Path(str(base)) if start == "base" else Path(start))
